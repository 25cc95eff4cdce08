"""Bootstrap intervals against drawing the images one by one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.evaluate.results import bootstrap
from sigcam.evaluate.results.bootstrap import (
    compare,
    drawn_counts,
    mean,
)


def best_mean(sums, count):
    """MaxBoxAccV2's form: the best threshold of each IoU, and the mean of these."""
    return (sums / count).max(axis=-1).mean(axis=-1)


def area(sums, _):
    """PxAP's form: the area under precision and recall, from histograms [R, 2, bins]."""
    true, false = sums[:, 0, ::-1].cumsum(axis=-1), sums[:, 1, ::-1].cumsum(axis=-1)
    precision, recall = true / (true + false), true / true[:, -1:]
    return (precision[:, 1:] * np.diff(recall, axis=-1)).sum(axis=-1)


def contributions(form, random, images):
    if form is mean:
        return random.normal(size=images)
    if form is best_mean:
        return random.random((images, 3, 11)) < 0.6
    return random.integers(1, 50, (images, 2, 7))


def indices_of(images, resamples, seed):
    """The images of each drawing, [R, P], one number after the other."""
    drawings = []
    for first in range(0, resamples, bootstrap._RESAMPLES_AT_ONCE):
        count = min(bootstrap._RESAMPLES_AT_ONCE, resamples - first)
        slices = list(drawn_counts(images, count, first, seed))
        counts = np.concatenate([part for _, part in slices], axis=1)
        drawings += [np.repeat(np.arange(images), row) for row in counts]
    return np.array(drawings)


@pytest.mark.parametrize("form", [mean, best_mean, area])
@pytest.mark.parametrize("images", [1, 23, 700])
def test_like_drawing_images_one_by_one(form, images):
    random = np.random.default_rng(images)
    artifacts = [contributions(form, random, images) for _ in range(3)]
    resamples = 300
    found = compare(artifacts, form, resamples=resamples, seed=5)
    drawings = indices_of(images, resamples, seed=5)
    values = np.array(
        [
            [float(form(one[drawing].sum(axis=0)[None], images)[0]) for drawing in drawings]
            for one in artifacts
        ]
    )
    for comparison, one, drawn in zip(found, artifacts, values, strict=True):
        value = float(form(one.sum(axis=0)[None], images)[0])
        assert comparison.metric.value == pytest.approx(value)
        tails = np.quantile(drawn, [0.025, 0.975])
        assert [comparison.metric.low, comparison.metric.high] == pytest.approx(tails)
        tails = np.quantile(drawn - values[0], [0.025, 0.975])
        assert [comparison.difference.low, comparison.difference.high] == pytest.approx(
            tails, abs=1e-12
        )
    first = found[0].difference
    assert (first.value, first.low, first.high) == (0, 0, 0)


@given(st.integers(1, 1300), st.integers(1, 20), st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_as_many_images_are_drawn_as_there_are(images, resamples, seed):
    slices = list(drawn_counts(images, resamples, seed=seed))
    assert [part.start for part, _ in slices] == list(range(0, images, 512))
    counts = np.concatenate([part for _, part in slices], axis=1)
    assert counts.shape == (resamples, images)
    assert (counts >= 0).all()
    assert (counts.sum(axis=1) == images).all()


def test_every_image_is_drawn_alike():
    """Across the slices too: counts have the means, variances and covariances of a multinomial."""
    images, resamples = 520, 20_000
    counts = np.concatenate([c for _, c in drawn_counts(images, resamples)], axis=1)
    assert abs(counts.mean(axis=0) - 1).max() < 5 / math.sqrt(resamples)
    assert counts.var() == pytest.approx(1 - 1 / images, rel=0.01)
    # The last 8 are a slice of their own; its sum is binomial.
    assert counts[:, 512:].sum(axis=1).var() == pytest.approx(8 * (1 - 8 / images), rel=0.05)


@pytest.mark.parametrize("form", [mean, best_mean, area])
def test_identical_artifacts_do_not_differ(form):
    one = contributions(form, np.random.default_rng(0), 40)
    [_, other] = compare([one, one.copy()], form, resamples=100)
    difference = other.difference
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_pairs_are_kept():
    """An artifact that is better by the same on each image is better by that, without doubt."""
    one = np.random.default_rng(0).normal(size=50)
    [first, second] = compare([one, one + 0.25], resamples=200)
    assert first.metric.high - first.metric.low > 0.3
    assert (second.difference.low, second.difference.high) == pytest.approx((0.25, 0.25))


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    random = np.random.default_rng(1)
    trials, held = 300, {"normal": 0, "hits": 0}
    for trial in range(trials):
        hard = random.normal(size=80)
        pair = [hard, hard + 0.3 + 0.5 * random.normal(size=80)]
        difference = compare(pair, resamples=200, seed=trial)[1].difference
        held["normal"] += difference.low <= 0.3 <= difference.high
        hits = [random.random(80) < p for p in (0.5, 0.7)]
        difference = compare(hits, resamples=200, seed=trial)[1].difference
        held["hits"] += difference.low <= 0.2 <= difference.high
    # 95% of 300 is 285, with a standard deviation of 3.8; the percentile bootstrap of 80
    # images holds a little less than it says.
    assert all(268 <= count <= 298 for count in held.values()), held


def test_the_seed_decides():
    pair = list(np.random.default_rng(0).normal(size=(2, 30)))
    assert compare(pair, resamples=100) == compare(pair, resamples=100)
    assert compare(pair, resamples=100) != compare(pair, resamples=100, seed=1)


class PackedHits:
    """Contributions kept as bits, and unpacked where they are asked for."""

    def __init__(self, hits):
        self._shape = hits.shape[1:]
        self._bits = np.packbits(hits.reshape(len(hits), -1), axis=1)
        self.asked = []

    def __len__(self):
        return len(self._bits)

    def __getitem__(self, images):
        self.asked.append(images)
        bits = np.unpackbits(self._bits[images], axis=1, count=math.prod(self._shape))
        return bits.reshape(-1, *self._shape)


def test_contributions_may_be_made_where_they_are_asked_for():
    hits = np.random.default_rng(0).random((600, 3, 13)) < 0.5
    packed = PackedHits(hits)
    assert (packed[500:600] == hits[500:]).all()
    packed.asked.clear()
    assert compare([packed], best_mean, resamples=20) == compare([hits], best_mean, resamples=20)
    # Slices in order, so that never more than one of them is unpacked.
    assert packed.asked == 2 * [slice(0, 512), slice(512, 600)]


def test_a_wider_level_has_a_wider_interval():
    one = [np.random.default_rng(0).normal(size=30)]
    [narrow], [wide] = compare(one, level=0.5), compare(one, level=0.99)
    assert wide.metric.low < narrow.metric.low < narrow.metric.high < wide.metric.high


def test_no_interval_where_a_drawing_has_no_value():
    """A ratio over the few images that have a value: some drawings have none of them."""
    rows = np.zeros((8, 2))
    rows[0] = (3, 1)
    [found] = compare([rows], lambda sums, _: sums[:, 0] / sums[:, 1])
    assert found.metric.value == 3
    assert math.isnan(found.metric.low)
    assert math.isnan(found.metric.high)
    rows[0] = (-1, 0)
    [_, found] = compare([rows, rows], lambda sums, _: np.log(sums[:, 0]))
    assert math.isnan(found.difference.value)
    assert math.isnan(found.difference.low)


def test_bad_input():
    rows = np.zeros((4, 2))
    with pytest.raises(UsageError, match="at least one artifact and one image"):
        compare([])
    with pytest.raises(UsageError, match="at least one artifact and one image"):
        compare([rows[:0]])
    with pytest.raises(UsageError, match=r"the same images, got \[4, 3\] images"):
        compare([rows, rows[:3]])
    with pytest.raises(UsageError, match=r"resamples must be .* got 100 and 1\.5"):
        compare([rows], resamples=100, level=1.5)
    with pytest.raises(UsageError, match="seed must be at least 0, got -1"):
        compare([rows], seed=-1)
    with pytest.raises(UsageError, match="finite, got others in images 0 to 3"):
        compare([np.array([0, 1, np.nan, 2])])
    with pytest.raises(UsageError, match=r"one value for each of 1 sums, got shape \(1, 2\)"):
        compare([rows], lambda sums, count: sums / count)
