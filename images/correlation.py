"""Compares two maps by their correlation."""

from __future__ import annotations

import numpy as np

from sigcam.core.types import Array


def correlation(one: Array, other: Array) -> float:
    """Computes Pearson's correlation of two arrays' values, -1 to 1; 0 where one is constant.

    Args:
        one: numbers of any shape.
        other: numbers of the same shape.

    Example:
        >>> round(correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])), 6)
        1.0
        >>> correlation(np.array([1.0, 2.0]), np.array([5.0, 5.0]))
        0.0
    """
    a, b = (np.asarray(values, np.float64).ravel() for values in (one, other))
    a, b = a - a.mean(), b - b.mean()
    sizes = np.linalg.norm(a), np.linalg.norm(b)
    largest = np.abs(one).max(), np.abs(other).max()
    # A constant array's deviations are rounding errors, not zeros.
    if any(size <= 1e-7 * top * np.sqrt(a.size) for size, top in zip(sizes, largest, strict=True)):
        return 0.0
    return float(np.clip(np.dot(a / sizes[0], b / sizes[1]), -1.0, 1.0))


def rank_correlation(one: Array, other: Array) -> float:
    """Computes Spearman's correlation: Pearson's of the ranks; 0 where one array is constant.

    Equal values have the mean of their ranks.

    Args:
        one: numbers of any shape.
        other: numbers of the same shape.

    Example:
        >>> round(rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 500.0])), 6)
        1.0
        >>> ties = np.array([4.0, 3.0, 0.0, 0.0])
        >>> round(rank_correlation(np.array([0.0, 0.0, 3.0, 4.0]), ties), 3)
        -0.889
    """
    return correlation(_ranks(one), _ranks(other))


def _ranks(values: Array) -> Array:
    """Returns each value's rank from 0 on, float64 [n]; equal ones have the mean of theirs."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Array = (ends - (counts + 1) / 2)[index.ravel()]
    return ranks
