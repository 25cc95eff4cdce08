"""What a process of several tells the one that started it, and is told: models come and go in all.

A worker that is asked to load or unload a model hands that to its supervisor, which lets every
worker do it and answers when all have. The messages are tuples that begin with their kind.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any, Literal

from sigcam.core.errors import SigcamError
from sigcam.serve.protocol.errors import RequestError

__all__ = ["Action", "Control"]

Action = Literal["load", "unload"]

_SECONDS = 600.0
"""Longest that all workers may take for a change."""


class Control:
    """A worker's end of the pipe to its supervisor.

    Attributes:
        stop: set when the supervisor is gone; the worker then has to end.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.stop = threading.Event()
        self._asked: dict[int, Future[tuple[str, int] | None]] = {}
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def ready(self) -> None:
        """Tells the supervisor that all models are loaded."""
        self._send("ready")

    def failed(self, error: str) -> None:
        """Tells the supervisor why this worker can't work."""
        self._send("failed", error)

    def change(self, action: Action, name: str) -> None:
        """Has a model loaded or unloaded in all workers.

        Raises:
            RequestError: why one of them couldn't.
        """
        answer: Future[tuple[str, int] | None] = Future()
        number = next(self._numbers)
        self._asked[number] = answer
        self._send("change", number, action, name)
        try:
            error = answer.result(_SECONDS)
        finally:
            self._asked.pop(number, None)
        if error is not None:
            raise RequestError(*error)

    def listen(self, actions: dict[Action, Callable[[str], None]]) -> None:
        """Does what the supervisor says, in a thread, until that is gone.

        Args:
            actions: load and unload a model in this process.
        """
        threading.Thread(
            target=self._listen, args=(actions,), name="sigcam-control", daemon=True
        ).start()

    def _listen(self, actions: dict[Action, Callable[[str], None]]) -> None:
        try:
            while True:
                kind, number, *rest = self._pipe.recv()
                if kind == "do":
                    action, name = rest
                    self._send("done", number, _outcome(actions[action], name))
                elif number in self._asked:
                    self._asked[number].set_result(rest[0])
        except (EOFError, OSError):
            self.stop.set()

    def _send(self, *message: Any) -> None:
        try:
            with self._lock:
                self._pipe.send(message)
        except OSError:  # the supervisor is gone
            self.stop.set()


def _outcome(action: Callable[[str], None], name: str) -> tuple[str, int] | None:
    """Does something with a model; returns the error's text and status, or None."""
    try:
        action(name)
    except RequestError as exc:
        return str(exc), exc.status
    except SigcamError as exc:
        return str(exc), 400
    return None
