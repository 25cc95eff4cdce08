"""Pointing game, and energy inside the object."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.pointing import box_region, energy_inside, pointing_hit


def peak(row: int, column: int) -> np.ndarray:
    scores = np.zeros((40, 50))
    scores[row, column] = 1
    return scores


REGION = box_region(np.array([[10, 5, 19, 14]]), 40, 50)


def test_region():
    assert REGION.sum() == 100
    assert REGION[5, 10]
    assert REGION[14, 19]
    assert not REGION[15, 19]
    assert (
        box_region(np.array([[-3, -3, 1, 0], [48, 39, 60, 60], [-9, 0, -5, 3]]), 40, 50).sum() == 4
    )


def test_pointing():
    assert pointing_hit(peak(5, 10), REGION)
    assert pointing_hit(peak(14, 19), REGION)
    assert not pointing_hit(peak(15, 19), REGION)


def test_tolerance_is_a_circle():
    # (3, 4) away from the corner (row 14, column 19): a distance of 5.
    assert pointing_hit(peak(17, 23), REGION, tolerance=5)
    assert not pointing_hit(peak(17, 23), REGION, tolerance=4.9)
    assert pointing_hit(peak(29, 19), REGION, tolerance=15)
    assert not pointing_hit(peak(30, 19), REGION, tolerance=15)


def test_first_of_several_maxima():
    assert pointing_hit(np.maximum(peak(6, 12), peak(30, 30)), REGION)
    assert not pointing_hit(np.maximum(peak(2, 2), peak(6, 12)), REGION)


def test_energy_by_hand():
    scores = np.array([[1.0, 3.0], [0.0, 4.0]])
    assert energy_inside(scores, np.array([[True, True], [False, False]])) == 0.5
    assert energy_inside(scores * 7, np.array([[False, True], [False, False]])) == 0.375


def test_perfect_and_constant_heatmaps():
    assert energy_inside(REGION.astype(float), REGION) == 1
    assert pointing_hit(REGION.astype(float), REGION)
    assert energy_inside(np.zeros((40, 50)), REGION) == 0
    assert not pointing_hit(np.zeros((40, 50)), REGION, tolerance=15)


def test_refusals():
    with pytest.raises(UsageError, match="one size"):
        pointing_hit(np.zeros((3, 3)), REGION)
    with pytest.raises(UsageError, match="bool"):
        energy_inside(np.zeros((40, 50)), REGION.astype(np.uint8))
    with pytest.raises(UsageError, match=">= 0"):
        energy_inside(peak(0, 0) - 0.5, REGION)
    with pytest.raises(UsageError, match="finite"):
        pointing_hit(peak(0, 0) * np.nan, REGION)
    with pytest.raises(UsageError, match="tolerance"):
        pointing_hit(peak(0, 0), REGION, tolerance=-1)
    assert not pointing_hit(peak(0, 0), REGION & False)
