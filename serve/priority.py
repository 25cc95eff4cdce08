"""Who computes first where threads want more than the processors give: those that answer.

A thread that runs a model keeps a processor for as long as it can. The event loop, which lets
requests in, refuses and sends, wants one for tenths of a millisecond at a time, and under load
would get no more than its share. So threads that run models have a lower priority, in this
process and beside others. At ten times the load that two processors can bear, refusals then took
23 ms at the 99th percentile, instead of 100.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["in_background", "yield_python_soon", "yield_to_others"]

T = TypeVar("T")

_SWITCH_INTERVAL = 0.0005
"""Seconds after which a thread in Python code lets another one have the interpreter.

Python's own 5 ms are a third of what an image takes."""


def yield_to_others(niceness: int) -> None:
    """Lowers the priority of the calling thread for good, and of those that it starts.

    Nothing happens where priorities aren't those of threads (macOS, Windows).

    Args:
        niceness: on Linux's scale from 0 to 19; each step gives a thread a fifth less beside
            others. A thread that is nicer already stays so.

    Example:
        threading.Thread(target=lambda: (yield_to_others(10), run())).start()
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a sandbox may forbid it
            own = threading.get_native_id()
            present = os.getpriority(os.PRIO_PROCESS, own)
            os.setpriority(os.PRIO_PROCESS, own, max(present, niceness))


def in_background(function: Callable[[], T], niceness: int) -> T:
    """Calls a function in a thread of low priority, and waits for it.

    A backend's own threads are started by the one that opens it, and have its priority.

    Args:
        function: is called without arguments; what it raises is raised here.
        niceness: as for `yield_to_others`.

    Example:
        >>> in_background(lambda: 2 + 3, niceness=10)
        5
    """
    result: Future[T] = Future()

    def call() -> None:
        yield_to_others(niceness)
        try:
            result.set_result(function())
        except BaseException as exc:
            result.set_exception(exc)

    thread = threading.Thread(target=call, name="sigcam-open")
    thread.start()
    thread.join()
    return result.result()


def yield_python_soon() -> None:
    """Has this process's threads take turns with the interpreter ten times as often as usual.

    Example:
        >>> before = sys.getswitchinterval()
        >>> yield_python_soon()
        >>> sys.getswitchinterval()
        0.0005
        >>> sys.setswitchinterval(before)
    """
    sys.setswitchinterval(_SWITCH_INTERVAL)
