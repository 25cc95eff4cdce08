"""Reads masks that are drawn in COCO's annotations, polygons and run lengths, and draws them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np

from sigcam.core.types import Array
from sigcam.data.dataset import Drawn, Polygons, RunLengths


class BadSegmentation(ValueError):  # noqa: N818  (becomes a Problem)
    """What is wrong with a segmentation."""


def read_segmentation(value: object, size: tuple[int, int] | None) -> tuple[Drawn, ...]:
    """Reads the masks of an annotation's `segmentation`.

    Args:
        value: a list of polygons, each [x, y, x, y, ...]; or {"size": [height, width],
            "counts": lengths, or the string of the COCO tools}; or nothing.
        size: (width, height) of the image; None if unknown.

    Returns:
        One mask for each object, empty without a segmentation.

    Raises:
        BadSegmentation: none of these, or run lengths of an image of another size.

    Example:
        >>> (mask,) = read_segmentation([[0, 0, 4, 0, 4, 2]], size=(4, 2))
        >>> mask.rings[0].tolist()
        [[0.0, 0.0], [4.0, 0.0], [4.0, 2.0]]
        >>> read_segmentation({"size": [2, 4], "counts": [2, 6]}, size=(4, 2))
        (RunLengths(counts=array([2, 6])),)
    """
    if not value:
        return ()
    if isinstance(value, Mapping):
        return (_run_lengths(value, size),)
    if not isinstance(value, list):
        raise BadSegmentation(f"polygons or run lengths wanted, got {type(value).__name__}")
    rings = []
    for ring in value:
        try:
            corners = np.array(ring, np.float64)
        except (TypeError, ValueError, OverflowError) as exc:
            raise BadSegmentation("a polygon is a list of numbers") from exc
        if corners.ndim != 1 or len(corners) % 2 or len(corners) < 6:
            raise BadSegmentation("a polygon is a list of x, y for at least three corners")
        if not (np.abs(corners) < 1e9).all():
            raise BadSegmentation("a polygon's corners must be finite")
        rings.append(corners.reshape(-1, 2))
    return (Polygons(tuple(rings)),)


def _run_lengths(value: Mapping[str, object], size: tuple[int, int] | None) -> RunLengths:
    counts, stated = value.get("counts"), value.get("size")
    if isinstance(counts, str):
        lengths = _decompress(counts)
    elif isinstance(counts, list) and all(isinstance(n, int) for n in counts):
        lengths = counts
    else:
        raise BadSegmentation("counts must be a list of whole numbers or a string")
    if size is None or stated != [size[1], size[0]]:
        wanted = "unknown" if size is None else f"[{size[1]}, {size[0]}]"
        raise BadSegmentation(f"size must be the image's [height, width], {wanted}, got {stated}")
    if any(not 0 <= n <= size[0] * size[1] for n in lengths) or sum(lengths) != size[0] * size[1]:
        raise BadSegmentation(f"counts must add up to the image's {size[0] * size[1]} pixels")
    return RunLengths(np.array(lengths, np.int64))


def _decompress(text: str) -> list[int]:
    """Reads the run lengths in the COCO tools' string.

    A number is written five bits at a time, the lowest first, as characters from "0" on; 32 is
    added where another follows, and the highest bit of the last is the sign. From the fourth
    number on, it is the difference to the number two before.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise BadSegmentation(f"counts holds {character!r}, which the COCO tools don't write")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise BadSegmentation("counts ends inside a number")
    return lengths


def draw(mask: Drawn, size: tuple[int, int]) -> Array:
    """Draws a mask's pixels.

    The COCO tools draw polygons on a grid five times as fine and round to its corners, which
    differs in pixels on the outline.

    Args:
        mask: polygons, of which any may cover a pixel, or run lengths of as many pixels as `size`.
        size: (width, height) of the image.

    Returns:
        bool [height, width].

    Example:
        >>> draw(RunLengths(np.array([2, 4])), size=(3, 2)).astype(int)
        array([[0, 1, 1],
               [0, 1, 1]])
    """
    if isinstance(mask, RunLengths):
        width, height = size
        ones = np.arange(len(mask.counts)) % 2 == 1
        return cast("Array", np.repeat(ones, mask.counts).reshape(width, height).T)
    inside = np.zeros((size[1], size[0]), bool)
    for ring in mask.rings:
        inside |= _inside(ring, size)
    return inside


def _inside(ring: Array, size: tuple[int, int]) -> Array:
    """Finds the pixels whose centres a polygon encloses an odd number of times, bool [H, W].

    Where an edge crosses a row of centres, everything right of it changes sides.
    """
    width, height = size
    changes = np.zeros((height, width + 1), np.int64)
    for (xa, ya), (xb, yb) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if ya == yb:
            continue
        low, high = sorted((ya, yb))
        first, last = (int(np.clip(np.ceil(y - 0.5), 0, height)) for y in (low, high))
        rows = np.arange(first, last)
        x = xa + (rows + 0.5 - ya) * ((xb - xa) / (yb - ya))
        columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        changes[rows, columns] += 1
    return cast("Array", np.cumsum(changes[:, :width], axis=1) % 2 == 1)
