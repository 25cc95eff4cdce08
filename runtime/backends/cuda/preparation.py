"""Images on the device become the network's input, as `sigcam.images.preprocess` does it."""

from __future__ import annotations

from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import Axis, mean_colour
from sigcam.kernels.arguments import InputAxis
from sigcam.kernels.prepare import Values


def input_axis(axis: Axis) -> InputAxis:
    """Converts an axis of a placement to the form that the kernels take.

    Example:
        >>> from sigcam.images.preprocess import place
        >>> axis = input_axis(place(Preprocessing(224, 224), 480, 640).columns)
        >>> axis.start, axis.factor, axis.cells, axis.shown
        (80, 2, 240, 224)
    """
    cells = axis.used // axis.factor
    return InputAxis(axis.start, axis.factor, cells, axis.first, axis.shown, axis.length)


def values_of(preprocessing: Preprocessing) -> Values:
    """Returns what a network takes of a pixel.

    Example:
        >>> values_of(Preprocessing(mean=(0.5,), std=(0.25,), layout="float32_nchw"))
        Values(border=(128,), scale=(0.01568627450980392,), shift=(-2.0,))
    """
    border = tuple(mean_colour(preprocessing))
    if preprocessing.layout != "float32_nchw":
        return Values(border)
    pairs = list(zip(preprocessing.mean, preprocessing.std, strict=True))
    return Values(
        border,
        tuple(1 / (preprocessing.scale * std) for _, std in pairs),
        tuple(-mean / std for mean, std in pairs),
    )
