"""Forked processes: a backend belongs to the process that loaded it.

A process that is forked gets a copy of all memory, and none of the threads but the one that
forked. A backend's threads are gone there: OpenVINO waits for them for ever when it is run, and
ONNX Runtime and OpenVINO do when they are freed, or at the end of the process. So whatever holds a
backend knows its process and refuses to be used in another one, and in a forked process nothing
of it is freed.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from sigcam.core.errors import UsageError

__all__ = ["OwnProcess", "keep_in_children", "no_pickle", "on_fork"]

_ADVICE = (
    "load the model in each process, after the fork (for a server that preloads: in its hook "
    "after the fork; docs/serving.md)"
)


class OwnProcess:
    """Remembers the process that it was made in.

    Args:
        what: what belongs to that process, for the message.

    Attributes:
        pid: the process's number.

    Example:
        >>> own = OwnProcess("the session")
        >>> if os.getpid() != own.pid:
        ...     own.refuse()
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self.pid = os.getpid()

    def refuse(self) -> NoReturn:
        """Refuses this process, which isn't the one that it was made in.

        Raises:
            UsageError: always; says what to do.
        """
        raise UsageError(
            f"{self._what} was loaded in the process {self.pid} and can't be used in "
            f"{os.getpid()}, which was forked from it: the backend's threads aren't there; "
            f"{_ADVICE}"
        )


def no_pickle(what: str) -> NoReturn:
    """Refuses to pickle or copy what holds a backend.

    Raises:
        UsageError: always; says what to do.

    Example:
        >>> no_pickle("the session")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: the session can't be pickled or copied, as it holds a ...
    """
    raise UsageError(
        f"{what} can't be pickled or copied, as it holds a backend with its threads and memory; "
        f"pass the model's path and {_ADVICE}; threads of one process share a session as it is"
    )


_kept: weakref.WeakSet[Any] = weakref.WeakSet()
_were_any = threading.Event()
"""Whether anything was ever kept: a library stays when what it made has been freed."""


def keep_in_children(thing: object) -> None:
    """Keeps a thing from ever being freed in processes that are forked from this one.

    Args:
        thing: what holds something whose freeing waits for threads.

    Example:
        >>> class Engine: ...
        >>> keep_in_children(Engine())
    """
    _kept.add(thing)
    _were_any.set()


def on_fork(action: Callable[[], None]) -> None:
    """Calls a function in every process that is forked from this one, before all else in it.

    Nothing happens on systems without fork.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)


def _in_child() -> None:
    """Makes what holds a backend immortal in a forked process, and its end a short one."""
    if not _were_any.is_set():
        return
    for thing in list(_kept):
        # A reference that nobody gives back: the interpreter's own end frees it neither.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    _end_without_destructors()


def _end_without_destructors() -> None:
    """Ends this process, once Python is done, without the destructors of C++ libraries.

    ONNX Runtime's destructor of what it has once for a process waits for a thread that a forked
    process hasn't (1.32; importing it and forking is enough). Functions given to the C library's
    `on_exit` are called in the reverse order, so this one comes before those of libraries that
    were loaded before the fork, with the exit code. Where the C library lacks it, all stays as
    it was.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
    except (AttributeError, OSError, TypeError):
        return


on_fork(_in_child)
