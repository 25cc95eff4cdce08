"""Iterators whose steps overlap, and a stopwatch for one of them.

`ahead` makes the items of an iterator in a thread of its own, and `in_order` calls a function
for each item in several threads. Both keep the order, and only so many items wait between two
steps. An error in a step reaches whoever takes its results, after the results before it. Closing
the iterator stops the threads and waits for them; so does an exception of the consumer, Ctrl-C
included, once the iterator is closed or given up.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

WAITING = 8
"""Most results that wait to be written: a usual batch, which comes all at once."""


class Stopwatch:
    """Adds up how long something ran, as a context manager around each run in one thread.

    Attributes:
        seconds: the sum of all runs that have ended.

    Example:
        >>> stopwatch = Stopwatch()
        >>> with stopwatch:
        ...     total = sum(range(1000))
        >>> stopwatch.seconds > 0
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._since


def ahead(items: Iterable[T], depth: int, name: str) -> Generator[T, None, None]:
    """Yields items that are made in a thread, which runs ahead of the consumer.

    Args:
        items: what is iterated in the thread, and closed there if it is a generator.
        depth: most items that wait; one more is being made meanwhile.
        name: name of the thread.

    Example:
        >>> list(ahead(range(3), depth=2, name="numbers"))
        [0, 1, 2]
    """
    line: _Line[T] = _Line(depth)
    # A daemon: an iterator that is never closed must not keep the process from ending.
    thread = threading.Thread(target=_fill, args=(line, items), name=name, daemon=True)
    thread.start()
    own = os.getpid()
    try:
        yield from line
    finally:
        if os.getpid() == own:  # a forked process has no such thread, perhaps its locks
            line.close()
            thread.join()


def in_order(
    function: Callable[[T], R], items: Iterable[T], workers: int, name: str, depth: int = 0
) -> Generator[R, None, None]:
    """Yields `function` of each item, in the order of the items, by several threads.

    Args:
        function: what is called in the threads; what it raises is raised here, in the place of
            its result.
        items: what is iterated by whoever takes the results, up to `workers` + `depth` items
            ahead of them.
        workers: number of threads.
        name: beginning of the threads' names.
        depth: most results that wait beside the items in work.

    Example:
        >>> list(in_order(abs, [-1, 2, -3], workers=2, name="abs"))
        [1, 2, 3]
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    error: Exception | None = None
    own = os.getpid()
    try:
        pending = iter(items)
        while True:
            try:
                item = next(pending)
            except StopIteration:
                break
            except Exception as exc:  # raised below, after the results of the items before
                error = exc
                break
            # With the caller's context: a thread has none of its own (`core.inputs` is kept there).
            waiting.append(pool.submit(copy_context().run, function, item))
            del item
            if len(waiting) >= workers + depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
        if error is not None:
            raise error
    finally:
        if os.getpid() == own:
            pool.shutdown(wait=True, cancel_futures=True)
            close(items)


def close(items: object) -> None:
    """Closes a generator, and leaves other iterables as they are.

    Example:
        >>> numbers = (number for number in range(3))
        >>> close(numbers)
        >>> list(numbers)
        []
    """
    if isinstance(items, Generator):
        items.close()


class _Line(Generic[T]):
    """A bounded queue with one thread at each end, either of which may leave."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Waits for room and puts an item in; returns False once nobody wants more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._items) < self._depth)
            if not self._closed:
                self._items.append(item)
                self._changed.notify_all()
            return not self._closed

    def end(self, error: BaseException | None) -> None:
        """Notes that nothing more will come, and the error that was the reason, if one was."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Notes that nothing more is wanted."""
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._items)
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
            del item  # it is the consumer's alone, while this waits for the next
        error, self._error = self._error, None
        if error is not None:
            raise error


def _fill(line: _Line[T], items: Iterable[T]) -> None:
    """Puts the items into the queue; the thread of `ahead` runs this."""
    error: BaseException | None = None
    try:
        for item in items:
            wanted = line.put(item)
            del item  # the queue's alone, while the next one is made
            if not wanted:
                break
        close(items)
    except BaseException as exc:  # goes to the consumer, whatever it is
        error = exc
    line.end(error)
