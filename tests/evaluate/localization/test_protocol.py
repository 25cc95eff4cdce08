"""The protocol's square: heatmaps, boxes and masks on it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization import protocol
from sigcam.evaluate.localization.protocol import (
    pixel_labels,
    quantise,
    scale_boxes,
    score_heatmap,
)


def test_thresholds_are_the_thousand_of_the_reference():
    assert len(protocol.THRESHOLDS) == 1000
    assert protocol.THRESHOLDS[0] == 0
    assert protocol.THRESHOLDS[-1] == pytest.approx(0.999)


def test_a_score_heatmap_is_enlarged_first_then_normalised():
    cam = np.array([[0, 0, 1], [0, 4, 0], [2, 0, 0]], np.float32)
    enlarged = cv2.resize(cam.astype(np.float64), (224, 224), interpolation=cv2.INTER_CUBIC)
    assert enlarged.min() < 0
    scores = score_heatmap(cam)
    assert scores.dtype == np.float64
    assert (scores.min(), scores.max()) == (0, 1)
    expected = (enlarged - enlarged.min()) / (enlarged.max() - enlarged.min())
    np.testing.assert_allclose(scores, expected, atol=1e-15)


@pytest.mark.parametrize("scale, shift", [(2.0, 0.0), (0.25, 0.0), (4.0, 16.0)])
def test_a_score_heatmap_does_not_change_with_scale_and_shift(scale, shift):
    cam = np.random.default_rng(0).integers(0, 32, (7, 7)).astype(np.float64)
    np.testing.assert_allclose(score_heatmap(scale * cam + shift), score_heatmap(cam), atol=1e-13)


@pytest.mark.parametrize("value", [0.0, 3.0, np.nan])
def test_constant_and_nan_cams_are_zero(value):
    cam = np.full((7, 7), value, np.float32)
    assert not score_heatmap(cam).any()


def test_cam_is_not_written_to():
    cam = np.arange(4.0).reshape(2, 2)
    score_heatmap(cam, 2)
    assert cam.tolist() == [[0, 1], [2, 3]]


def test_quantise_cuts_off():
    assert quantise(np.array([[0, 0.0039, 0.00393, 0.999, 1]])).tolist() == [[0, 0, 1, 254, 255]]


@pytest.mark.parametrize("bad", [[[1.1]], [[-0.1]], [[np.nan]]])
def test_quantise_refuses(bad):
    with pytest.raises(UsageError, match="heatmap must lie in"):
        quantise(np.array(bad))


def test_boxes_are_truncated():
    # By hand: 1 * 35 / 10 = 3.5, 2 * 35 / 20 = 3.5, 4 * 35 / 10 = 14, 19 * 35 / 20 = 33.25.
    assert scale_boxes([1, 2, 4, 19], (10, 20), 35).tolist() == [[3, 3, 14, 33]]
    assert scale_boxes([[0, 0, 499, 374]], (500, 375)).tolist() == [[0, 0, 223, 223]]


@pytest.mark.parametrize("boxes", [[3, 0, 2, 5], [-1, 0, 2, 5], [0, 6, 2, 5], [], [[1, 2, 3]]])
def test_bad_boxes_are_refused(boxes):
    with pytest.raises(UsageError, match="box"):
        scale_boxes(boxes, (10, 10))


def test_masks_are_joined_and_foreground_wins_over_ignore():
    one = np.array([[1, 0], [0, 0]], np.uint8) * 255
    two = np.array([[0, 0], [0, 1]], bool)
    ignore = np.array([[1, 1], [0, 0]], np.uint8)
    assert pixel_labels([one, two], ignore, 2).tolist() == [[1, 255], [0, 1]]
    assert pixel_labels([one], None, 4)[:2, :2].tolist() == [[1, 1], [1, 1]]


def test_masks_are_resized_like_the_reference():
    mask = (np.random.default_rng(0).random((375, 500)) > 0.5).astype(np.uint8) * 255
    expected = cv2.resize(np.float32(mask), (224, 224), interpolation=cv2.INTER_NEAREST) > 0.5
    np.testing.assert_array_equal(pixel_labels([mask]), expected)


def test_no_mask_is_refused():
    with pytest.raises(UsageError, match="at least one mask"):
        pixel_labels([])
