"""Medians with 95% intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95


class Estimate(NamedTuple):
    """A median, and an interval that holds the true one with a probability of 95%."""

    median: float
    low: float
    high: float


def estimate(values: Sequence[float]) -> Estimate:
    """The median of independent draws, with its interval from order statistics.

    How many of n draws lie below the true median is binomial with p = 1/2, whatever the
    distribution, so the interval reaches from the k-th smallest to the k-th largest value
    for the largest k that keeps the probability. Below 6 values no interval has 95%; it
    is then from the smallest to the largest.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("there must be at least one value")
    ordered = sorted(values)
    k = _rank(len(ordered))
    return Estimate(statistics.median(ordered), ordered[k - 1], ordered[-k])


def _rank(count: int) -> int:
    """The largest k >= 1 with 2 P(Bin(count, 1/2) < k) <= 1 - LEVEL; 1 if there is none."""
    most, below, k = (1 - LEVEL) / 2 * 2**count, 0, 0
    while k < count and below + math.comb(count, k) <= most:
        below += math.comb(count, k)
        k += 1
    return max(k, 1)
