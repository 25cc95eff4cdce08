"""Pixels against masks: counts, and the precision-recall curve."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.pixel_precision import pixel_counts, pixel_curve
from sigcam.evaluate.localization.protocol import THRESHOLDS, score_heatmap


def direct(heatmaps: list[np.ndarray], labels: list[np.ndarray]) -> float:
    """PxAP from the definition: predict at every threshold, from the highest down."""
    scores = np.concatenate([one.ravel() for one in heatmaps])
    truth = np.concatenate([one.ravel() for one in labels])
    area = recall = 0.0
    for threshold in [1.0, *THRESHOLDS[::-1]]:
        chosen = (scores >= threshold) & (truth != 255)
        hits = (chosen & (truth == 1)).sum()
        if chosen.any():
            now = hits / (truth == 1).sum()
            area += hits / chosen.sum() * (now - recall)
            recall = now
    return 100 * area


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = score_heatmap(rng.random((5, 5)), 40)
    labels = np.where(rng.random((40, 40)) < scores * 0.8, 1, 0).astype(np.uint8)
    labels[:8] = 255
    return scores, labels


def test_by_hand():
    scores = np.array([[1.0, 0.9, 0.5, 0.1]])
    labels = np.array([[1, 0, 1, 0]], np.uint8)
    # Recall 1/2 at precision 1, then 1 at precision 2/3.
    assert pixel_curve(pixel_counts(scores, labels)).pxap == pytest.approx(50 + 100 / 3)
    # Without the wrong pixel everything is right.
    labels[0, 1] = 255
    assert pixel_curve(pixel_counts(scores, labels)).pxap == pytest.approx(100)


def test_counts_are_numpys_histogram_with_the_reference_bins():
    scores, labels = random_case(0)
    scores[10, :5] = [0, 0.001, 0.003, 0.999, 1.0]
    scores[11] = THRESHOLDS[17:57]
    scores[12:37] = THRESHOLDS.reshape(25, 40)
    scores[13:37:2] = np.nextafter(scores[13:37:2], 0)
    scores[14:37:4] = np.nextafter(scores[14:37:4], 1)
    edges = np.append(THRESHOLDS, [1.0, 2.0])
    for kind, counts in enumerate(pixel_counts(scores, labels)):
        expected = np.histogram(scores[labels == kind], bins=edges)[0]
        np.testing.assert_array_equal(counts, expected)


def test_images_together_as_the_definition_says():
    cases = [random_case(seed) for seed in range(3)]
    total = sum(pixel_counts(scores, labels) for scores, labels in cases)
    expected = direct([scores for scores, _ in cases], [labels for _, labels in cases])
    assert pixel_curve(total).pxap == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]))
def test_a_perfect_heatmap_scores_100_whatever_is_ignored(seed, ignored_score):
    labels = np.random.default_rng(seed).choice([0, 1, 255], (9, 9)).astype(np.uint8)
    labels[0, 0] = 1
    scores = np.where(labels == 255, ignored_score, labels).astype(np.float64)
    assert pixel_curve(pixel_counts(scores, labels)).pxap == pytest.approx(100)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_constant_heatmap_scores_the_share_of_foreground(value):
    labels = random_case(1)[1]
    scores = np.full(labels.shape, value)
    share = (labels == 1).sum() / (labels != 255).sum()
    assert pixel_curve(pixel_counts(scores, labels)).pxap == pytest.approx(100 * share)


def test_monotone_rescaling_changes_nothing_while_bins_stay_apart():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 11, (30, 30)) / 10
    labels = rng.integers(0, 2, (30, 30)).astype(np.uint8)
    before = pixel_curve(pixel_counts(scores, labels)).pxap
    assert pixel_curve(pixel_counts(scores**2, labels)).pxap == pytest.approx(before)


def test_the_curve():
    scores, labels = random_case(2)
    curve = pixel_curve(pixel_counts(scores, labels))
    assert len(curve.thresholds) == len(curve.precision) == len(curve.recall) == 1001
    assert (np.diff(curve.thresholds) < 0).all()
    assert (np.diff(curve.recall) >= 0).all()
    assert curve.recall[-1] == 1
    chosen = (scores >= curve.thresholds[500]) & (labels != 255)
    assert curve.precision[500] == (labels == 1)[chosen].mean()


def test_refusals():
    scores, labels = random_case(0)
    with pytest.raises(UsageError, match="foreground"):
        pixel_curve(pixel_counts(scores, labels * 0))
    with pytest.raises(UsageError, match="heatmap's size"):
        pixel_counts(scores, labels[1:])
    with pytest.raises(UsageError, match="heatmap must lie in"):
        pixel_counts(scores + 1, labels)
