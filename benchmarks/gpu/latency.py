"""Times of calls that alternate: by the wall's clock, and between CUDA events around them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sigcam.demo.timing import Timing


def percentiles(milliseconds: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    values = np.percentile(milliseconds, [50, 95, 99])
    return {name: float(v) for name, v in zip(("p50", "p95", "p99"), values, strict=True)}


class Clock:
    """Time between two points of a stream, by CUDA events.

    Around a call that waits for its result, the stream is idle while the host prepares and
    copies: that is in the time too.
    """

    def __init__(self, handle: int) -> None:
        from sigcam.kernels import driver

        self._handle = handle
        self._events = [driver.Event(timing=True) for _ in range(2)]

    def start(self) -> None:
        """The first point."""
        self._events[0].record(self._handle)

    def stop(self) -> float:
        """The second point; waits for it. Milliseconds."""
        self._events[1].record(self._handle)
        self._events[1].synchronize()
        return self._events[1].milliseconds_since(self._events[0])


def measure(
    calls: Mapping[str, Callable[[], object]],
    clocks: Mapping[str, Any],
    baselines: Mapping[str, str],
    *,
    rounds: int,
    warmup: int,
) -> dict[str, dict[str, Any]]:
    """Times calls that alternate, in an order drawn anew for every round.

    Args:
        calls: name to function; each waits for its own result.
        clocks: name to a `Clock` on the stream that the call uses; the wall's time alone for
            those that have none.
        baselines: name to the call that it is compared with.
        rounds: measured rounds.
        warmup: rounds before those.

    Returns:
        For each call `wall_ms` and `between_events_ms` (p50, p95, p99; None without a clock), and
        `ratio`: the median over the rounds of its wall time over its baseline's within the
        round; None without a baseline.
    """
    names = list(calls)
    order = random.Random(0)
    wall: dict[str, list[float]] = {name: [] for name in names}
    between: dict[str, list[float]] = {name: [] for name in clocks}
    for step in range(warmup + rounds):
        order.shuffle(names)
        for name in names:
            clock = clocks.get(name)
            if clock is not None:
                clock.start()
            start = time.perf_counter()
            calls[name]()
            elapsed = time.perf_counter() - start
            passed = clock.stop() if clock is not None else 0.0
            if step >= warmup:
                wall[name].append(elapsed)
                if clock is not None:
                    between[name].append(passed)
    timing = Timing({name: tuple(values) for name, values in wall.items()})
    return {
        name: {
            "wall_ms": percentiles([1e3 * value for value in wall[name]]),
            "between_events_ms": percentiles(between[name]) if name in between else None,
            "ratio": timing.ratio(name, baselines[name]) if name in baselines else None,
        }
        for name in calls
    }
