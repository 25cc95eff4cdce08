"""Correlations of values and of ranks."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.images.correlation import correlation, rank_correlation


def test_values_by_hand():
    # Deviations -1, 0, 1 and -2, 1, 1: product 3, sizes sqrt(2) and sqrt(6).
    one, other = np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 3.0])
    assert correlation(one, other) == pytest.approx(3 / 12**0.5)
    assert correlation(one, np.full(3, 0.1)) == 0


def test_ranks_by_hand():
    # Ranks 1, 2, 3, 4 and 2, 1, 4, 3: 1 - 6 (1 + 1 + 1 + 1) / (4 * 15) = 0.6.
    one, other = np.array([10.0, 20.0, 30.0, 99.0]), np.array([2.0, 1.0, 8.0, 5.0])
    assert rank_correlation(one, other) == pytest.approx(0.6)
    # With ties: ranks 1.5, 1.5, 3, 4 and 4, 3, 1.5, 1.5, deviations' product -4 of 4.5.
    tied = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[4.0, 3.0], [0.0, 0.0]])
    assert rank_correlation(*tied) == pytest.approx(-4 / 4.5)
    assert rank_correlation(one, np.ones(4)) == 0
