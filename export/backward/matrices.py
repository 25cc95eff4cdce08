"""Builds linear operators along one axis as small constant matrices.

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
    """Returns A with A[o, index[o]] = 1: output o reads input index[o].

    Args:
        index: which input each output reads, [out]; one out of range reads none.
        length: how many inputs there are.

    Returns:
        [out, length].

    Example:
        >>> one_hot(np.array([1, 0]), 3).tolist()
        [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    found: Matrix = (index[:, None] == np.arange(length)[None]).astype(np.float64)
    return found


def windows(out: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> Indices:
    """Returns what sliding windows read: cell t of window o is o * stride - padding + t * dilation.

    Args:
        out: how many windows there are.
        kernel: how many cells a window has.
        stride: cells from one window to the next.
        padding: cells before the first one of the input.
        dilation: cells from one of a window to its next.

    Returns:
        [out, kernel]; cells in the padding are below 0, or at the length and above.

    Example:
        >>> windows(2, kernel=3, stride=2, padding=1).tolist()
        [[-1, 0, 1], [1, 2, 3]]
    """
    starts = np.arange(out, dtype=np.int64) * stride - padding
    return starts[:, None] + np.arange(kernel, dtype=np.int64)[None] * dilation


def inside(index: Indices, length: int, dilation: int = 1) -> Indices:
    """Replaces each window's cells in the padding by the nearest of its own real cells.

    A maximum doesn't change by that.

    Args:
        index: what `windows` gives; each window has at least one real cell, as PyTorch
            guarantees.
        length: how many cells the input has.
        dilation: that of the windows.

    Example:
        >>> inside(windows(2, kernel=3, stride=2, padding=1), length=3).tolist()
        [[0, 0, 1], [1, 2, 2]]
    """
    low = np.where(index < 0, index % dilation, index)
    over = (length - 1) - (length - 1 - low) % dilation
    found: Indices = np.where(low >= length, over, low)
    return found


def adaptive_windows(length: int, out: int) -> Indices:
    """Returns the windows of adaptive pooling: floor(o in / out) to ceil((o + 1) in / out) - 1.

    Args:
        length: `in`, how many cells the input has.
        out: how many windows there are.

    Returns:
        [out, widest]; shorter windows repeat their last cell.

    Example:
        >>> adaptive_windows(5, 2).tolist()
        [[0, 1, 2], [2, 3, 4]]
    """
    starts = np.arange(out, dtype=np.int64) * length // out
    ends = -(-(np.arange(1, out + 1, dtype=np.int64) * length) // out)
    widest = int((ends - starts).max())
    cells: Indices = np.minimum(starts[:, None] + np.arange(widest)[None], ends[:, None] - 1)
    return cells


def adaptive_mean(length: int, out: int) -> Matrix:
    """Returns the matrix that takes the mean of each adaptive window.

    Args:
        length: how many cells the input has.
        out: how many windows there are.

    Returns:
        [out, length].

    Example:
        >>> adaptive_mean(4, 2).tolist()
        [[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    """
    matrix = np.zeros((out, length))
    for row, cells in zip(matrix, adaptive_windows(length, out), strict=True):
        row[cells] = 1 / len(set(cells.tolist()))
    return matrix


def mean(
    length: int, out: int, kernel: int, stride: int, padding: int, count_padding: bool
) -> Matrix:
    """Returns the matrix that takes the mean of sliding windows.

    A window that reaches past the padded input (`ceil_mode`) is cut there before its
    cells are counted.

    Args:
        length: how many cells the input has.
        out: how many windows there are.
        kernel: how many cells a window has.
        stride: cells from one window to the next.
        padding: cells of zeros before the first one of the input, and behind the last.
        count_padding: whether these zeros count.

    Returns:
        [out, length].

    Example:
        >>> mean(2, 2, kernel=2, stride=2, padding=1, count_padding=True).tolist()
        [[0.5, 0.0], [0.0, 0.5]]
    """
    matrix = np.zeros((out, length))
    for row, cells in zip(matrix, windows(out, kernel, stride, padding), strict=True):
        real = cells[(cells >= 0) & (cells < length)]
        counted = cells[cells < length + padding] if count_padding else real
        row[real] = 1 / len(counted)
    return matrix


def _centres(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Returns where outputs lie on the input's axis, by `area_pixel_compute_source_index`."""
    steps = np.arange(out, dtype=np.float64)
    if align_corners:
        return steps * ((length - 1) / (out - 1) if out > 1 else 0.0)
    return (steps + 0.5) * _ratio(length, out, scale) - 0.5


def _ratio(length: int, out: int, scale: float | None) -> float:
    return 1 / scale if scale else length / out


def linear(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Returns the matrix that interpolates between the two nearest cells, edges replicated.

    Args:
        length: how many cells the input has.
        out: how many cells the output has.
        align_corners: whether the centres of the corner cells of both coincide.
        scale: output per input cell, where the operator was given it; else out / length.

    Returns:
        [out, length].

    Example:
        >>> linear(2, 3, True, None).tolist()
        [[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]
    """
    at = np.maximum(_centres(length, out, align_corners, scale), 0.0)
    low = np.minimum(np.floor(at).astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    share = np.clip(at - low, 0.0, 1.0)[:, None]
    found: Matrix = (1 - share) * one_hot(low, length) + share * one_hot(high, length)
    return found


def cubic(length: int, out: int, align_corners: bool, scale: float | None) -> Matrix:
    """Returns the matrix of cubic convolution over four cells with a = -0.75 (Keys, 1981).

    Edges are replicated. The arguments are those of `linear`.

    Example:
        >>> cubic(4, 3, True, None).tolist()
        [[1.0, 0.0, 0.0, 0.0], [-0.09375, 0.59375, 0.59375, -0.09375], [0.0, 0.0, 0.0, 1.0]]
    """
    at = _centres(length, out, align_corners, scale)
    first = np.floor(at).astype(np.int64)
    matrix = np.zeros((out, length))
    for tap in range(-1, 3):
        share = _keys(np.abs(at - (first + tap)))[:, None]
        matrix += share * one_hot(np.clip(first + tap, 0, length - 1), length)
    return matrix


def _keys(x: Matrix) -> Matrix:
    a = -0.75
    near = (a + 2) * x**3 - (a + 3) * x**2 + 1
    far = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    weight: Matrix = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return weight


def nearest(length: int, out: int, scale: float | None, half: float = 0.0) -> Matrix:
    """Returns the matrix by which output o copies input floor((o + half) * in / out).

    Args:
        length: how many cells the input has.
        out: how many cells the output has.
        scale: output per input cell, where the operator was given it; else out / length.
        half: 0, or 0.5 for `nearest-exact`.

    Example:
        >>> nearest(2, 3, None).tolist()
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    """
    # The product in float32, as PyTorch takes it: a rounding moves a cell.
    ratio = np.float32(_ratio(length, out, scale))
    at = (np.arange(out, dtype=np.float32) + np.float32(half)) * ratio
    return one_hot(np.minimum(np.floor(at).astype(np.int64), length - 1), length)


def padded(length: int, before: int, after: int, mode: Callable[[Indices, int], Indices]) -> Matrix:
    """Returns the matrix of a padding that copies cells.

    Args:
        length: how many cells the input has.
        before: cells that are added before them.
        after: cells that are added behind them.
        mode: `reflected` or `replicated`.

    Returns:
        [before + length + after, length].

    Example:
        >>> padded(2, 1, 1, replicated).tolist()
        [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    """
    at = np.arange(-before, length + after, dtype=np.int64)
    return one_hot(mode(at, length), length)


def reflected(at: Indices, length: int) -> Indices:
    """Mirrors indices at the edge cells, which aren't repeated.

    Args:
        at: indices, also below 0 and beyond the end.
        length: how many cells the input has.

    Example:
        >>> reflected(np.array([-1, 0, 2, 3]), 3).tolist()
        [1, 0, 2, 1]
    """
    found: Indices = (length - 1) - np.abs((length - 1) - np.abs(at))
    return found


def replicated(at: Indices, length: int) -> Indices:
    """Replaces indices beyond an edge by that of the edge cell.

    Args:
        at: indices, also below 0 and beyond the end.
        length: how many cells the input has.

    Example:
        >>> replicated(np.array([-1, 0, 2, 3]), 3).tolist()
        [0, 0, 2, 2]
    """
    found: Indices = np.clip(at, 0, length - 1)
    return found


def is_whole(index: Sequence[int], length: int) -> bool:
    """Returns whether an index reads every cell once and in order, so that nothing moves.

    Example:
        >>> is_whole([0, 1, 2], 3), is_whole([0, 2, 1], 3)
        (True, False)
    """
    return list(index) == list(range(length))
