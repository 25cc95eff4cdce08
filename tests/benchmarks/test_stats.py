"""Medians, intervals and rounds, against a slow bootstrap and against the binomial itself."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

VALUES = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=80)


def bootstrap(values, draws=4000):
    """The 95% percentile interval of the median, by resampling."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (draws, len(values))), axis=1)
    return np.quantile(medians, [0.025, 0.975])


@pytest.mark.parametrize("count", [25, 60, 200])
def test_interval_is_near_a_bootstraps(count):
    from benchmarks.harness.stats import estimate

    values = np.random.default_rng(count).lognormal(0, 0.5, count)
    found = estimate(list(values))
    low, high = bootstrap(values)
    # In places of the sorted values, where both live: theirs differ by a few.
    places = [np.searchsorted(np.sort(values), v) for v in (found.low, low, found.high, high)]
    assert abs(places[0] - places[1]) <= 3
    assert abs(places[2] - places[3]) <= 3


@pytest.mark.parametrize("count", [6, 7, 20, 101])
def test_interval_holds_the_true_median_as_often_as_it_says(count):
    from benchmarks.harness.stats import estimate

    rng = np.random.default_rng(1)
    held = 0
    for _ in range(2000):
        found = estimate(list(rng.exponential(1, count)))
        held += found.low <= math.log(2) <= found.high
    assert held / 2000 >= 0.95 - 0.015
    if count > 50:  # few values allow few probabilities
        assert held / 2000 <= 0.975


@settings(deadline=None)
@given(VALUES)
def test_median_lies_in_the_interval_and_among_the_values(values):
    from benchmarks.harness.stats import estimate

    found = estimate(values)
    assert found.median == statistics.median(values)
    assert found.low <= found.median <= found.high
    assert {found.low, found.high} <= set(values)


def test_no_values_are_refused():
    from benchmarks.harness.stats import estimate

    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_ratios_are_taken_within_the_rounds():
    """A machine that slows down in the middle doesn't move them."""
    from benchmarks.harness.measure import summary
    from sigcam.demo.timing import Timing

    speed = np.where(np.arange(40) < 20, 1.0, 7.0)
    timing = Timing({"a": tuple(1e-3 * speed), "b": tuple(3e-3 * speed)})
    found = summary(timing, {"b": "a"})
    assert found["rounds"] == 40
    assert found["ratios"]["b"] == {"over": "a", "ratio": [3.0, 3.0, 3.0]}
    assert found["ms"]["a"][1] == 1.0
    assert found["ms"]["a"][2] == 7.0
    assert "pairs" not in found


def test_pairs_are_ratios_within_the_rounds_too():
    from benchmarks.harness.measure import summary
    from sigcam.demo.timing import Timing

    timing = Timing({"a": (1.0, 2.0, 9.0), "b": (2.0, 1.0, 3.0)})
    found = summary(timing, {}, {"forth": ("a", "b"), "back": ("b", "a")})
    assert found["pairs"]["forth"] == [2.0, 0.5, 3.0]  # not the ratio of the medians, 1
    assert found["pairs"]["back"] == [0.5, 0.33333, 2.0]


def test_rounds_follow_the_time_of_one():
    from benchmarks.harness.measure import Effort

    effort = Effort(seconds=10, least=7, most=100)
    assert [effort.rounds_for(s) for s in (0.5, 100.0, 1e-6)] == [20, 7, 100]
    assert Effort(rounds=3).rounds_for(100.0) == 3


def test_calls_are_measured_as_often_as_they_are_counted():
    from benchmarks.harness.measure import Effort, measure

    counts = {"a": 0, "b": 0}

    def call(name):
        counts[name] += 1

    found = measure(
        {name: lambda name=name: call(name) for name in counts}, {"b": "a"}, Effort(rounds=9)
    )
    assert found["rounds"] == 9
    assert counts["a"] == counts["b"] == 9 + 3  # two calls before, one round of warming up
