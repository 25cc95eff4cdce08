"""Linear operators along one axis as small constant matrices.

Pooling by the mean, resampling and padding read every axis by itself, so each is a
matrix A [out, in] per axis, and the gradient of y = A x is A^T g. All are built in
float64 from the operator's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]


def one_hot(index: Indices, length: int) -> Matrix:
    """Output o reads input index[o]: A[o, index[o]] = 1, no row where it is out of range.

    Args:
        index: [out].
        length: `in`.

    Returns:
        [out, length].
    """
    found: Matrix = (index[:, None] == np.arange(length)[None]).astype(np.float64)
    return found


def windows(out: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Indices:
    """What sliding windows read: cell t of window o is at o * stride - padding + t * dilation.

    Returns:
        [out, kernel]; cells in the padding are below 0, or at the length and above.
    """
    starts = np.arange(out, dtype=np.int64) * stride - padding
    return starts[:, None] + np.arange(kernel, dtype=np.int64)[None] * dilation


def inside(index: Indices, length: int, dilation: int = 1) -> Indices:
    """Replaces each window's cells in the padding by the nearest of its own real cells.

    A maximum doesn't change by that. The windows of `windows` with at least one real
    cell each, as PyTorch guarantees.
    """
    low = np.where(index < 0, index % dilation, index)
    over = (length - 1) - (length - 1 - low) % dilation
    found: Indices = np.where(low >= length, over, low)
    return found


def adaptive_windows(length: int, out: int) -> Indices:
    """Adaptive pooling: window o is floor(o in / out) to ceil((o + 1) in / out), exclusive.

    Returns:
        [out, widest]; shorter windows repeat their last cell.
    """
    starts = np.arange(out, dtype=np.int64) * length // out
    ends = -(-(np.arange(1, out + 1, dtype=np.int64) * length) // out)
    widest = int((ends - starts).max())
    cells: Indices = np.minimum(starts[:, None] + np.arange(widest)[None], ends[:, None] - 1)
    return cells


def adaptive_mean(length: int, out: int) -> Matrix:
    """The mean of each adaptive window; [out, length]."""
    held = np.zeros((out, length))
    for row, cells in zip(held, adaptive_windows(length, out), strict=True):
        row[cells] = 1 / len(set(cells.tolist()))
    return held


def mean(
    length: int, out: int, kernel: int, stride: int, padding: int, count_padding: bool
) -> Matrix:
    """The mean of sliding windows; [out, length].

    A window that reaches past the padded input (`ceil_mode`) is cut there before its
    cells are counted; the padding's own zeros count if `count_padding`.
    """
    held = np.zeros((out, length))
    for row, cells in zip(held, windows(out, kernel, stride, padding), strict=True):
        real = cells[(cells >= 0) & (cells < length)]
        counted = cells[cells < length + padding] if count_padding else real
        row[real] = 1 / len(counted)
    return held


def _centres(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Where outputs lie on the input's axis, PyTorch's `area_pixel_compute_source_index`."""
    steps = np.arange(out, dtype=np.float64)
    if align_corners:
        return steps * ((length - 1) / (out - 1) if out > 1 else 0.0)
    return (steps + 0.5) * _ratio(length, out, scale) - 0.5


def _ratio(length: int, out: int, scale: float | None) -> float:
    return 1 / scale if scale else length / out


def linear(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Linear interpolation between the two nearest cells, edges replicated; [out, length]."""
    at = np.maximum(_centres(length, out, align_corners, scale), 0.0)
    low = np.minimum(np.floor(at).astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = np.clip(at - low, 0.0, 1.0)[:, None]
    found: Matrix = (1 - share) * one_hot(low, length) + share * one_hot(high, length)
    return found


def cubic(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Cubic convolution over four cells with a = -0.75 (Keys, 1981), edges replicated."""
    at = _centres(length, out, align_corners, scale)
    first = np.floor(at).astype(np.int64)
    held = np.zeros((out, length))
    for tap in range(-1, 3):
        share = _keys(np.abs(at - (first + tap)))[:, None]
        held += share * one_hot(np.clip(first + tap, 0, length - 1), length)
    return held


def _keys(x: Matrix) -> Matrix:
    a = -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    held: Matrix = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return held


def nearest(length: int, out: int, scale: float | None, half: float = 0.0) -> Matrix:
    """Output o copies input floor((o + half) * in / out); half is 0.5 for `nearest-exact`."""
    # The product in float32, as PyTorch takes it: a rounding moves a cell.
    ratio = np.float32(_ratio(length, out, scale))
    at = (np.arange(out, dtype=np.float32) + np.float32(half)) * ratio
    return one_hot(np.minimum(np.floor(at).astype(np.int64), length - 1), length)


def padded(length: int, before: int, after: int, mode: Callable[[Indices, int], Indices]) -> Matrix:
    """Padding that copies cells: `reflected` or `replicated`; [before + length + after, length]."""
    at = np.arange(-before, length + after, dtype=np.int64)
    return one_hot(mode(at, length), length)


def reflected(at: Indices, length: int) -> Indices:
    """Mirrored at the edge cells, which aren't repeated."""
    found: Indices = (length - 1) - np.abs((length - 1) - np.abs(at))
    return found


def replicated(at: Indices, length: int) -> Indices:
    """The edge cell, repeated."""
    found: Indices = np.clip(at, 0, length - 1)
    return found


def is_whole(index: Sequence[int], length: int) -> bool:
    """Whether the index reads every cell once and in order, so that nothing moves."""
    return list(index) == list(range(length))
