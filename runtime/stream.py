"""From pictures that are read to their results: in batches, in order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import islice

from sigcam.runtime.errors import ImageError
from sigcam.runtime.image import PictureLike
from sigcam.runtime.multipass.base import Tools
from sigcam.runtime.outputs import Picture
from sigcam.runtime.pipeline import ahead, close, in_order
from sigcam.runtime.result import Explanation
from sigcam.runtime.work import Work, explain_batch

Read = Callable[[PictureLike], "Picture | ImageError"]
Slot = list[Explanation] | ImageError


def slots(
    images: Iterable[PictureLike], read: Read, work: Work, tools: Tools, *, stop_at_error: bool
) -> Generator[Slot, None, None]:
    """What comes of each picture, in order: its results, or why it can't be read.

    Args:
        images: the pictures.
        read: reads and prepares one.
        work: with `readers` above 0, pictures are read in threads
            meanwhile.
        tools: of the session.
        stop_at_error: whether the first bad picture is the last slot.
    """
    if work.readers == 0:
        return _explained(map(read, images), work, tools, stop_at_error=stop_at_error)
    # The engine stays in the caller's thread. In another one, glibc gave it memory of its own
    # beside what loading the model had freed: 70 MB more for a ResNet-50.
    pictures = in_order(read, images, work.readers, "sigcam-read")
    ready = ahead(pictures, work.batch_size, "sigcam-feed")
    return _explained(ready, work, tools, stop_at_error=stop_at_error)


def _explained(
    read: Iterator[Picture | ImageError], work: Work, tools: Tools, *, stop_at_error: bool
) -> Generator[Slot, None, None]:
    try:
        stopped = False
        while not stopped:
            chunk = _chunk(read, work.batch_size, stop_at_error=stop_at_error)
            bad = stop_at_error and any(isinstance(one, ImageError) for one in chunk)
            stopped = bad or len(chunk) < work.batch_size
            done = _done(chunk, work, tools)
            # Nothing of this batch may live on in here once the caller has its results.
            del chunk
            while done:
                yield done.pop(0)
    finally:
        close(read)


def _chunk(
    read: Iterator[Picture | ImageError], size: int, *, stop_at_error: bool
) -> list[Picture | ImageError]:
    """The next `size` pictures; fewer if they end, or at a bad one."""
    chunk: list[Picture | ImageError] = []
    for one in islice(read, size):
        chunk.append(one)
        if isinstance(one, ImageError):
            if stop_at_error:
                break
            one.with_traceback(None)  # it would keep the picture's bytes alive
    return chunk


def _done(chunk: list[Picture | ImageError], work: Work, tools: Tools) -> list[Slot]:
    pictures = [one for one in chunk if isinstance(one, Picture)]
    found = iter(explain_batch(pictures, work, tools) if pictures else ())
    return [one if isinstance(one, ImageError) else next(found) for one in chunk]
