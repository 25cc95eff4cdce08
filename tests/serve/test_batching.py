"""Images that wait are run together, each in its turn, and those that nobody wants are not."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from sigcam.serve.batching import Batcher, Item


class Owner:
    def __init__(self):
        self.is_over = False
        self.errors = []

    def fail(self, error):
        self.errors.append(error)


class Runs:
    """Notes the batches, and lets them go on when it is told to."""

    def __init__(self):
        self.batches = []
        self.go = threading.Event()
        self.changed = threading.Condition()
        self.error = None

    def __call__(self, batch):
        with self.changed:
            self.batches.append([one.index for one in batch])
            self.changed.notify_all()
        assert self.go.wait(10)
        if self.error is not None:
            raise self.error

    def wait(self, count):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.batches) >= count, 10)


@pytest.fixture
def make():
    made = []

    def start(size=4, delay=0.0, threads=1):
        runs = Runs()
        batcher = Batcher(runs, size, delay, "test", threads)
        made.append((batcher, runs))
        return batcher, runs

    yield start
    for batcher, runs in made:
        runs.go.set()
        batcher.close()


def items(*indexes, kind="a", owner=None):
    call = SimpleNamespace(kind=kind)
    return [Item(owner or Owner(), index, call, None) for index in indexes]


def test_a_lone_image_waits_for_nobody_and_what_waits_is_taken_together(make):
    batcher, runs = make()
    batcher.put(items(0))
    runs.wait(1)
    for index in range(1, 8):
        batcher.put(items(index))
    assert batcher.waiting == 7
    runs.go.set()
    runs.wait(3)
    assert runs.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_several_threads_run_batches_at_the_same_time(make):
    batcher, runs = make(threads=2)
    for index in range(7):
        batcher.put(items(index))
        runs.wait(min(index + 1, 2))
    assert runs.batches == [[0], [1]]  # both are held back
    runs.go.set()
    runs.wait(3)
    while batcher.waiting:
        time.sleep(0.01)
    assert sorted(one for batch in runs.batches for one in batch) == list(range(7))


def test_kinds_are_not_mixed_and_keep_their_turns(make):
    batcher, runs = make()
    batcher.put(items(0))
    runs.wait(1)
    for index, kind in enumerate("abaabb", start=1):
        batcher.put(items(index, kind=kind))
    runs.go.set()
    runs.wait(3)
    assert runs.batches == [[0], [1, 3, 4], [2, 5, 6]]


def test_what_nobody_wants_is_not_run(make):
    batcher, runs = make(size=2)
    batcher.put(items(0))
    runs.wait(1)
    gone = Owner()
    batcher.put(items(1, 2, owner=gone))
    batcher.put(items(3))
    batcher.put(items(4, owner=gone))
    batcher.put(items(5))
    gone.is_over = True
    runs.go.set()
    runs.wait(2)
    assert runs.batches == [[0], [3, 5]]


def test_the_first_waits_for_others_as_long_as_it_may(make):
    batcher, runs = make(size=3, delay=0.3)
    runs.go.set()
    begin = time.perf_counter()
    batcher.put(items(0))
    batcher.put(items(1))
    runs.wait(1)
    assert time.perf_counter() - begin >= 0.29
    assert runs.batches == [[0, 1]]
    begin = time.perf_counter()
    batcher.put(items(2, 3, 4))
    runs.wait(2)
    assert runs.batches[1] == [2, 3, 4]  # full: no reason to wait


def test_an_error_ends_the_requests_of_its_batch_and_no_others(make):
    batcher, runs = make()
    runs.error = KeyError("broken")
    first, second = Owner(), Owner()
    batcher.put(items(0, owner=first))
    runs.wait(1)
    runs.go.set()
    while not first.errors:
        time.sleep(0.01)
    runs.error = None
    batcher.put(items(1, owner=second))
    runs.wait(2)
    assert isinstance(first.errors[0], KeyError)
    assert not second.errors


def test_closing_runs_what_waits(make):
    batcher, runs = make(size=1, delay=5.0)
    runs.go.set()
    batcher.put(items(0, 1))
    batcher.close()
    assert runs.batches == [[0], [1]]
