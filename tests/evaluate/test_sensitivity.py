"""Class sensitivity on CAMs whose correlation is known."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.evaluate.sensitivity import class_sensitivity


def test_by_hand():
    one, other = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 1.0], [4.0, 3.0]])
    # Deviations (-1.5, -0.5, 0.5, 1.5) and (-0.5, -1.5, 1.5, 0.5): 3 of 5.
    assert class_sensitivity(one, other) == pytest.approx(1 - 0.6)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e8, -3.0])
def test_a_constant_map_is_unrelated(constant):
    cam = np.random.default_rng(0).normal(size=(7, 7)).astype(np.float32)
    assert class_sensitivity(cam, np.full((7, 7), constant, np.float32)) == 1
