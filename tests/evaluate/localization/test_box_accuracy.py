"""Boxes of a heatmap against true ones, at every threshold."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.box_accuracy import (
    box_iou,
    score_boxes,
    threshold_index,
    unpack_hits,
)
from sigcam.evaluate.localization.protocol import (
    IOU_THRESHOLDS,
    THRESHOLDS,
    quantise,
    score_heatmap,
)
from tests.support import direct_boxes
from tests.support.heatmaps import box_heatmap


def random_heatmap(seed: int, cells: int = 6) -> np.ndarray:
    return score_heatmap(np.maximum(0, np.random.default_rng(seed).normal(size=(cells, cells))))


def truths(seed: int, count: int) -> np.ndarray:
    corners = np.random.default_rng([9, seed]).integers(0, 224, (count, 2, 2))
    return np.concatenate([corners.min(1), corners.max(1)], axis=1)


def test_iou_by_hand():
    # Both corners belong to a box: 5x5 = 25 and 2x5 = 10 pixels, 2x4 = 8 shared.
    a, b = np.array([[1, 2, 5, 6]]), np.array([[3, 1, 4, 5], [6, 7, 9, 9], [1, 2, 5, 6]])
    assert box_iou(a, b).tolist() == [[8 / 27, 0, 1]]
    assert box_iou(a * 0, b * 0).tolist() == [[1, 1, 1]]


@pytest.mark.parametrize("seed, boxes", [(0, 1), (1, 2), (2, 5)])
def test_scores_are_those_of_the_direct_implementation(seed, boxes):
    scores, truth = random_heatmap(seed), truths(seed, boxes)
    every, largest = direct_boxes.best_ious(
        quantise(scores), [tuple(box) for box in truth.tolist()], THRESHOLDS
    )
    found = score_boxes(scores, truth)
    np.testing.assert_array_equal(found.every, every)
    np.testing.assert_array_equal(found.largest, largest)


def test_all_contours_count_for_v2_and_the_largest_for_gt_known():
    scores = np.maximum(box_heatmap(10, 10, 40, 40), box_heatmap(100, 100, 180, 180))
    found = score_boxes(scores, np.array([[10, 10, 40, 40]]))
    assert found.every.max() == 1
    assert found.largest.max() == 0


def test_any_of_several_true_boxes():
    truth = np.array([[0, 0, 5, 5], [20, 30, 119, 129]])
    assert score_boxes(box_heatmap(20, 30, 119, 129), truth).largest.max() == 1


def test_a_constant_heatmap_is_one_pixel_in_the_corner():
    scores = score_heatmap(np.ones((7, 7)))
    far, corner = np.array([[10, 10, 99, 99]]), np.array([[0, 0, 1, 0]])
    assert score_boxes(scores, far).every.max() == 0
    assert set(score_boxes(scores, corner).every) == {0.5}


@pytest.mark.parametrize("power", [0.5, 2.0])
def test_monotone_rescaling_moves_only_the_threshold(power):
    # On the 256 levels themselves, so that rounding can't merge any: a table of new levels.
    rng = np.random.default_rng(0)
    scores, truth = random_heatmap(4), truths(4, 2)
    levels = quantise(scores)
    used = np.unique(levels)[::4]
    coarse = used[np.searchsorted(used, levels, side="right") - 1]
    table = np.zeros(256)
    table[used] = np.round(np.linspace(0, 1, len(used)) ** power * 255)
    if len(np.unique(table[used])) < len(used):
        table[used] = np.sort(rng.choice(np.arange(1, 255), len(used), replace=False))
        table[used[0]], table[used[-1]] = 0, 255
    before = score_boxes(coarse / 255 + 1e-9 * (coarse < 255), truth)
    after = score_boxes(table[coarse] / 255 + 1e-9 * (table[coarse] < 255), truth)
    assert set(before.every) == set(after.every)
    assert set(before.largest) == set(after.largest)


def test_more_thresholds_never_lower_the_best():
    scores = [score_boxes(random_heatmap(seed), truths(seed, 2)) for seed in range(6)]
    hits = np.sum([one.hits_largest() for one in scores], axis=0)
    for every in (2, 5, 10):
        assert (hits.max(axis=1) >= hits[:, ::every].max(axis=1)).all()


def test_packed_hits_come_back():
    one = score_boxes(random_heatmap(0), truths(0, 3))
    assert one.packed().shape == (2, 3, 125)
    np.testing.assert_array_equal(unpack_hits(one.packed()), [one.hits(), one.hits_largest()])
    index = threshold_index(0.2)
    assert one.at(0.2) == (one.every[index], one.largest[index])
    assert one.hits().tolist() == [(one.every >= iou).tolist() for iou in IOU_THRESHOLDS]


def test_refusals():
    for threshold in (0.2005, 1.0, -0.1):
        with pytest.raises(UsageError, match="threshold must be one of"):
            threshold_index(threshold)
        with pytest.raises(UsageError, match="threshold must be one of"):
            score_boxes(random_heatmap(0), truths(0, 1)).at(threshold)
    with pytest.raises(UsageError, match="true boxes"):
        score_boxes(random_heatmap(0), np.zeros((0, 4), int))
    with pytest.raises(UsageError, match="heatmap must lie in"):
        score_boxes(2 * random_heatmap(0), truths(0, 1))
