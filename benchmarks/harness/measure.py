"""Alternating runs of several calls, for about as long as one case may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.stats import Estimate, estimate
from sigcam.demo.timing import Timing, alternate

Figures = dict[str, Any]
Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Effort:
    """How long a case may take.

    Attributes:
        seconds: for all measured rounds of one case together.
        least, most: rounds, whatever the time; fewer than 6 give no 95% interval.
        rounds: this many instead.
    """

    seconds: float = 6.0
    least: int = 7
    most: int = 300
    rounds: int | None = None

    def rounds_for(self, one_round: float) -> int:
        """How many rounds of `one_round` seconds fit."""
        if self.rounds is not None:
            return self.rounds
        return max(self.least, min(self.most, int(self.seconds / max(one_round, 1e-9))))


def measure(
    calls: Calls,
    over: Mapping[str, str],
    effort: Effort,
    pairs: Mapping[str, tuple[str, str]] | None = None,
) -> Figures:
    """Times the calls, alternating, and takes the ratios within each round.

    Args:
        calls: name to function without arguments; each has been called once before.
        over: name of a call to the name of the call that it is compared with.
        effort: how many rounds.
        pairs: further ratios, of the first call to the second, by names of their own.

    Returns:
        {"rounds": n, "ms": {name: [median, low, high]}, "ratios": {name: {"over": base,
        "ratio": [median, low, high]}}, "pairs": {name: [median, low, high]}}; the intervals
        are those of 95%.
    """
    for call in calls.values():
        call()
    start = time.perf_counter()
    for call in calls.values():
        call()
    rounds = effort.rounds_for(time.perf_counter() - start)
    return summary(alternate(calls, rounds, warmup=1), over, pairs)


def summary(
    timing: Timing, over: Mapping[str, str], pairs: Mapping[str, tuple[str, str]] | None = None
) -> Figures:
    """The figures of `measure` from the single durations."""
    seconds = timing.seconds

    def ratio(name: str, base: str) -> list[float]:
        both = zip(seconds[name], seconds[base], strict=True)
        return rounded(estimate([a / b for a, b in both]))

    found: Figures = {
        "rounds": len(next(iter(seconds.values()))),
        "ms": {name: rounded(estimate([1e3 * s for s in v])) for name, v in seconds.items()},
        "ratios": {n: {"over": base, "ratio": ratio(n, base)} for n, base in over.items()},
    }
    return {**found, "pairs": {n: ratio(*pair) for n, pair in pairs.items()}} if pairs else found


def rounded(values: Estimate) -> list[float]:
    """Five significant digits: more is noise, and makes the file unreadable."""
    return [float(f"{value:.5g}") for value in values]
