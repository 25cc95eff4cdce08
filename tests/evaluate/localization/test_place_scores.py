"""A CAM on the protocol's square, for each resize rule."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.spec import Preprocessing
from sigcam.evaluate.localization.protocol import SIZE, place_scores, score_heatmap
from sigcam.images.preprocess import place
from sigcam.images.upsample import to_heatmap

SIDE = 56
sizes = st.integers(60, 400)


@settings(max_examples=30, deadline=None)
@given(sizes, sizes)
def test_a_stretched_image_is_treated_as_the_protocol_does(height, width):
    cam = np.random.default_rng(height).random((7, 7)).astype(np.float32)
    placement = place(Preprocessing(SIDE, SIDE, rule="stretch"), height, width)
    scores, valid = place_scores(cam, placement)
    assert valid
    np.testing.assert_array_equal(scores, score_heatmap(cam))


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from(["crop", "letterbox"]), st.integers(1, 5), st.integers(1, 5))
def test_a_peak_lies_where_a_users_heatmap_has_it(height, width, rule, row, column):
    """Within what a cell of the CAM is wide; bicubic here, bilinear there."""
    resize = 64 if rule == "crop" else None
    preprocessing = Preprocessing(SIDE, SIDE, rule=rule, resize=resize)
    placement = place(preprocessing, height, width)
    y, x = np.mgrid[:7, :7]
    cam = np.exp(-((y - row) ** 2 + (x - column) ** 2) / 2).astype(np.float32)
    scores, _ = place_scores(cam, placement)
    shown, _ = to_heatmap(cam, placement)
    assert shown.any()
    assert scores.any()
    there = np.unravel_index(shown.argmax(), shown.shape)
    here = np.unravel_index(scores.argmax(), scores.shape)
    for got, want, length in zip(here, there, (height, width), strict=True):
        cell = SIZE * max(height, width) / min(height, width) / 7
        assert abs((got + 0.5) - (want + 0.5) * SIZE / length) <= cell / 2


def test_nothing_is_scored_where_the_network_saw_nothing():
    preprocessing = Preprocessing(SIDE, SIDE, rule="crop", resize=64)
    scores, valid = place_scores(np.arange(49.0).reshape(7, 7), place(preprocessing, 100, 200))
    assert valid
    seen = np.flatnonzero(scores.any(axis=0))
    assert abs(seen[0] - SIZE * (0.5 - 0.21875)) < 3
    assert abs(seen[-1] - SIZE * (0.5 + 0.21875)) < 3


def test_a_constant_cam_has_no_heatmap():
    for rule in ("stretch", "crop", "letterbox"):
        placement = place(Preprocessing(SIDE, SIDE, rule=rule), 90, 70)
        scores, valid = place_scores(np.full((7, 7), 3.0), placement)
        assert not valid
        assert not scores.any()
