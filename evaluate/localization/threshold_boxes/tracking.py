"""Pieces of a threshold image followed upwards through levels at which none splits."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.evaluate.localization.threshold_boxes.levels import above, histogram

U8 = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def ends(profile: U8, levels: Ints) -> tuple[Ints, Ints]:
    """First place where the profile [n] is above each level, and the one after the last.

    Args:
        profile: uint8 [n], with a value above each level.
        levels: int64 [m].

    Returns:
        int64 [m] and [m].
    """
    upwards = np.maximum.accumulate(profile)
    downwards = np.maximum.accumulate(profile[::-1])
    first = upwards.searchsorted(levels, side="right")
    return np.asarray(first), len(profile) - downwards.searchsorted(levels, side="right")


def rectangles(rows: U8, columns: U8, levels: Ints) -> Ints:
    """Rectangles of what is above each level, from the largest values of rows and columns.

    Args:
        rows: uint8 [H].
        columns: uint8 [W].
        levels: int64 [m], all below the largest value.

    Returns:
        int64 [m, 4], (x0, y0, x1, y1), x1 and y1 excluded.
    """
    boxes = np.empty((len(levels), 4), np.int64)
    boxes[:, 0], boxes[:, 2] = ends(columns, levels)
    boxes[:, 1], boxes[:, 3] = ends(rows, levels)
    return boxes


def cut_out(levels: U8, outline: npt.NDArray[np.int32]) -> tuple[U8, int, int]:
    """The pixels of a piece, zero around it, and where they lie.

    Args:
        levels: uint8 [H, W].
        outline: int32 [p, 1, 2], the contour of a piece without holes.

    Returns:
        uint8 [h, w], and the x and y of its upper left pixel.
    """
    x, y, width, height = cv2.boundingRect(outline)
    mask = np.zeros((height, width), np.uint8)
    cv2.drawContours(mask, [outline], 0, (255,), cv2.FILLED, offset=(-x, -y))
    return levels[y : y + height, x : x + width] & mask, x, y


def piece_areas(piece: U8, wanted: Ints) -> Floats:
    """The area of a piece's contour at each level.

    It is that of the polygon through the centres of the border's pixels, as `contourArea`
    gives it: of the squares between four neighbouring centres, one counts whole where all
    four pixels are above the level and half where three are.

    Args:
        piece: uint8 [h, w], from `cut_out`.
        wanted: int64 [m], levels at which it is one piece without holes.

    Returns:
        float64 [m].
    """
    if min(piece.shape) < 2:
        return np.zeros(len(wanted))
    low, high = np.minimum(piece[1:], piece[:-1]), np.maximum(piece[1:], piece[:-1])
    all_four = np.minimum(low[:, 1:], low[:, :-1])
    # The second smallest of four: the larger of the pairs' smaller, or a pair's larger.
    three = np.minimum(np.maximum(low[:, 1:], low[:, :-1]), np.minimum(high[:, 1:], high[:, :-1]))
    return above(histogram(all_four) + histogram(three))[wanted] / 2


def track_pieces(
    levels: U8, outlines: Sequence[npt.NDArray[np.int32]], wanted: Ints
) -> tuple[Ints, Floats]:
    """Rectangles and areas of pieces at every level wanted.

    Args:
        levels: uint8 [H, W].
        outlines: the contours int32 [p, 1, 2] of all n pieces at the lowest of the levels;
            no piece splits, vanishes or has a hole up to the highest.
        wanted: int64 [m].

    Returns:
        int64 [n, m, 4], (x0, y0, x1, y1), x1 and y1 excluded; float64 [n, m], where a piece
        whose rectangle is too small to be the largest at any level has the area -1.
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
