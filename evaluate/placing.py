"""Maps where the protocol wants them: on its square, which stands for the whole picture."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sigcam.evaluate.protocol import SIZE, enlarge, normalise, score_map
from sigcam.runtime.geometry import Axis, Placement

Floats = npt.NDArray[np.float64]


def place_scores(
    grid: npt.NDArray[np.floating], placement: Placement, size: int = SIZE
) -> tuple[Floats, bool]:
    """The score map of a grid on the protocol's square.

    The protocol resizes pictures to the network's input whatever their aspect, so that a grid
    covers the whole picture; such a grid is treated exactly as there. With the resize rules "crop"
    and "letterbox" a grid covers a part of the picture or more than it: it is enlarged to the
    rectangle that it covers on the square, in whole pixels, and normalised over what is inside the
    picture; where the network saw nothing, the score is 0.

    Args:
        grid: floating [h, w].
        placement: of the network's input in the picture.
        size: side of the square.

    Returns:
        float64 [size, size] in [0, 1], and whether the map is valid (not constant).
    """
    (y0, y1), (x0, x1) = _span(placement.rows, size), _span(placement.columns, size)
    if (y0, y1, x0, x1) == (0, size, 0, size):
        scores = score_map(grid, size)
        return scores, bool(scores.any())
    part = enlarge(grid, y1 - y0, x1 - x0)
    inside = normalise(part[max(0, -y0) : size - y0, max(0, -x0) : size - x0])
    scores = np.zeros((size, size))
    scores[max(0, y0) : y1, max(0, x0) : x1] = inside
    return scores, bool(inside.any())


def _span(axis: Axis, size: int) -> tuple[int, int]:
    """First and last pixel (the latter just outside) of the square that a grid covers."""
    if axis.low == 0 and axis.high == axis.size and axis.shown == axis.length:
        return 0, size  # less than one input pixel may be cut off for the box average
    scale = axis.used / axis.shown
    edges = (axis.start - axis.first * scale, axis.start + (axis.length - axis.first) * scale)
    low, high = (round(edge * size / axis.size) for edge in edges)
    return low, max(high, low + 1)
