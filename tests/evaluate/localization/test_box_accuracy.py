from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.box_accuracy import (
    BoxAccuracy,
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


def box_heatmap(x0: int, y0: int, x1: int, y1: int, size: int = 224) -> np.ndarray:
    """A map that is 1 where the box of its contour is (x0, y0, x1, y1)."""
    scores = np.zeros((size, size))
    scores[y0:y1, x0:x1] = 1
    return scores


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


def test_accuracy_by_hand():
    # Three images. The map's box is exact, half as wide, and elsewhere.
    truth = np.array([[20, 30, 119, 129]])
    accuracy = BoxAccuracy()
    accuracy.add(score_boxes(box_heatmap(20, 30, 119, 129), truth), True)
    # 20 to 69 of 20 to 119: IoU 0.5, all 100 rows.
    accuracy.add(score_boxes(box_heatmap(20, 30, 69, 129), truth), False)
    accuracy.add(score_boxes(box_heatmap(150, 150, 200, 200), truth), True)
    result = accuracy.result()
    assert result.images == 3
    assert result.at_iou == pytest.approx((200 / 3, 200 / 3, 100 / 3))
    assert result.max_box_acc_v2 == pytest.approx(500 / 9)
    assert result.gt_known == pytest.approx(200 / 3)
    assert result.gt_known_best == (pytest.approx(200 / 3), 0.0)
    assert result.top1_cls == pytest.approx(200 / 3)
    assert result.top1_loc == pytest.approx(100 / 3)
    assert result.top1_loc_best == (pytest.approx(100 / 3), 0.0)


def test_all_contours_count_for_v2_and_the_largest_for_gt_known():
    scores = np.maximum(box_heatmap(10, 10, 40, 40), box_heatmap(100, 100, 180, 180))
    found = score_boxes(scores, np.array([[10, 10, 40, 40]]))
    assert found.every.max() == 1
    assert found.largest.max() == 0


def test_best_and_fixed_threshold():
    # Below 0.5 the box is too large, from there on it is right.
    scores = np.maximum(0.5 * box_heatmap(0, 0, 200, 200), box_heatmap(20, 30, 69, 79))
    accuracy = BoxAccuracy()
    accuracy.add(score_boxes(scores, np.array([[20, 30, 69, 79]])))
    result = accuracy.result()
    assert result.gt_known == 0
    # floor(127.5) = 127 is no longer above int(t * 255) from t = 0.499 on.
    assert result.gt_known_best == (100, 0.499)
    assert accuracy.result(fixed_threshold=0.6).gt_known == 100
    assert result.top1_cls is None
    assert result.top1_loc is None
    assert result.top1_loc_best is None


def test_any_of_several_true_boxes():
    truth = np.array([[0, 0, 5, 5], [20, 30, 119, 129]])
    assert score_boxes(box_heatmap(20, 30, 119, 129), truth).largest.max() == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 222), min_size=4, max_size=4))
def test_a_perfect_map_scores_100(corners):
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    truth = np.array([[xs[0], ys[0], xs[1] + 1, ys[1] + 1]])
    accuracy = BoxAccuracy()
    accuracy.add(score_boxes(box_heatmap(*truth[0]), truth), True)
    result = accuracy.result()
    assert result.max_box_acc_v2 == result.gt_known == result.top1_loc == 100
    assert result.at_iou == (100, 100, 100)


def test_a_constant_map_is_one_pixel_in_the_corner():
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


def test_merged_and_stored_counts_are_those_of_one_run():
    scores = [score_boxes(random_heatmap(seed), truths(seed, 2)) for seed in range(4)]
    whole, first, second = BoxAccuracy(), BoxAccuracy(), BoxAccuracy()
    for place, one in enumerate(scores):
        whole.add(one, place % 2 == 0)
        (first if place < 1 else second).add(one, place % 2 == 0)
    second = BoxAccuracy.from_arrays(second.arrays())
    second.merge(first)
    assert second.result() == whole.result()
    for name, value in whole.arrays().items():
        np.testing.assert_array_equal(second.arrays()[name], value)


def test_refusals():
    accuracy = BoxAccuracy()
    with pytest.raises(UsageError, match="at least one image"):
        accuracy.result()
    accuracy.add(score_boxes(random_heatmap(0), truths(0, 1)), True)
    with pytest.raises(UsageError, match="threshold must be one of"):
        accuracy.result(fixed_threshold=0.2005)
    with pytest.raises(UsageError, match="threshold must be one of"):
        accuracy.result(fixed_threshold=1.0)
    accuracy.add(score_boxes(random_heatmap(0), truths(0, 1)))
    with pytest.raises(UsageError, match="for all or for none"):
        accuracy.result()
    with pytest.raises(UsageError, match="true boxes"):
        score_boxes(random_heatmap(0), np.zeros((0, 4), int))
    with pytest.raises(UsageError, match="'top1'"):
        BoxAccuracy.from_arrays({k: v for k, v in accuracy.arrays().items() if k != "top1"})
