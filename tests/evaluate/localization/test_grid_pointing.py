"""The grid pointing game on maps whose shares can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.grid_pointing import LEVELS, tile_edges, tile_shares


def test_shares_of_a_map_that_is_constant_inside_tiles():
    cam = np.array([[4.0, 2.0], [1.0, 1.0]])
    for tile, share in enumerate((0.5, 0.25, 0.125, 0.125)):
        assert tile_shares(cam, tile, side=2, size=2)[0] == pytest.approx(share)


def test_thresholds_leave_out_what_is_weak():
    cam = np.array([[4.0, 2.0], [1.0, 1.0]])
    shares = tile_shares(cam, 0, side=2, size=2)
    for level, share in zip(LEVELS, shares, strict=True):
        kept = cam[cam >= level * 4]
        assert share == pytest.approx(4 / kept.sum()), level


def test_negative_parts_count_nowhere():
    assert tile_shares(np.array([[1.0, -9.0], [-9.0, 1.0]]), 0, 2, size=2)[0] == 0.5


@pytest.mark.parametrize("cam", [np.zeros((2, 2)), np.full((3, 3), -1.0)])
def test_a_map_that_is_positive_nowhere_points_nowhere(cam):
    assert not tile_shares(cam, 0, 2).any()


def test_a_constant_map_is_chance():
    for side in (2, 3):
        shares = tile_shares(np.ones((7, 7)), side * side - 1, side, size=6 * side)
        np.testing.assert_allclose(shares, 1 / side**2, rtol=1e-12)


def test_enlarging_is_bilinear_and_may_cross_the_border():
    # Four cells in a row over two tiles: the middle ones lie next to the border.
    cam = np.array([[0.0, 1.0, 0.0, 0.0]] * 4)
    line = np.interp((np.arange(8) + 0.5) / 2 - 0.5, np.arange(4), cam[0])
    shares = tile_shares(cam, 0, 2, size=8)
    assert shares[0] == pytest.approx(line[:4].sum() / line.sum() / 2)


def test_shares_of_all_tiles_add_up_to_one():
    cam = np.random.default_rng(0).normal(size=(5, 5))
    total = sum(tile_shares(cam, tile, 3)[0] for tile in range(9))
    assert total == pytest.approx(1)


def test_edges_cover_the_length():
    assert tile_edges(224, 2) == [0, 112, 224]
    assert tile_edges(10, 3) == [0, 4, 7, 10]


@pytest.mark.parametrize(
    ("cam", "tile", "side"),
    [(np.ones((2, 2)), 4, 2), (np.ones((2, 2)), -1, 2), (np.full((2, 2), np.nan), 0, 2)],
)
def test_what_is_refused(cam, tile, side):
    with pytest.raises(UsageError):
        tile_shares(cam, tile, side)
