"""Follows the pieces of a threshold image upwards through levels at which none splits."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from sigcam.core.types import Array
from sigcam.evaluate.localization.threshold_boxes.levels import above, histogram


def ends(profile: Array, levels: Array) -> tuple[Array, Array]:
    """Finds the first place where a profile is above each level, and the one after the last.

    Args:
        profile: uint8 [n], with a value above each level.
        levels: int64 [m].

    Returns:
        int64 [m] and [m].

    Example:
        >>> ends(np.array([0, 5, 9, 5], np.uint8), np.array([0, 5]))
        (array([1, 2]), array([4, 3]))
    """
    upwards = np.maximum.accumulate(profile)
    downwards = np.maximum.accumulate(profile[::-1])
    first = upwards.searchsorted(levels, side="right")
    return np.asarray(first), len(profile) - downwards.searchsorted(levels, side="right")


def rectangles(rows: Array, columns: Array, levels: Array) -> Array:
    """Finds the rectangle around everything above each level.

    Args:
        rows: uint8 [H], the largest value of each row.
        columns: uint8 [W], the largest value of each column.
        levels: int64 [m], all below the largest value.

    Returns:
        int64 [m, 4], (x0, y0, x1, y1), x1 and y1 excluded.

    >>> rows, columns = np.array([0, 9], np.uint8), np.array([5, 9, 0], np.uint8)
    >>> rectangles(rows, columns, np.array([0, 7]))
    array([[0, 1, 2, 2],
           [1, 1, 2, 2]])
    """
    boxes = np.empty((len(levels), 4), np.int64)
    boxes[:, 0], boxes[:, 2] = ends(columns, levels)
    boxes[:, 1], boxes[:, 3] = ends(rows, levels)
    return boxes


def cut_out(levels: Array, outline: Array) -> tuple[Array, int, int]:
    """Cuts a piece out of its surroundings.

    Args:
        levels: uint8 [H, W].
        outline: int32 [p, 1, 2], the contour of a piece without holes.

    Returns:
        The pixels of the piece, zero around it, uint8 [h, w]; x and y of their upper left one.

    Example:
        >>> levels = np.array([[0, 0, 0], [0, 7, 9]], np.uint8)
        >>> outline = np.array([[[1, 1]], [[2, 1]]], np.int32)
        >>> cut_out(levels, outline)
        (array([[7, 9]], dtype=uint8), 1, 1)
    """
    x, y, width, height = cv2.boundingRect(outline)
    mask = np.zeros((height, width), np.uint8)
    cv2.drawContours(mask, [outline], 0, (255,), cv2.FILLED, offset=(-x, -y))
    return levels[y : y + height, x : x + width] & mask, x, y


def piece_areas(piece: Array, wanted: Array) -> Array:
    """Computes the area of a piece's contour at each level.

    It is the area of the polygon through the centres of the border's pixels, as `contourArea`
    gives it: of the squares between four neighbouring centres, one counts whole where all
    four pixels are above the level and half where three are.

    Args:
        piece: uint8 [h, w], from `cut_out`.
        wanted: int64 [m], levels at which it is one piece without holes.

    Returns:
        float64 [m].

    >>> piece_areas(np.full((3, 4), 9, np.uint8), np.array([0]))
    array([6.])
    """
    if min(piece.shape) < 2:
        return np.zeros(len(wanted))
    low, high = np.minimum(piece[1:], piece[:-1]), np.maximum(piece[1:], piece[:-1])
    all_four = np.minimum(low[:, 1:], low[:, :-1])
    # The second smallest of four: the larger of the pairs' smaller, or a pair's larger.
    three = np.minimum(np.maximum(low[:, 1:], low[:, :-1]), np.minimum(high[:, 1:], high[:, :-1]))
    return above(histogram(all_four) + histogram(three))[wanted] / 2


def track_pieces(levels: Array, outlines: Sequence[Array], wanted: Array) -> tuple[Array, Array]:
    """Finds rectangles and areas of pieces at every level wanted.

    Args:
        levels: uint8 [H, W].
        outlines: the contours int32 [p, 1, 2] of all n pieces at the lowest of the levels;
            no piece splits, vanishes or has a hole up to the highest.
        wanted: int64 [m], the levels.

    Returns:
        int64 [n, m, 4], (x0, y0, x1, y1), x1 and y1 excluded; float64 [n, m], where a piece
        whose rectangle is too small to be the largest at any level has the area -1.

    Example:
        >>> levels = np.pad(np.full((3, 4), 9, np.uint8), 1)
        >>> outlines, _ = cv2.findContours(levels, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        >>> track_pieces(levels, outlines, np.array([0]))
        (array([[[1, 1, 5, 4]]]), array([[6.]]))
    """
    pieces = [cut_out(levels, outline) for outline in outlines]
    boxes = np.empty((len(pieces), len(wanted), 4), np.int64)
    for found, (piece, x, y) in zip(boxes, pieces, strict=True):
        found[:] = rectangles(piece.max(axis=1), piece.max(axis=0), wanted)
        found += (x, y, x, y)
    bounds = (boxes[..., 2:] - boxes[..., :2] - 1).prod(axis=2)
    areas = np.full(bounds.shape, -1.0)
    best = np.full(len(wanted), -1.0)
    for index in np.argsort(-bounds[:, 0]).tolist():
        if (bounds[index] >= best).any():
            areas[index] = piece_areas(pieces[index][0], wanted)
            best = np.maximum(best, areas[index])
    return boxes, areas
