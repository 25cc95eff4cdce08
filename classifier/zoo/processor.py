"""Finds out what an image processor of transformers' does, by looking at what it makes of images.

Every family has its own: sizes under several keys, crops that depend on other fields, a second
normalisation, channels in the order B, G, R. What comes out of plain test images says all of it,
whatever the fields are called: flat ones the values, ramps the place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import ModelError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array

Process = Callable[[Array], Array]
"""An image processor: uint8 [h, w, n], RGB where n is 3, to float [n, H, W]."""

# Landscape and portrait, with shorter sides of different lengths.
_SIZES = ((480, 720), (640, 400))
_FLAT = (256, 256)
_HALF = 102  # 0.4 of 255: a whole number
_ACROSS = 4  # of 255 levels
_WITHIN = 0.01  # what resampling, and pixels of 8 bits, may move an edge: as a share of the side
_ELSEWISE = "its image processor {does}; here {instead}"


@dataclass(frozen=True)
class Measured:
    """What an image processor does.

    Attributes:
        preprocessing: the nearest of sigcam's own.
        reversed_channels: whether the network takes blue, green, red.
        notes: sentences on what the processor does otherwise; empty where that is nothing.
    """

    preprocessing: Preprocessing
    reversed_channels: bool
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Axis:
    """Where the pixels of one axis of the input come from: `start` and `scale` in image pixels."""

    start: float
    scale: float
    length: int  # of the input
    whole: int  # of the image
    straight: bool

    @property
    def is_all(self) -> bool:
        """Returns whether the whole axis is seen."""
        end = self.start + self.scale * self.length
        return abs(self.start) < _WITHIN * self.whole and abs(end / self.whole - 1) < _WITHIN

    @property
    def is_centred(self) -> bool:
        """Returns whether as much is cut off at both ends."""
        rest = self.whole - self.scale * self.length
        # Half a pixel of the input may go to either end.
        return abs(self.start - rest / 2) < _WITHIN * self.whole + self.scale

    @property
    def resized(self) -> int:
        """Returns the length to which the whole axis was resized, before any cut."""
        return round(self.whole / self.scale)


def measure(process: Process, side: int | None, channels: int = 3) -> Measured:
    """Measures an image processor.

    Args:
        process: the image processor.
        side: the side of the network's square input in pixels, for a processor that leaves
            images at their own size; 224 when None.
        channels: n, the number of channels of an image.

    Raises:
        ModelError: images of so many channels can't be prepared; values that aren't a linear
            function of the pixel's, or channels that are mixed.

    Example:
        >>> def halves(image):  # the image as it is, scaled to -1..1
        ...     return (image / 127.5 - 1).transpose(2, 0, 1)[:, :64, :64]
        >>> measured = measure(halves, 64)
        >>> measured.preprocessing.mean, measured.preprocessing.std
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    _check_channels(process, channels)
    mean, std, flipped = _values(process, channels)
    shapes = [process(np.zeros((*size, channels), np.uint8)).shape[1:] for size in _SIZES]
    if shapes[0] != shapes[1]:
        own = shapes == list(_SIZES)
        square = (side or 224) if own else min(shapes[0])
        does = "leaves images at their own size" if own else "cuts nothing off the longer side"
        instead = f"the shorter side is resized to {square} and the centre cut"
        found = Preprocessing(square, square, "crop", square, mean, std)
        return Measured(found, flipped, (_ELSEWISE.format(does=does, instead=instead),))
    axes = [_axes(process, size, mean, std, flipped) for size in _SIZES]
    found, notes = _rule(axes, mean, std)
    return Measured(found, flipped, notes)


Numbers = tuple[float, ...]
"""One number for each channel."""


def _check_channels(process: Process, channels: int) -> None:
    """Refuses a processor that fails on images of so many channels, or makes others of them."""
    try:
        made = process(np.zeros((*_FLAT, channels), np.uint8)).shape[0]
    # Every processor has errors of its own for channels that it wasn't made for.
    except Exception as exc:
        if channels == 3:
            raise
        raise ModelError(_other_channels(channels, f"fails on them: {exc}")) from exc
    if made != channels:
        raise ModelError(_other_channels(channels, f"makes {made} channels of them"))


def _other_channels(channels: int, does: str) -> str:
    return (
        f"the network takes images of {channels} channels, and its image processor {does}; save "
        f"one beside the network that prepares them, such as ViTImageProcessor(image_mean=[...], "
        f"image_std=[...]) with {channels} numbers each, with `save_pretrained`"
    )


def _values(process: Process, channels: int) -> tuple[Numbers, Numbers, bool]:
    """Measures mean and deviation by the image's channels, and whether these are reversed."""
    black, grey, white = (_flat(process, (v,) * channels) for v in (0, _HALF, 255))
    span = white - black
    if (span <= 0).any() or not np.allclose(grey, black + span * _HALF / 255, atol=1e-3):
        raise ModelError(
            "the image processor's values are no linear function of the pixels', which sigcam "
            "can't follow; give the network as a callable of your own, package.module:name"
        )
    levels = np.rint(np.linspace(255, 0, channels + 1)[:-1]).astype(int)
    seen = (_flat(process, levels.tolist()) - black) / span * 255
    if np.allclose(seen, levels, atol=0.3):
        flipped = False
    elif channels == 3 and np.allclose(seen[::-1], levels, atol=0.3):
        flipped = True
    else:
        raise ModelError(
            "the image processor mixes the channels of an image, which sigcam can't follow; give "
            "the network as a callable of your own, package.module:name"
        )
    std = 1 / span
    mean = -black * std
    order = slice(None, None, -1 if flipped else 1)
    return _rounded(mean[order]), _rounded(std[order]), flipped


def _flat(process: Process, colour: Sequence[int]) -> Array:
    """Returns float64 [n], what becomes of an image of one colour [n]."""
    out = process(np.full((*_FLAT, len(colour)), colour, np.uint8)).astype(np.float64)
    return np.asarray(out[:, out.shape[1] // 2, out.shape[2] // 2])


def _rounded(values: Array) -> Numbers:
    # float32 leaves the seventh digit open.
    return tuple(float(f"{value:.6g}") if abs(value) > 1e-6 else 0.0 for value in values)


def _axes(
    process: Process, size: tuple[int, int], mean: Numbers, std: Numbers, flipped: bool
) -> tuple[_Axis, _Axis]:
    """Measures where the input's rows and columns lie in an image of this size."""
    height, width = size
    x, y = np.linspace(0, 1, width), np.linspace(0, 1, height)[:, None]
    # Whole levels would bend a ramp of about as many pixels. A small slope across it moves its
    # steps from line to line, so that they vanish in the mean over the lines.
    ramp = 255 - _ACROSS
    first = -1 if flipped else 0

    def seen(levels: Array) -> Array:
        image = np.repeat(np.rint(levels).astype(np.uint8)[..., None], len(mean), axis=2)
        value = process(image)[first].astype(np.float64) * std[0] + mean[0]
        return np.asarray(value * 255 - _ACROSS / 2)

    columns = seen(ramp * x + _ACROSS * y).mean(axis=0)
    rows = seen(ramp * y + _ACROSS * x).mean(axis=1)
    rows, columns = rows / ramp * (height - 1), columns / ramp * (width - 1)
    return _axis(rows, height), _axis(columns, width)


def _axis(positions: Array, whole: int) -> _Axis:
    """Fits a line to the image positions, float [n], of the pixels of one axis of the input."""
    n = len(positions)
    centres = np.arange(n) + 0.5
    # Filters that reach over the edge of the image bend the line there.
    inner = slice(n // 8, n - n // 8)
    scale, start = np.polyfit(centres[inner], positions[inner] + 0.5, 1)
    bend = np.abs(positions + 0.5 - (start + scale * centres)).max()
    return _Axis(float(start), float(scale), n, whole, bool(bend < 2 * _WITHIN * whole + scale))


def _rule(
    axes: list[tuple[_Axis, _Axis]], mean: Numbers, std: Numbers
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Returns the resize rule that does what was measured on both images, or the nearest."""
    rows, columns = axes[0]
    height, width = rows.length, columns.length
    every = [axis for pair in axes for axis in pair]
    stretched = Preprocessing(height, width, "stretch", None, mean, std)
    if all(axis.is_all for axis in every):
        return stretched, ()
    straight = all(axis.straight and axis.is_centred for axis in every)
    if not straight:
        instead = f"they are resized to {height}x{width} whatever their aspect"
        does = "fits images in a way of its own"
        return stretched, (_ELSEWISE.format(does=does, instead=instead),)
    resized = [min(pair[0].resized, pair[1].resized) for pair in axes]
    keeps_aspect = all(abs(a.scale / b.scale - 1) < _WITHIN for a, b in axes)
    shorter = max(resized[0], height, width)
    found = Preprocessing(height, width, "crop", shorter, mean, std)
    instead = f"the shorter side is resized to {shorter} and {height}x{width} cut"
    if not keeps_aspect:
        does = f"resizes images to {rows.resized}x{columns.resized} whatever their aspect, and cuts"
    elif resized[0] != resized[1]:
        found = Preprocessing(height, width, "crop", max(height, width), mean, std)
        does = "cuts the centre of an image without resizing it"
        instead = f"the shorter side is resized to {max(height, width)} before"
    elif shorter != resized[0]:
        does = f"resizes the shorter side to {resized[0]} and pads"
    else:
        return found, ()
    return found, (_ELSEWISE.format(does=does, instead=instead),)
