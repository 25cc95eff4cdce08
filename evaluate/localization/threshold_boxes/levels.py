"""Finds the levels at which a threshold image has as many pieces and holes as at the one before.

The threshold image of level L is {pixel > L}; pieces are 8-connected, holes 4-connected parts
of the rest that don't touch the image's edge. Going from L - 1 to L,
- a piece can only vanish where a regional maximum has the value L,
- a hole can only appear where a regional minimum inside the image has the value L,
- otherwise pieces split and holes merge or open, and each of these raises the Euler number
  (pieces minus holes).
So where no extremum has the value L and the Euler number is unchanged, pieces and holes are
the same in number. Both conditions cost a few passes over the heatmap for all levels together.
"""

from __future__ import annotations

import cv2
import numpy as np

from sigcam.core.types import Array

LEVELS = 256
"""How many values a pixel may have."""

_CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.uint8)
_SQUARE = np.ones((3, 3), np.uint8)
# How far, in pixels, a plateau is looked at from its rim.
_PLATEAU = 4


def histogram(values: Array) -> Array:
    """Counts the pixels of each value.

    Args:
        values: uint8 [H, W], fewer than 2**24 pixels.

    Returns:
        int64 [256].

    Example:
        >>> histogram(np.array([[0, 7], [7, 255]], np.uint8))[[0, 7, 255]]
        array([1, 2, 1])
    """
    # Exact: OpenCV counts in integers and gives float32, which holds counts up to 2**24.
    counts = cv2.calcHist([values], [0], None, [LEVELS], [0, LEVELS])
    return np.asarray(counts).ravel().astype(np.int64)


def above(counts: Array) -> Array:
    """Counts what lies above each level.

    Args:
        counts: int64 [256], the counts of each value.

    Returns:
        int64 [256], the counts of all larger values.

    Example:
        >>> above(histogram(np.array([[0, 7], [7, 255]], np.uint8)))[[0, 7, 255]]
        array([3, 1, 0])
    """
    return np.asarray(counts.sum() - counts.cumsum())


def euler_numbers(levels: Array) -> Array:
    """Counts pieces (8-connected) minus holes (4-connected) of {levels > L}, for L = 0 to 255.

    Corners minus edges plus pixels of the closed pixels: a corner or an edge belongs to the
    threshold image where the largest pixel that touches it does.

    Args:
        levels: uint8 [H, W], fewer than 2**24 pixels.

    Returns:
        int64 [256].

    >>> ring = np.array([[9, 9, 9], [9, 5, 9], [9, 9, 9]], np.uint8)
    >>> euler_numbers(ring)[[4, 5, 9]]  # a square, a square with a hole, nothing
    array([1, 0, 0])
    """
    padded = np.pad(levels, 1)
    across = np.maximum(padded[:, 1:], padded[:, :-1])
    down = np.maximum(padded[1:], padded[:-1])
    corners = np.maximum(across[1:], across[:-1])
    # The padding's own edges and corners have the value 0, which lies above no level.
    edges = histogram(across) + histogram(down)
    return above(histogram(corners) - edges + histogram(levels))


def extremum_values(levels: Array) -> Array:
    """Marks values at which there may be a regional maximum, or a minimum inside the image.

    It marks a superset: a plateau that is neither may count if it is wide. Each value too many
    costs one contour search; following every plateau to its rim would cost more.

    Args:
        levels: uint8 [H, W].

    Returns:
        bool [256].

    Example:
        >>> peaks = np.array([[5, 1, 9]], np.uint8)  # the 1 in between touches the edge
        >>> np.flatnonzero(extremum_values(peaks))
        array([5, 9])
    """
    found = np.zeros(LEVELS, bool)
    found[levels[_maxima(levels, _SQUARE)]] = True
    # The outside is lower than everything, so that what touches the edge is no minimum.
    turned = np.pad(255 - levels, 1, constant_values=255)
    found[levels[_maxima(turned, _CROSS)[1:-1, 1:-1]]] = True
    return found


def _maxima(levels: Array, neighbours: Array) -> Array:
    """Marks pixels of regional maxima, and inner pixels of wide plateaus that aren't."""
    top = (levels == cv2.dilate(levels, neighbours)).view(np.uint8)
    # A neighbour of the same value that isn't at the top has a higher neighbour itself.
    slope = np.where(top, np.uint8(0), levels)
    beside = (cv2.dilate(slope, neighbours) == levels) & (levels > 0)
    sloping = beside.view(np.uint8) & top
    # Neighbouring tops are of one plateau.
    for _ in range(_PLATEAU):
        sloping = cv2.bitwise_and(top, cv2.dilate(sloping, neighbours))
    return np.asarray(top > sloping)


def level_groups(levels: Array) -> tuple[Array, Array]:
    """Groups neighbouring levels whose threshold images have as many pieces and holes.

    Args:
        levels: uint8 [H, W].

    Returns:
        group: int64 [256], rising by 1 where a group begins.
        euler: int64 [256], pieces minus holes.

    Example:
        >>> group, euler = level_groups(np.array([[5, 1, 9]], np.uint8))
        >>> euler[[0, 1, 5, 9]]  # one piece, two, one, none
        array([1, 2, 1, 0])
        >>> group[[0, 1, 5, 9]]
        array([0, 1, 2, 3])
    """
    euler = euler_numbers(levels)
    begins = extremum_values(levels)
    begins[1:] |= euler[1:] != euler[:-1]
    return np.cumsum(begins), euler
