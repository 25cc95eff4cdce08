"""Session.stream: images read ahead in threads, in order, with bounded memory."""

import gc
import threading
import time
import weakref

import numpy as np
import pytest

from sigcam.core.errors import BackendError, ImageError, UsageError
from sigcam.core.threads import Stopwatch


def bright(image):
    return np.array([image.mean(), 0, 0, 0]), np.arange(49.0).reshape(1, 7, 7)


def image(value):
    return np.full((10, 10, 3), value, np.uint8)


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    gc.collect()
    assert set(threading.enumerate()) <= before


def values_of(results):
    return [int(one[0].image[0, 0, 0]) for one in results]


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_stream_gives_the_same_with_and_without_readers(fake_session, readers, batch_size):
    session = fake_session(bright, batch_size=batch_size)
    images = [image(value) for value in range(10)]
    assert values_of(session.stream(images, readers=readers)) == list(range(10))
    assert max(session._model.backend.batches) == min(batch_size, 10)
    assert list(session.stream([], readers=readers)) == []
    with pytest.raises(UsageError, match="readers"):
        session.stream(images, readers=-1)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_bad_images_with_readers(fake_session, tmp_path, batch_size):
    good = image(7)
    sources = [good, tmp_path / "missing.jpg", good, b"junk", good]
    session = fake_session(bright, batch_size=batch_size)
    got = list(session.stream(sources, on_error="return", readers=2))
    assert [type(one) for one in got] == [list, ImageError, list, ImageError, list]
    results = session.stream(sources, readers=2)
    assert next(results)[0].image is good
    with pytest.raises(ImageError, match=r"missing\.jpg"):
        next(results)
    assert list(results) == []


def test_a_backend_that_fails_ends_the_stream(fake_session):
    def answer(image):
        if image.mean() == 2:
            raise BackendError("no more")
        return bright(image)

    session = fake_session(answer, batch_size=1)
    results = session.stream((image(value) for value in range(9)), readers=1)
    assert values_of([next(results), next(results)]) == [0, 1]
    with pytest.raises(BackendError, match="no more"):
        next(results)


def test_reading_overlaps_with_the_backend(fake_session):
    """Each waits until the other is at another image; one after the other would fail."""
    reading, running = threading.Event(), threading.Event()

    def answer(image):
        if image.mean() == 1:
            running.set()
            assert reading.wait(10)
        return bright(image)

    def images():
        for value in range(4):
            if value == 2:
                assert running.wait(10)
                reading.set()
            yield image(value)

    watch = Stopwatch()
    results = fake_session(answer, batch_size=1).stream(images(), readers=1, stopwatch=watch)
    assert values_of(results) == [0, 1, 2, 3]
    assert watch.seconds > 0


def test_leaving_a_loop_ends_the_threads(fake_session):
    session = fake_session(bright, batch_size=2)

    def endless():
        while True:
            yield image(1)

    for _ in session.stream(endless(), readers=2):
        break
    with pytest.raises(KeyboardInterrupt):
        for _ in session.stream(endless(), readers=2):
            raise KeyboardInterrupt


def test_a_stream_with_readers_holds_a_few_batches(fake_session):
    """However many images come: two batches and what passes between the threads."""

    class Watched(np.ndarray):
        pass

    references = []
    most = 0

    def images():
        nonlocal most
        for _ in range(60):
            image = Watched((10, 10, 3), np.uint8)  # owns its memory, so views of it count
            image[:] = 0
            references.append(weakref.ref(image))
            most = max(most, sum(one() is not None for one in references))
            yield image
            del image

    readers, batch_size = 2, 3
    session = fake_session(bright, batch_size=batch_size)
    for results in session.stream(images(), readers=readers):
        time.sleep(0.002)  # a slow caller: the queues fill
        del results
    assert len(references) == 60
    assert batch_size < most <= 2 * batch_size + readers + 5
