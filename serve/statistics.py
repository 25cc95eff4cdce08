"""Statistics of each model, as Triton's extension of the protocol has them."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from sigcam.serve.records import Record

__all__ = ["Statistics"]


@dataclass
class _Duration:
    """How often something was done, and how many nanoseconds it took in all."""

    count: int = 0
    nanoseconds: int = 0

    def add(self, seconds: float, count: int = 1) -> None:
        self.count += count
        self.nanoseconds += int(max(0.0, seconds) * 1e9)

    def told(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.nanoseconds}


_PARTS = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass
class _Counts:
    """The counts of a version of a model."""

    last: int = 0
    inferences: int = 0
    executions: int = 0
    parts: dict[str, _Duration] = field(default_factory=lambda: {p: _Duration() for p in _PARTS})
    batches: dict[int, _Duration] = field(default_factory=lambda: defaultdict(_Duration))


class Statistics:
    """Adds up what it is told as an observer of a `Service`.

    Example:
        >>> statistics = Statistics()
        >>> statistics.batch_ran("cats", "1", 8, 0.25)
        >>> statistics.of("cats", "1")["execution_count"]
        1
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Counts] = defaultdict(_Counts)
        self._lock = threading.Lock()

    def batch_ran(self, model: str, version: str, images: int, seconds: float) -> None:
        """Counts a run of a model's backend."""
        with self._lock:
            counts = self._counts[model, version]
            counts.executions += 1
            counts.batches[images].add(seconds)

    def request_waits(self, model: str, version: str, change: int) -> None:
        """Counts nothing: the protocol has no place for it."""

    def request_done(self, record: Record) -> None:
        """Counts a request that is over."""
        with self._lock:
            if not record.model:  # of a model that isn't served
                return
            counts = self._counts[record.model, record.version]
            if record.status != 200:
                counts.parts["fail"].add(record.seconds)
                return
            counts.last = int(time.time() * 1000)
            counts.inferences += record.images
            for name, seconds in (
                ("success", record.seconds),
                ("queue", record.started - record.decoded),
                ("compute_input", record.decoded - record.received),
                ("compute_infer", record.ran - record.started),
                ("compute_output", record.done - record.ran),
            ):
                counts.parts[name].add(seconds)

    def of(self, model: str, version: str) -> dict[str, Any]:
        """Returns the statistics of a version of a model, as the protocol has them."""
        with self._lock:
            counts = self._counts[model, version]
            nothing = _Duration().told()
            parts = {name: one.told() for name, one in counts.parts.items()}
            return {
                "name": model,
                "version": version,
                "last_inference": counts.last,
                "inference_count": counts.inferences,
                "execution_count": counts.executions,
                "inference_stats": {**parts, "cache_hit": nothing, "cache_miss": nothing},
                "batch_stats": [
                    {
                        "batch_size": size,
                        "compute_input": {"count": one.count, "ns": 0},
                        "compute_infer": one.told(),
                        "compute_output": {"count": one.count, "ns": 0},
                    }
                    for size, one in sorted(counts.batches.items())
                ],
            }
