"""Work captured from a stream into a CUDA graph, to be launched as one.

Streams are given as an object with a `handle` (`driver.Stream`) or as the handle's number.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sigcam.kernels.calls import HasHandle, bindings, call, handle_of
from sigcam.kernels.errors import KernelError
from sigcam.kernels.memory import Owned

_capturing = 0
_collects = False
_capturing_lock = threading.Lock()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keeps the cyclic garbage collector from running in any thread.

    Run in the thread that captures, it could free device memory or unload modules that
    others left behind, and such a call breaks the capture off.
    """
    global _capturing, _collects
    with _capturing_lock:
        if _capturing == 0:
            _collects = gc.isenabled()
            gc.disable()
        _capturing += 1
    try:
        yield
    finally:
        with _capturing_lock:
            _capturing -= 1
            if _capturing == 0 and _collects:
                gc.enable()


class Graph:
    """Work that was captured from a stream and is launched as one.

    `with Graph.capture(stream) as graph:` enqueues work on the stream, of which nothing runs;
    `graph.launch(stream)` runs all of it.

    Only one launch of a graph runs at a time; a second one on any stream waits.
    """

    def __init__(self) -> None:
        self._executable: Owned | None = None
        self._handle = 0

    @classmethod
    @contextmanager
    def capture(cls, stream: HasHandle | int) -> Iterator[Graph]:
        """Captures what this thread enqueues on `stream` inside the block.

        Inside it, Python doesn't look for cyclic garbage.

        Raises:
            KernelError: something was called that can't be captured.
        """
        graph, handle = cls(), handle_of(stream)
        # Other threads may allocate and synchronise meanwhile: it's no business of theirs.
        mode = bindings().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with _no_collection():
            call("cuStreamBeginCapture", handle, mode)
            try:
                yield graph
            except BaseException:
                with suppress(KernelError):  # the first error is the one to tell
                    _discard(call("cuStreamEndCapture", handle))
                raise
            captured = call("cuStreamEndCapture", handle)
        try:
            graph._instantiate(captured)
        finally:
            _discard(captured)

    def _instantiate(self, captured: Any) -> None:
        self._handle = int(call("cuGraphInstantiate", captured, 0))
        self._executable = Owned("cuGraphExecDestroy", self._handle)

    def launch(self, stream: HasHandle | int) -> None:
        """Enqueues the captured work.

        Raises:
            KernelError: the graph isn't captured yet, or was closed, or the launch failed.
        """
        if self._executable is None:
            raise KernelError("the graph holds no work: it is still captured, or was closed")
        call("cuGraphLaunch", self._handle, handle_of(stream))

    def close(self) -> None:
        """Destroys the graph; a second call does nothing."""
        if self._executable is not None:
            self._executable.close()
            self._executable = None


def _discard(captured: Any) -> None:
    if int(captured) != 0:  # a capture that was broken off gives none
        call("cuGraphDestroy", captured)


def is_capturing(stream: HasHandle | int) -> bool:
    """Returns whether the stream's work is being captured into a graph.

    Example:
        with Graph.capture(stream):
            is_capturing(stream)  # True: nothing runs yet
    """
    return int(call("cuStreamIsCapturing", handle_of(stream))) != 0
