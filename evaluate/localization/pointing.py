"""Pointing game, and the share of a heatmap's energy inside the object."""

from __future__ import annotations

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array


def box_region(boxes: Array, height: int, width: int) -> Array:
    """Marks the pixels of boxes (x0, y0, x1, y1) whose corners both belong to them.

    Args:
        boxes: integers [n, 4]; what lies outside the image is cut off.
        height: rows of the image.
        width: columns of the image.

    Returns:
        bool [height, width].

    >>> box_region(np.array([[1, 0, 2, 0]]), 2, 4).astype(int)
    array([[0, 1, 1, 0],
           [0, 0, 0, 0]])
    """
    region = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes.tolist():
        region[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    return region


def pointing_hit(scores: Array, region: Array, tolerance: float = 0) -> bool:
    """Tells whether a heatmap's maximum points at the object.

    Zhang et al. 2016 ("Top-down Neural Attention by Excitation Backprop"): it is a hit if the
    maximum lies in the region, or within `tolerance` pixels of it (15 is usual;
    Euclidean). Of several maxima the first in reading order counts, so that the outcome
    doesn't depend on how many there are. A constant heatmap points nowhere: no hit.

    Args:
        scores: floating [H, W], any range.
        region: bool [H, W], the object: a mask, or `box_region`.
        tolerance: in pixels of the heatmap, >= 0.

    Raises:
        UsageError: sizes that differ, or a negative tolerance.

    >>> scores = np.array([[0.0, 1.0, 0.0]])
    >>> right = np.array([[False, False, True]])
    >>> pointing_hit(scores, right), pointing_hit(scores, right, tolerance=1)
    (False, True)
    """
    _check(scores, region)
    if tolerance < 0:
        raise UsageError(f"tolerance must be >= 0 pixels, got {tolerance}")
    if scores.min() == scores.max() or not region.any():
        return False
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    rows, columns = np.nonzero(region)
    squares = (rows - row) ** 2 + (columns - column) ** 2
    return bool(squares.min() <= tolerance**2)


def energy_inside(scores: Array, region: Array) -> float:
    """Computes the share of a heatmap's sum that lies inside the region, in [0, 1].

    Wang et al. 2020 (Score-CAM): the energy-based pointing game. A heatmap that is zero
    everywhere (so is a constant one) has no energy anywhere: 0.

    Args:
        scores: floating [H, W], >= 0.
        region: bool [H, W], the object: a mask, or `box_region`.

    Raises:
        UsageError: sizes that differ, or negative scores.

    >>> energy_inside(np.array([[1.0, 3.0]]), np.array([[False, True]]))
    0.75
    """
    _check(scores, region)
    if scores.min() < 0:
        raise UsageError(f"heatmap must be >= 0, got a minimum of {scores.min()}")
    total = float(scores.sum(dtype=np.float64))
    return float(scores.sum(dtype=np.float64, where=region)) / total if total > 0 else 0.0


def _check(scores: Array, region: Array) -> None:
    if scores.ndim != 2 or scores.size == 0 or region.shape != scores.shape:
        raise UsageError(
            f"heatmap and region must be [H, W] of one size, got {list(scores.shape)} and "
            f"{list(region.shape)}"
        )
    if region.dtype != np.bool_:
        raise UsageError(f"region must be bool, got {region.dtype}; compare it: mask > 0.5")
    if not np.isfinite(scores).all():
        raise UsageError("heatmap must be finite, got NaN or infinity")
