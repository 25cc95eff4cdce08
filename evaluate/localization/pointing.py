"""Pointing game, and the share of the map's energy inside the object."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError


def box_region(boxes: npt.NDArray[np.integer], height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels of boxes (x0, y0, x1, y1) whose corners both belong to them.

    Args:
        boxes: integers [n, 4]; what lies outside the image is cut off.
        height: the image's.
        width: the image's.

    Returns:
        bool [height, width].
    """
    region = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in boxes.tolist():
        region[max(y0, 0) : max(y1 + 1, 0), max(x0, 0) : max(x1 + 1, 0)] = True
    return region


def pointing_hit(
    scores: npt.NDArray[np.floating], region: npt.NDArray[np.bool_], tolerance: float = 0
) -> bool:
    """Whether the map's maximum points at the object.

    Zhang et al. 2016 ("Top-down Neural Attention by Excitation Backprop"): hit if the
    maximum lies in the region, or within `tolerance` pixels of it (15 is usual;
    Euclidean). Of several maxima the first in reading order counts, so that the outcome
    doesn't depend on how many there are. A constant map points nowhere: no hit.

    Args:
        scores: floating [H, W], any range.
        region: bool [H, W], the object: a mask, or `box_region`.
        tolerance: in pixels of the map, >= 0.

    Raises:
        UsageError: sizes that differ, or a negative tolerance.
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


def energy_inside(scores: npt.NDArray[np.floating], region: npt.NDArray[np.bool_]) -> float:
    """Share of the map's sum that lies inside the region, in [0, 1].

    Wang et al. 2020 (Score-CAM): the energy-based pointing game. A map that is zero
    everywhere (so is a constant one) has no energy anywhere: 0.

    Args:
        scores: floating [H, W], >= 0.
        region: bool [H, W], the object: a mask, or `box_region`.

    Raises:
        UsageError: sizes that differ, or negative scores.
    """
    _check(scores, region)
    if scores.min() < 0:
        raise UsageError(f"map must be >= 0, got a minimum of {scores.min()}")
    total = float(scores.sum(dtype=np.float64))
    return float(scores.sum(dtype=np.float64, where=region)) / total if total > 0 else 0.0


def _check(scores: npt.NDArray[np.floating], region: npt.NDArray[np.bool_]) -> None:
    if scores.ndim != 2 or scores.size == 0 or region.shape != scores.shape:
        raise UsageError(
            f"map and region must be [H, W] of one size, got {list(scores.shape)} and "
            f"{list(region.shape)}"
        )
    if region.dtype != np.bool_:
        raise UsageError(f"region must be bool, got {region.dtype}; compare it: mask > 0.5")
    if not np.isfinite(scores).all():
        raise UsageError("map must be finite, got NaN or infinity")
