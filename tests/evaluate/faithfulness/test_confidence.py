"""Average Drop and Increase in Confidence."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.evaluate.faithfulness.confidence import confidence_drop, confidence_rise, masked_image


def test_by_hand():
    before, after = [0.8, 0.5, 0.4, 1.0], [0.4, 0.6, 0.4, 0.0]
    assert confidence_drop(before, after).tolist() == pytest.approx([50, 0, 0, 100])
    assert confidence_drop(before, after).mean() == pytest.approx(37.5)
    assert confidence_rise(before, after).tolist() == [0, 100, 0, 0]


def test_masking():
    image = np.array([[[10, 20, 31], [255, 0, 101]]], np.uint8)
    assert masked_image(image, np.array([[0.5, 1.0]])).tolist() == [[[5, 10, 16], [255, 0, 101]]]
    assert not masked_image(image, np.zeros((1, 2))).any()


@pytest.mark.parametrize("before, after", [([0.5], [0.5, 0.1]), ([], []), ([0.0], [0.1])])
def test_bad_confidences_are_refused(before, after):
    with pytest.raises(UsageError, match="confidences"):
        confidence_drop(before, after)


@pytest.mark.parametrize("scores", [np.ones((2, 2)), np.full((1, 2), 1.5), np.full((1, 2), np.nan)])
def test_bad_heatmaps_are_refused(scores):
    with pytest.raises(UsageError, match="heatmap must"):
        masked_image(np.zeros((1, 2, 3), np.uint8), scores)


def test_bad_images_are_refused():
    with pytest.raises(UsageError, match="image must be uint8"):
        masked_image(np.zeros((1, 2, 3)), np.zeros((1, 2)))
