"""Steps that overlap: order, errors, early ends, threads and memory."""

import contextlib
import gc
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sigcam.core.errors import BackendError
from sigcam.core.threads import Stopwatch, ahead, in_order


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


@given(
    items=st.lists(st.integers(), max_size=20),
    depth=st.integers(1, 5),
    workers=st.integers(1, 4),
    taken=st.integers(0, 25),
)
def test_everything_comes_in_order_and_no_more_is_made_than_may_wait(items, depth, workers, taken):
    made = []

    def source():
        for item in items:
            made.append(item)
            yield item

    steps = ahead(in_order(lambda x: x + 1, source(), workers, "work"), depth, "feed")
    with contextlib.closing(steps):
        got = [item for item, _ in zip(steps, range(taken), strict=False)]
    wanted = [item + 1 for item in items]
    assert got == wanted[: len(got)]
    assert len(got) == min(taken, len(items))
    # zip took one more; so many wait, one is handed over, and the workers have theirs.
    assert made == items[: len(made)]
    assert len(made) <= taken + 1 + depth + 1 + workers + 1


@pytest.mark.parametrize("where", ["source", "function"])
def test_an_error_comes_after_what_was_before_it(where):
    def source():
        yield from range(5)
        raise BackendError("at the source")

    def function(item):
        if where == "function" and item == 3:
            raise BackendError("in the function")
        return item

    steps = ahead(in_order(function, source(), 2, "work"), 2, "feed")
    before = [0, 1, 2, 3, 4] if where == "source" else [0, 1, 2]
    assert [next(steps) for _ in before] == before
    with pytest.raises(BackendError, match=where):
        next(steps)


def test_closing_ends_a_source_that_never_ends():
    closed = threading.Event()

    def endless():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    steps = ahead(ahead(endless(), 3, "inner"), 3, "outer")
    assert next(steps) == 0
    steps.close()
    assert closed.is_set()


def test_a_stopwatch_adds_up():
    watch = Stopwatch()
    for _ in range(2):
        with watch:
            time.sleep(0.02)
    assert 0.04 <= watch.seconds < 1


def test_what_is_done_with_results_overlaps_with_making_them():
    """As the command writes heatmaps: in one thread, in order, a few results behind."""
    writing = threading.Event()
    written = []

    def results():
        for value in range(6):
            if value == 2:
                assert writing.wait(10)  # the first is being written meanwhile
            yield value

    def write(value):
        writing.set()
        written.append(value)

    assert list(in_order(write, results(), 1, "write", depth=3)) == [None] * 6
    assert written == list(range(6))
