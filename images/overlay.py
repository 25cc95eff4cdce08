"""Drawing a map over an image: colours, contours, boxes, label and legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from sigcam.core.annotations import check_fields
from sigcam.core.arguments import real_number
from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.images import colour_maps, pixels
from sigcam.images.text import blend, check_font, letters, text_size, write_lines

Opacity = Literal["value", "even"]
Background = Literal["image", "none"]


@dataclass(frozen=True)
class OverlayOptions:
    """How a map is drawn.

    Attributes:
        alpha: weight of the colours where they are strongest, 0 to 1.
        opacity: "value": the weight rises with the map's value from 0, so that the image stays
            as it is where the map says nothing. "even": it is the same in all of the crop box.
        colour_map: one of `sigcam.images.colour_maps.colour_maps()`. "blue-red" is for signed
            maps: 0 is in its middle and clear, and its ends are as far from 0.
        contours: values at which lines are drawn, each above 0 and below 1.
        boxes: share of the map's maximum at which boxes are drawn, above 0 and at most 1; None
            draws none.
        label: whether the class's name, its probability and its evidence are written.
        legend: whether a bar shows which colour stands for which value.
        background: "image"; or "none" for the map alone, with an alpha channel.
        cam_range: the values of the CAM that count as 0 and as 1, so that maps drawn with one
            range can be compared (`sigcam.shared_cam_range` finds it); None for the smallest and
            largest of each map.
        font: a TrueType or OpenType file for the text; None for OpenCV's own font.

    Raises:
        UsageError: a value of another type or out of range.

    Example:
        >>> OverlayOptions(colour_map="turbo", contours=(0.5,)).alpha
        0.75
        >>> OverlayOptions(alpha=2)
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: alpha must be from 0 to 1, got 2
    """

    alpha: float = 0.75
    opacity: Opacity = "value"
    colour_map: str = colour_maps.DEFAULT
    contours: tuple[float, ...] = ()
    boxes: float | None = None
    label: bool = False
    legend: bool = False
    background: Background = "image"
    cam_range: tuple[float, float] | None = None
    font: str | Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        real_number(self.alpha, "alpha", 0, 1)
        colour_maps.colours_of(self.colour_map)
        for level in self.contours:
            real_number(level, "a level of contours", 0, 1, above=True)
        if 1 in self.contours:
            raise UsageError("a level of contours must be below 1, got 1; nothing lies above it")
        if self.boxes is not None:
            real_number(self.boxes, "boxes", 0, 1, above=True)
        low, high = self.cam_range or (0.0, 1.0)
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise UsageError(
                f"cam_range must be two finite numbers, low and then high, got {low:g} and {high:g}"
            )
        check_font(self.font)

    @property
    def is_diverging(self) -> bool:
        """Says whether 0 is in the middle of the colours."""
        return self.colour_map == colour_maps.DIVERGING

    def weights(self) -> Array:
        """Returns the weight of the colours for the values i / 255, float64 [256] in [0, 1].

        Example:
            >>> OverlayOptions(alpha=0.5).weights()[[0, 255]].tolist()
            [0.0, 0.5]
            >>> OverlayOptions(alpha=0.5, colour_map="blue-red").weights()[[0, 255]].tolist()
            [0.5, 0.5]
        """
        values = np.arange(256) / 255
        if self.opacity == "even":
            return np.full(256, self.alpha)
        if self.is_diverging:  # the two values around the middle count as 0
            return self.alpha * (np.abs(2 * values - 1) - 1 / 255) / (1 - 1 / 255)
        return self.alpha * values


DEFAULTS = OverlayOptions()
"""How maps are drawn unless the caller says otherwise."""


def draw(
    image: Array,
    values: Array | None,
    crop_box: tuple[int, int, int, int],
    options: OverlayOptions = DEFAULTS,
    *,
    boxes: Iterable[tuple[int, int, int, int]] = (),
    label: Sequence[str] = (),
) -> Array:
    """Draws a map over an image, or alone.

    Lines and letters grow with the image, from a line of one pixel and letters of nine on. What
    doesn't fit of a label or a legend is left out: in images of some 40 pixels, all of it.

    Args:
        image: uint8 or float32 [H, W, n], as the model reads it; `sigcam.images.pixels.shown`
            says how other channels than RGB are shown.
        values: float32 [H, W] in [0, 1]; None leaves the image uncoloured.
        crop_box: x0, y0, x1, y1 in pixels, ends out. Outside it, where the network saw
            nothing, the image stays as it is.
        options: how.
        boxes: x0, y0, x1, y1 each, ends out; drawn in white with a dark edge.
        label: lines that are written where the options ask for a label.

    Returns:
        uint8 [H, W, 3] RGB, or for the background "none" [H, W, 4] RGBA, in a new array.

    Example:
        >>> image = np.full((4, 6, 3), 200, np.uint8)
        >>> drawn = draw(image, np.ones((4, 6), np.float32), (0, 0, 3, 4))
        >>> bool((drawn[:, :3] != image[:, :3]).any()), bool((drawn[:, 3:] == image[:, 3:]).all())
        (True, True)
        >>> draw(image, None, (0, 0, 3, 4), OverlayOptions(background="none")).max()
        np.uint8(0)
    """
    x0, y0, x1, y1 = crop_box
    if options.background == "none":
        drawn = np.zeros((*image.shape[:2], 4), np.uint8)
    else:
        drawn = np.array(pixels.shown(image))
    if values is not None:
        inside = np.ascontiguousarray(values[y0:y1, x0:x1])
        _colour(drawn[y0:y1, x0:x1], inside, options)
        _contours(drawn[y0:y1, x0:x1], inside, options, line_width(drawn))
    draw_boxes(drawn, boxes)
    size = text_size(*drawn.shape[:2])
    if options.legend and values is not None:
        _legend(drawn, options, size)
    if options.label:
        write_lines(drawn, label, (0, 0), size, options.font)
    return drawn


def line_width(image: Array) -> int:
    """Returns the width of lines that fits an image, in pixels.

    Example:
        >>> line_width(np.empty((100, 100, 3))), line_width(np.empty((6000, 8000, 3)))
        (1, 24)
    """
    return max(1, round(float(min(image.shape[:2])) / 250))


def _colour(part: Array, values: Array, options: OverlayOptions) -> None:
    """Lays the colours over a part of an image, in place; by tables of 256 values."""
    levels = cv2.convertScaleAbs(values, alpha=255)
    colours, weights = colour_maps.colours_of(options.colour_map), options.weights()
    if part.shape[2] == 4:
        part[:, :, :3] = cv2.applyColorMap(levels, colours[:, None])
        part[:, :, 3] = cv2.LUT(levels, np.rint(255 * weights).astype(np.uint8))
        return
    added = np.rint(colours * weights[:, None]).astype(np.uint8)
    kept = np.rint(255 * (1 - weights)).astype(np.uint8).repeat(3).reshape(256, 1, 3)
    below = cv2.multiply(part, cv2.applyColorMap(levels, kept), scale=1 / 255)
    part[:] = cv2.add(below, cv2.applyColorMap(levels, added[:, None]))


def _contours(part: Array, values: Array, options: OverlayOptions, line: int) -> None:
    """Draws lines at the levels, in their colours with an edge that stands out, in place."""
    # Where a region is cut off by the edge, the line along it falls into this margin.
    margin = 4 * line
    for level in sorted(options.contours):
        mask = (values >= level).astype(np.uint8)
        padded = cv2.copyMakeBorder(
            mask, margin, margin, margin, margin, borderType=cv2.BORDER_REPLICATE
        )
        outlines, _ = cv2.findContours(padded, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        colour = colour_maps.colours_of(options.colour_map)[round(255 * level)].tolist()
        edge = (0, 0, 0) if sum(colour) > 3 * 96 else (255, 255, 255)
        canvas = np.ascontiguousarray(part)
        for shade, width in ((edge, line + 2 * max(1, line // 2)), (colour, line)):
            opaque = (*shade, 255)[: part.shape[2]]
            cv2.drawContours(
                canvas, outlines, -1, opaque, width, cv2.LINE_AA, offset=(-margin, -margin)
            )
        part[:] = canvas


def draw_boxes(drawn: Array, boxes: Iterable[tuple[int, int, int, int]]) -> None:
    """Draws white boxes with a dark edge, in place.

    Args:
        drawn: uint8 [H, W, 3] RGB or [H, W, 4] RGBA.
        boxes: x0, y0, x1, y1 each, ends out.

    Example:
        >>> image = np.zeros((9, 9, 3), np.uint8)
        >>> draw_boxes(image, [(2, 2, 7, 7)])
        >>> image[2, :, 0].tolist()
        [0, 0, 255, 255, 255, 255, 255, 0, 0]
    """
    line = line_width(drawn)
    for x0, y0, x1, y1 in boxes:
        corners = (x0, y0), (x1 - 1, y1 - 1)
        for shade, width in (((0, 0, 0), 3 * line), ((255, 255, 255), line)):
            opaque = (*shade, 255)[: drawn.shape[2]]
            cv2.rectangle(drawn, *corners, color=opaque, thickness=width)


def _legend(drawn: Array, options: OverlayOptions, size: int) -> None:
    """Draws a bar of the colours at the lower right, with the values at its ends, in place."""
    low, high = options.cam_range or ((-1.0, 1.0) if options.is_diverging else (0.0, 1.0))
    texts = [letters(f"{one:.3g}", size, options.font) for one in (high, low)]
    gap = max(2, size // 3)
    height = min(6 * size, drawn.shape[0] // 2)
    width = size + 3 * gap + max(one.shape[1] for one in texts)
    if height < 2 * texts[0].shape[0] or width > drawn.shape[1] // 2:
        return
    plate = drawn[-height - 2 * gap :, -width:]
    blend(plate, (0, 0, 0), 0.65)
    steps = np.linspace(255, 0, height).round().astype(np.uint8)
    colours = colour_maps.colours_of(options.colour_map)[steps]
    plate[gap : gap + height, gap : gap + size, :3] = colours[:, None]
    plate[gap : gap + height, gap : gap + size, 3:] = 255
    for text, top in zip(texts, (gap, gap + height - texts[0].shape[0]), strict=True):
        left = size + 2 * gap
        part = plate[top : top + text.shape[0], left : left + text.shape[1]]
        blend(part, (255, 255, 255), text / 255.0)


def label_of(name: str, probability: float, evidence: float | None) -> list[str]:
    """Returns the lines of a label.

    Example:
        >>> label_of("tabby cat", 0.934, 0.25)
        ['tabby cat', 'probability 0.93, evidence 0.25']
        >>> label_of("tabby cat", 1.0, None)
        ['tabby cat', 'probability 1.00']
    """
    more = "" if evidence is None else f", evidence {evidence:.2f}"
    return [name, f"probability {probability:.2f}{more}"]
