"""Timing that survives a noisy machine: alternating calls, medians and ratios."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """What `alternate` measured.

    Attributes:
        seconds: per name, one duration per round.
    """

    seconds: Mapping[str, tuple[float, ...]]

    def median_ms(self, name: str) -> float:
        """Returns the median duration in milliseconds."""
        return 1e3 * statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """Returns the median over the rounds of duration(name) / duration(over).

        Taken within each round, where the two ran next to each other, so that a machine
        that changes its speed from one second to the next hardly moves it.
        """
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return statistics.median(a / b for a, b in pairs)


def alternate(
    calls: Mapping[str, Callable[[], object]], rounds: int = 200, warmup: int = 20
) -> Timing:
    """Times each call once per round, in an order drawn anew for every round.

    Args:
        calls: name to function without arguments.
        rounds: measured rounds.
        warmup: rounds before those, not measured.

    Example:
        >>> calls = {"few": lambda: sum(range(9)), "many": lambda: sum(range(99_999))}
        >>> timing = alternate(calls, rounds=5, warmup=1)
        >>> len(timing.seconds["few"]), timing.ratio("many", over="few") > 1
        (5, True)
    """
    names = list(calls)
    order = random.Random(0)  # noqa: S311 (an order of calls is no secret)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in range(warmup + rounds):
        order.shuffle(names)
        for name in names:
            start = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - start
            if step >= warmup:
                seconds[name].append(elapsed)
    return Timing({name: tuple(values) for name, values in seconds.items()})
