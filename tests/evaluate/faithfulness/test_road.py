"""ROAD: imputation against the linear system written out, and the curves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.evaluate.faithfulness import imputation
from sigcam.evaluate.faithfulness.imputation import TOLERANCE, impute, remove_pixels
from sigcam.evaluate.faithfulness.road import FRACTIONS, road_curve, road_score


def equations(image: np.ndarray, removed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The linear system of the removed pixels in reading order, written out: matrix and right."""
    height, width = removed.shape
    places = {place: index for index, place in enumerate(zip(*np.nonzero(removed), strict=True))}
    matrix, right = np.zeros((len(places), len(places))), np.zeros((len(places), 3))
    for (y, x), row in places.items():
        for dy, dx in itertools.product((-1, 0, 1), repeat=2):
            there = (y + dy, x + dx)
            if (dy, dx) == (0, 0) or not (0 <= there[0] < height and 0 <= there[1] < width):
                continue
            weight = 1 / 6 if 0 in (dy, dx) else 1 / 12
            matrix[row, row] += weight
            if there in places:
                matrix[row, places[there]] -= weight
            else:
                right[row] += weight * image[there]
    return matrix, right


def noise_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 24), st.integers(1, 24), st.integers(0, 99), st.sampled_from([0.1, 0.6, 0.97])
)
@example(1, 21, 11, 0.97)  # a hole that one pixel holds: small residuals, larger errors
def test_imputation_solves_the_system(height, width, seed, share):
    image = noise_image(height, width, seed)
    removed = np.random.default_rng(seed).random((height, width)) < share
    removed.flat[seed % removed.size] = False
    matrix, right = equations(image, removed)
    values = impute(image, removed)
    # Equations are met to the tolerance; single precision adds a little.
    np.testing.assert_allclose(matrix @ values[removed], right, rtol=0, atol=1.2 * TOLERANCE)
    np.testing.assert_array_equal(values[~removed], image[~removed])


@pytest.mark.parametrize("share", [0.1, 0.6, 0.9])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (23, 37), (5, 40)])
def test_what_is_left_of_the_error(height, width, share):
    image = noise_image(height, width)
    removed = np.random.default_rng(1).random((height, width)) < share
    want = np.linalg.solve(*equations(image, removed))
    np.testing.assert_allclose(impute(image, removed)[removed], want, rtol=0, atol=0.1)


def test_how_an_image_lies_in_memory_does_not_matter():
    image = noise_image(20, 31)
    removed = np.random.default_rng(1).random((20, 31)) < 0.5
    want = impute(image, removed)
    for other in (np.asfortranarray(image), np.ascontiguousarray(image[::-1])[::-1]):
        np.testing.assert_array_equal(impute(other, np.asfortranarray(removed)), want)


def test_one_pixel_by_hand():
    image = np.zeros((3, 3, 3), np.uint8)
    image[0, 1] = 60
    image[0, 0] = 120
    removed = np.zeros((3, 3), bool)
    removed[1, 1] = True
    # 60 / 6 + 120 / 12
    np.testing.assert_allclose(impute(image, removed)[1, 1], 20, atol=0.01)
    assert impute(image, removed)[0, 1].tolist() == [60, 60, 60]


def test_a_large_hole_is_smooth_and_within_the_rim():
    image = np.zeros((100, 130, 3), np.uint8)
    image[:, :, 0] = np.linspace(0, 255, 130).astype(np.uint8)
    image[:, :, 1] = 77
    removed = np.zeros((100, 130), bool)
    removed[1:-1, 1:-1] = True
    values = impute(image, removed)
    np.testing.assert_allclose(values[:, :, 1], 77, atol=0.2)
    assert np.abs(values[:, :, 0] - image[:, :, 0]).max() < 2
    np.testing.assert_allclose(values[~removed], image[~removed])


def test_noise_is_seeded_and_of_the_size_asked_for():
    image = np.full((60, 60, 3), 128, np.uint8)
    removed = np.ones((60, 60), bool)
    removed[0] = False
    first, again, other = (
        remove_pixels(image, removed, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert first[removed].std() == pytest.approx(2.55, rel=0.05)
    np.testing.assert_array_equal(first[0], image[0])
    quiet = remove_pixels(image, removed, np.random.default_rng(0), noise=0)
    np.testing.assert_array_equal(quiet, image)


def bright(batch: np.ndarray) -> np.ndarray:
    return batch.mean(axis=(1, 2, 3)) / 255


def test_curves_of_a_bright_spot():
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:16, 8:16] = 255
    scores = np.zeros((32, 32))
    scores[8:16, 8:16] = 1
    morf = road_curve(image, scores, bright)
    lerf = road_curve(image, scores, bright, most_relevant_first=False)
    assert len(morf) == len(lerf) == len(FRACTIONS)
    assert (morf < 0.01).all()
    assert (lerf > 0.05).all()
    assert road_score(morf, lerf) == pytest.approx(((lerf - morf) / 2).mean())
    assert road_score(morf, lerf) > 0
    np.testing.assert_array_equal(morf, road_curve(image, scores, bright, batch=2))
    np.testing.assert_array_equal(morf, road_curve(image, scores * 3 - 1, bright))


def test_the_fraction_removed():
    image = noise_image(20, 20)
    scores = np.random.default_rng(1).random((20, 20))
    changed = []

    def score(batch):
        changed.extend((batch != image).any(axis=3).sum(axis=(1, 2)).tolist())
        return np.zeros(len(batch))

    road_curve(image, scores, score, fractions=(0.0, 0.25, 0.9), noise=0)
    assert changed[0] == 0
    assert 90 <= changed[1] <= 100
    assert 340 <= changed[2] <= 360


def test_refusals(monkeypatch):
    image = noise_image(8, 8)
    with pytest.raises(UsageError, match="pixel that stays"):
        impute(image, np.ones((8, 8), bool))
    with pytest.raises(UsageError, match="fractions"):
        road_curve(image, np.zeros((8, 8)), bright, fractions=(0.5, 1.0))
    with pytest.raises(UsageError, match="two arrays"):
        road_score(np.zeros(2), np.zeros(3))
    monkeypatch.setattr(imputation, "_STEPS", 1)
    with pytest.raises(UsageError, match="didn't reach"):
        road_curve(image, np.zeros((8, 8)), bright)
