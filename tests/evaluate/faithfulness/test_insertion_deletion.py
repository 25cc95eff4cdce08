"""Insertion and deletion curves."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.faithfulness.insertion_deletion import (
    curve_area,
    deletion_curve,
    insertion_curve,
)

IMAGE = np.full((4, 4, 3), 200, np.uint8)
SCORES = np.arange(16.0).reshape(4, 4) / 15


def share_of(value: int):
    """The 'class probability' is the share of pixels with this value."""
    return lambda batch: (batch == value).all(axis=3).mean(axis=(1, 2))


def test_deletion_by_hand():
    curve = deletion_curve(IMAGE, SCORES, share_of(200), steps=4, fill=(0, 0, 0), batch=2)
    assert curve.tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert curve_area(curve) == 0.5


def test_the_highest_values_go_first():
    def top_corner(batch):
        return batch[:, 3, 3, 0] == 200

    assert deletion_curve(IMAGE, SCORES, top_corner, steps=16).tolist() == [1] + [0] * 16
    assert deletion_curve(IMAGE, -SCORES, top_corner, steps=16).tolist() == [1] * 16 + [0]


def test_insertion_starts_blurred_and_ends_with_the_image():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    seen = []

    def score(batch):
        seen.extend(batch)
        return np.zeros(len(batch))

    scores = np.random.default_rng(1).random((20, 30))
    assert len(insertion_curve(image, scores, score, steps=7, batch=3)) == 8
    blurred = cv2.GaussianBlur(image, (11, 11), 5)
    np.testing.assert_array_equal(seen[0], blurred)
    np.testing.assert_array_equal(seen[-1], image)
    first = scores >= np.sort(scores.ravel())[-(600 // 7)]
    np.testing.assert_array_equal(seen[1], np.where(first[..., None], image, blurred))


def test_batches_have_at_most_the_size_asked_for():
    sizes = []

    def score(batch):
        sizes.append(len(batch))
        return np.zeros(len(batch))

    deletion_curve(IMAGE, SCORES, score, steps=6, batch=3)
    assert sizes == [3, 3, 1]


def test_a_constant_heatmap_goes_in_reading_order():
    rows = []

    def score(batch):
        rows.extend((batch[..., 0] == 200).sum(axis=2).tolist())
        return np.zeros(len(batch))

    deletion_curve(IMAGE, np.zeros((4, 4)), score, steps=4, fill=(0, 0, 0))
    assert rows[1] == [0, 4, 4, 4]


def test_only_the_order_matters():
    score = share_of(200)
    image = np.random.default_rng(0).choice([200, 100], (4, 4, 1)).repeat(3, 2).astype(np.uint8)
    curves = [deletion_curve(image, s, score, steps=8) for s in (SCORES, SCORES**3 * 7 - 2)]
    np.testing.assert_array_equal(*curves)


def test_area_by_hand():
    assert curve_area(np.array([1.0, 0.5, 0.0])) == 0.5
    assert curve_area(np.array([1.0, 1.0])) == 1
    assert curve_area(np.array([0.0, 1.0, 1.0])) == 0.75


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": 0}, "steps"),
        ({"steps": 17}, "steps"),
        ({"batch": 0}, "batch"),
        ({"fill": (0, 0, 256)}, "fill"),
    ],
)
def test_bad_numbers_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        deletion_curve(IMAGE, SCORES, share_of(200), **{"steps": 4, **change})


def test_bad_inputs_are_refused():
    with pytest.raises(UsageError, match="finite numbers"):
        deletion_curve(IMAGE, SCORES, lambda batch: np.zeros((len(batch), 2)), steps=4)
    with pytest.raises(UsageError, match="finite"):
        deletion_curve(IMAGE, SCORES * np.nan, share_of(200), steps=4)
    with pytest.raises(UsageError, match="image's size"):
        insertion_curve(IMAGE, SCORES[1:], share_of(200), steps=4)
    with pytest.raises(UsageError, match="n >= 2"):
        curve_area(np.array([1.0]))
