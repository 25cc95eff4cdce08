"""Images of many requests in one run of a model: what waits is taken together.

A `Batcher` has a thread, or a few, in which its model runs. Whenever one is free, it takes the
image that has waited longest and as many others as fit in one run with it. So batches grow with the
load by themselves, and a lone image waits for nobody unless a delay is asked for.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sigcam.runtime.explain import ExplainCall, NamedImage
from sigcam.runtime.explanation import Explanation
from sigcam.runtime.model import ModelOutputs
from sigcam.serve.priority import yield_to_others

__all__ = ["Batcher", "Item", "Owner"]


_LONGEST_END = 30.0
"""Seconds that the last run may take."""


class Owner(Protocol):
    """Who an item belongs to: a request. Called from the thread of a batcher."""

    @property
    def is_over(self) -> bool:
        """Says whether nobody waits for it any more."""

    def begin(self, time: float) -> None:
        """Is told that one of its images is run now; `time` is `time.perf_counter`'s."""

    def check(self, done: int, total: int) -> None:
        """Is told the passes of a method of several; raises where nobody waits any more."""

    def check_row(self, index: int, outputs: ModelOutputs, row: int) -> None:
        """Raises where what one of its images would come to is more than is allowed."""

    def in_batch(self, images: int, seconds: float) -> None:
        """Is told of a run that it had a part in."""

    def ran(
        self, index: int, outputs: ModelOutputs, row: int, made: list[Explanation] | None = None
    ) -> None:
        """Takes what became of one of its images; the explanations too, where they are made."""

    def fail(self, error: BaseException) -> None:
        """Ends it with an error."""


@dataclass(frozen=True, eq=False)
class Item:
    """An image that waits for its run.

    Attributes:
        owner: the request that brought it.
        index: which of the request's images it is.
        call: what is asked.
        image: prepared.
        since: when it came, in seconds of `time.perf_counter`.
    """

    owner: Owner
    index: int
    call: ExplainCall
    image: NamedImage
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """A queue of images and the threads that run them.

    Example:
        batcher = Batcher(run, size=8, delay=0.0, name="cats")
        batcher.put([Item(owner, 0, call, image)])  # run([item]) is called in the thread
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], None],
        size: int,
        delay: float,
        name: str,
        threads: int = 1,
        niceness: int = 0,
    ) -> None:
        """Starts the threads.

        Args:
            run: runs a batch and hands out its results; what it raises ends the requests.
            size: most images in a batch.
            delay: most seconds that the first image of a batch waits for others.
            name: of the threads.
            threads: batches that are run at the same time.
            niceness: of the threads, as for `yield_to_others`.
        """
        self._run = run
        self._size = size
        self._delay = delay
        self._niceness = niceness
        self._queue: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{index}", daemon=True)
            for index in range(threads)
        ]
        for one in self._threads:
            one.start()

    def put(self, items: Sequence[Item]) -> None:
        """Lets items wait for their runs. How many may wait is the caller's affair."""
        with self._changed:
            self._queue.extend(items)
            self._changed.notify(len(items))

    @property
    def waiting(self) -> int:
        """Counts the images that wait."""
        return len(self._queue)

    def close(self) -> None:
        """Ends the threads when all that waits has been run, and waits for that.

        Not for ever: a backend that hangs must not keep the process from ending.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for one in self._threads:
            one.join(_LONGEST_END)

    def _work(self) -> None:
        yield_to_others(self._niceness)
        while batch := self._next():
            try:
                self._run(batch)
            except BaseException as exc:  # the thread goes on whatever happens
                for item in batch:
                    item.owner.fail(exc)
            del batch  # while it waits for the next one, nothing of this may live on

    def _next(self) -> list[Item]:
        """Waits for a batch; returns an empty one at the end."""
        with self._changed:
            while True:
                while self._queue and self._queue[0].owner.is_over:
                    self._queue.popleft()
                if self._queue:
                    left = self._queue[0].since + self._delay - time.perf_counter()
                    if left <= 0 or len(self._queue) >= self._size or self._closed:
                        return self._taken()
                    self._changed.wait(left)
                elif self._closed:
                    return []
                else:
                    self._changed.wait()

    def _taken(self) -> list[Item]:
        """Takes the first item and those that may be run with it."""
        kind = self._queue[0].call.kind
        batch: list[Item] = []
        others: list[Item] = []
        while self._queue and len(batch) < self._size:
            item = self._queue.popleft()
            if item.owner.is_over:
                continue
            (batch if item.call.kind == kind else others).append(item)
        self._queue.extendleft(reversed(others))
        return batch
