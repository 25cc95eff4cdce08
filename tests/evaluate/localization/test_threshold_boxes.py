"""The fast search against contours at every threshold."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.protocol import THRESHOLDS, quantise, score_heatmap
from sigcam.evaluate.localization.threshold_boxes import contours as contour_search
from sigcam.evaluate.localization.threshold_boxes.levels import euler_numbers, level_groups
from sigcam.evaluate.localization.threshold_boxes.search import threshold_boxes
from tests.support import direct_boxes


def smooth(seed: int, cells: int, size: int = 224) -> np.ndarray:
    rng = np.random.default_rng(seed)
    cam = cv2.GaussianBlur(np.maximum(0, rng.normal(size=(cells, cells))), (0, 0), 1.0)
    return quantise(score_heatmap(cam, size))


def rings(size: int = 60) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - size / 2
    return (127.5 + 127 * np.cos(np.hypot(x, y) / 3)).astype(np.uint8)


def steps(size: int = 50) -> np.ndarray:
    levels = np.zeros((size, size), np.uint8)
    levels[5:45, 5:45] = 80
    levels[10:20, 10:20] = 0
    levels[12:16, 12:16] = 200
    levels[25:40, 25:40] = 255
    levels[30, 30:33] = 10
    levels[33, 33] = 10
    return levels


def two_equal(size: int = 40) -> np.ndarray:
    levels = np.zeros((size, size), np.uint8)
    levels[3:9, 20:30] = levels[25:31, 4:14] = levels[15:21, 15:25] = 90
    levels[27, 6] = levels[5, 22] = levels[17, 17] = 255
    return levels


HEATMAPS = {
    "smooth 7": smooth(0, 7),
    "smooth 14": smooth(1, 14),
    "smooth 28": smooth(2, 28, 112),
    "smooth, not square": smooth(3, 7)[20:120],
    "rings": rings(),
    "plateaus and holes": steps(),
    "ties": two_equal(),
    "dark": steps() // 9,
    "full": np.full((9, 7), 200, np.uint8),
    "empty": np.zeros((9, 7), np.uint8),
    "one pixel": np.full((1, 1), 3, np.uint8),
    "one row": np.array([[0, 3, 3, 0, 9, 200, 0, 255]], np.uint8),
}


def check(levels: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> None:
    found = threshold_boxes(levels, thresholds)
    assert len(found.image) == len(thresholds)
    known: dict[int, tuple[list, tuple]] = {}
    for index, threshold in zip(found.image.tolist(), thresholds, strict=True):
        every, largest = direct_boxes.boxes_at(levels, threshold)
        if index not in known:
            boxes = found.boxes[found.box_image == index].tolist()
            known[index] = sorted(map(tuple, boxes)), tuple(found.largest[index].tolist())
        assert known[index] == (sorted(every), largest), threshold


@pytest.mark.parametrize("name", HEATMAPS)
def test_boxes_are_those_of_contours_at_every_threshold(name):
    check(HEATMAPS[name])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("values", [2, 4, 256])
def test_noise(seed, values):
    rng = np.random.default_rng([seed, values])
    shape = rng.integers(2, 40, 2)
    check((rng.integers(0, values, shape) * (255 // (values - 1))).astype(np.uint8))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.sampled_from([0, 1, 60, 61, 200, 255]),
    )
)
def test_any_small_map(levels):
    check(levels, THRESHOLDS[::13])


@pytest.mark.parametrize("name", HEATMAPS)
def test_without_the_link_runs_search(name, monkeypatch):
    monkeypatch.setattr(contour_search, "_link_runs_agrees", lambda: False)
    check(HEATMAPS[name], THRESHOLDS[::9])


def test_this_opencv_has_the_fast_search():
    assert contour_search._link_runs_agrees()


def test_a_changed_link_runs_search_is_noticed(monkeypatch):
    plain = contour_search._plain

    def moved(image):
        contours = plain(image)
        contours.boxes[0] += 1
        return contours

    monkeypatch.setattr(contour_search, "_link_runs", moved)
    assert not contour_search._link_runs_agrees.__wrapped__()


def counted(levels: np.ndarray, level: int) -> tuple[int, int]:
    """Pieces and holes of {levels > level}."""
    image = (levels > level).astype(np.uint8)
    pieces = cv2.connectedComponents(image, connectivity=8)[0] - 1
    outside = np.pad(1 - image, 1, constant_values=1)
    return pieces, cv2.connectedComponents(outside, connectivity=4)[0] - 2


@pytest.mark.parametrize("name", HEATMAPS)
def test_groups_of_levels_have_as_many_pieces_and_holes(name):
    levels = HEATMAPS[name]
    counts = [counted(levels, level) for level in range(256)]
    assert [pieces - holes for pieces, holes in counts] == euler_numbers(levels).tolist()
    groups, euler = level_groups(levels)
    assert euler.tolist() == euler_numbers(levels).tolist()
    for group in np.unique(groups):
        assert len({counts[level] for level in np.flatnonzero(groups == group)}) == 1


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.uint8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
        elements=st.integers(0, 5),
    )
)
def test_groups_of_levels_of_any_small_map(levels):
    groups = level_groups(levels)[0]
    counts = [counted(levels, level) for level in range(7)]
    for level in range(1, 7):
        assert groups[level] > groups[level - 1] or counts[level] == counts[level - 1]


def test_most_levels_of_a_smooth_map_share_a_group():
    assert len(np.unique(level_groups(HEATMAPS["smooth 7"])[0])) < 60


@pytest.mark.parametrize(
    "levels", [np.zeros((3, 3)), np.zeros(3, np.uint8), np.zeros((0, 3), np.uint8)]
)
def test_refuses_what_is_no_map(levels):
    with pytest.raises(UsageError, match="uint8"):
        threshold_boxes(levels)
