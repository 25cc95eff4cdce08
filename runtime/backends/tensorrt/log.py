"""TensorRT's messages: one logger for the whole process, as TensorRT itself has it.

TensorRT keeps the first logger that a process registers for each of its packages, and ignores
further ones. So all builds and engines share it, and errors are told apart by the thread that
they came from.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LOG = logging.getLogger(__name__)

_KEPT_ERRORS = 64

_loggers: dict[int, tuple[Any, Any]] = {}
"""The loggers by the identity of the package's module, which is kept with its logger."""
_lock = threading.Lock()


def logger_of(module: Any) -> Any:
    """Returns the logger of a TensorRT package, which is always the same one.

    Args:
        module: the imported package.

    Returns:
        An ILogger that keeps the last errors. `take_errors()` returns those of the calling
        thread as one line, and forgets them. `with warnings():` passes warnings of the calling
        thread on to `logging`.

    Example:
        builder = tensorrt.Builder(logger_of(tensorrt))
    """
    with _lock:
        if id(module) not in _loggers:
            _loggers[id(module)] = (module, _made(module))
        return _loggers[id(module)][1]


def _made(module: Any) -> Any:
    """Makes the logger of a package, whose class is known only once it is imported."""
    grave = (module.ILogger.INTERNAL_ERROR, module.ILogger.ERROR)

    class Log(module.ILogger):  # type: ignore[misc]
        """Keeps errors by thread; TensorRT calls `log` from any of its threads."""

        def __init__(self) -> None:
            module.ILogger.__init__(self)
            # Re-entrant: memory that is freed while it is held may make TensorRT log.
            self._lock = threading.RLock()
            self._errors: deque[tuple[int, str]] = deque(maxlen=_KEPT_ERRORS)
            self._warned: set[int] = set()

        def log(self, severity: Any, message: str) -> None:
            thread = threading.get_ident()
            if severity in grave:
                with self._lock:
                    self._errors.append((thread, message.strip()))
            elif severity == module.ILogger.WARNING and thread in self._warned:
                _LOG.warning("TensorRT: %s", message.strip())

        def take_errors(self) -> str:
            """Returns the errors of this thread as one line, and forgets them.

            Those of threads that TensorRT started, or that ended, count as this thread's.
            """
            others = {one.ident for one in threading.enumerate()} - {threading.get_ident()}
            with self._lock:
                errors = list(self._errors)
                theirs = [one for one in errors if one[0] in others]
                self._errors = deque(theirs, maxlen=_KEPT_ERRORS)
            mine = [message for thread, message in errors if thread not in others]
            return "; ".join(dict.fromkeys(mine)) or "TensorRT gave no reason"

        @contextmanager
        def warnings(self) -> Iterator[None]:
            """Passes the warnings of this thread on inside the block; others are left out."""
            thread = threading.get_ident()
            self._warned.add(thread)
            try:
                yield
            finally:
                self._warned.discard(thread)

    return Log()
