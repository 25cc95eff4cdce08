"""Makes a graph that takes B, G, R take R, G, B, as images are everywhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.front import Input
from sigcam.core.errors import UsageError

if TYPE_CHECKING:
    import onnx

_PLACES = {3: [2, 1, 0], 4: [2, 1, 0, 3]}
"""Number of channels to the place that each comes from; alpha stays last."""


def take_rgb(model: onnx.ModelProto, takes: Input, where: str) -> None:
    """Puts a node that turns the channels round behind a graph's input.

    Args:
        model: the graph; it is changed.
        takes: what it takes.
        where: the file's name, for messages.

    Raises:
        UsageError: it takes neither three nor four channels.
    """
    from onnx import helper, numpy_helper

    if takes.channels not in _PLACES:
        raise UsageError(
            f"B, G, R is an order of three channels (or four, with alpha), {where} takes "
            f"{takes.channels}; leave the channel order out"
        )
    turned, places = f"{takes.name}_bgr", f"{takes.name}_bgr_places"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == takes.name:
                node.input[index] = turned
    array = np.array(_PLACES[takes.channels], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(array, places))
    axis = 3 if takes.nhwc else 1
    node = helper.make_node("Gather", [takes.name, places], [turned], turned, axis=axis)
    model.graph.node.insert(0, node)


def in_order(images: Any, takes: Input) -> Any:
    """Returns images in the order in which a file takes its channels.

    Args:
        images: [B, C, H, W], R, G, B.
        takes: what the file takes.
    """
    return images[:, _PLACES[takes.channels]] if takes.order == "bgr" else images
