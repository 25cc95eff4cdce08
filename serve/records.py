"""What is known of a request when it is over, and who is told: statistics, metrics, logs, spans."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["Observer", "Record"]


@dataclass
class Record:
    """The course of one request. Times are seconds of `time.perf_counter`; 0 what it didn't reach.

    Attributes:
        model, version: what was asked; empty where there is no such model.
        id: the request's own id; None without one.
        images: how many it brought.
        status: the HTTP status of the answer; 499 where the client was gone.
        error: why it wasn't answered as it was meant; empty otherwise.
        arrived: its head was read.
        received: its body was there.
        decoded: its images were prepared, and queued.
        started: the first of them was taken for a run.
        ran: the last of them had been run.
        done: its answer was written.
        batches: the number of images in each run that it had a part in.
        backend: seconds that these runs took together.
        map_seconds: seconds that heatmaps, boxes and overlays took, with their encoding.
        encode_seconds: those of them in which images were encoded as files.
    """

    model: str
    version: str
    id: str | None = None
    images: int = 0
    status: int = 200
    error: str = ""
    arrived: float = 0.0
    received: float = 0.0
    decoded: float = 0.0
    started: float = 0.0
    ran: float = 0.0
    done: float = 0.0
    batches: list[int] = field(default_factory=list)
    backend: float = 0.0
    map_seconds: float = 0.0
    encode_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Returns how long all of it took."""
        return self.done - self.arrived


class Observer(Protocol):
    """Is told what happens. Called from several threads at once; must be quick."""

    def batch_ran(self, model: str, version: str, images: int, seconds: float) -> None:
        """Is told of a run of a model's backend."""

    def request_waits(self, model: str, version: str, change: int) -> None:
        """Is told that one request more (1) or less (-1) waits for its first run."""

    def request_done(self, record: Record) -> None:
        """Is told of a request that is over, whatever became of it."""
