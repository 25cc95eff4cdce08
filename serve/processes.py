"""Several processes that serve on one port: started, watched, and started again when they die.

Every worker opens the port by itself, with SO_REUSEPORT, and the kernel spreads connections over
them. Models are loaded in the workers, as a backend doesn't survive a fork. A new worker is forked
from a process that has imported all but the backend, and opens the port when its models are loaded.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from sigcam.core.cpus import thread_limit, usable_cpus
from sigcam.core.errors import SigcamError, UsageError
from sigcam.serve.control import Action, Control
from sigcam.serve.observe.logs import configure_logging
from sigcam.serve.observe.metrics import FOLDER, forget_process
from sigcam.serve.server import ServerSettings, listen, run_server

__all__ = ["run_workers"]

_log = logging.getLogger("sigcam.serve")

_LONGEST_PAUSE = 30.0
"""Seconds between two tries to start a worker that can't load its models any more."""


class WorkerError(SigcamError):
    """A worker couldn't begin; says why."""


def run_workers(
    settings: ServerSettings,
    host: str,
    holder: socket.socket,
    count: int,
    when_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serves with several processes until this one is told to end, by SIGTERM or Ctrl-C.

    Args:
        settings: what each of them serves.
        host: address that they listen on.
        holder: holds the port, bound and not listening.
        count: how many.
        when_ready: called when all of them have loaded their models.

    Raises:
        UsageError: this system doesn't spread connections over processes.
        WorkerError: a model can't be loaded.
    """
    if not hasattr(socket, "SO_REUSEPORT") or not hasattr(os, "fork"):
        raise UsageError("several workers need SO_REUSEPORT, which this system lacks; start one")
    share = max(1, (thread_limit() or usable_cpus()) // count)
    os.environ["OMP_NUM_THREADS"] = str(share)  # for the backends and OpenCV of the workers
    supervisor = _Supervisor(settings, (host, holder.getsockname()[1]), count, when_ready)
    before = {one: signal.signal(one, supervisor.end) for one in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory(prefix="sigcam-metrics-") as folder:
            os.environ[FOLDER] = folder  # where the workers add up what they count
            supervisor.run()
    finally:
        os.environ.pop(FOLDER, None)
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(eq=False)
class _Worker:
    """A process and the pipe to it."""

    process: Any
    pipe: Connection
    ready: bool = False
    error: str = ""


@dataclass(eq=False)
class _Change:
    """A model that is being loaded or unloaded everywhere, and whom to tell."""

    worker: _Worker
    number: int
    waiting: set[_Worker]
    action: Action
    name: str
    error: tuple[str, int] | None = None


@dataclass
class _Supervisor:
    """Keeps `count` workers alive."""

    settings: ServerSettings
    address: tuple[str, int]
    count: int
    when_ready: Callable[[], None]
    workers: list[_Worker] = field(default_factory=list)
    ending: float | None = None

    def __post_init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["sigcam.serve.server"])
        self._unloaded: set[str] = set()
        self._changes: dict[int, _Change] = {}
        self._last = 0
        self._began = False
        self._pause = 0.0
        self._not_before = 0.0

    def end(self, number: int, frame: FrameType | None) -> None:
        """Tells the workers to end; a signal handler."""
        del number, frame
        self.ending = self.ending or time.monotonic()
        for one in self.workers:
            one.process.terminate()

    def run(self) -> None:
        """Watches until all workers have ended as they were told."""
        try:
            while self.ending is None or self.workers:
                self._fill()
                waiting: list[Any] = [one.process.sentinel for one in self.workers]
                waiting += [one.pipe for one in self.workers]
                ready = wait(waiting, timeout=0.2)
                for one in list(self.workers):
                    if one.pipe in ready:
                        self._hear(one)
                    if not one.process.is_alive():
                        self._bury(one)
                self._end_late_ones()
        finally:
            for one in self.workers:
                one.process.kill()

    def _fill(self) -> None:
        """Starts workers that are missing, unless they should wait or not come again."""
        while (
            self.ending is None
            and len(self.workers) < self.count
            and time.monotonic() >= self._not_before
        ):
            here, there = self._context.Pipe()
            arguments = (self.settings, self.address, there, self._began, frozenset(self._unloaded))
            process = self._context.Process(target=_work, args=arguments, name="sigcam-worker")
            process.start()
            there.close()
            self.workers.append(_Worker(process, here))
            if self._pause:
                self._not_before = time.monotonic() + self._pause

    def _hear(self, worker: _Worker) -> None:
        """Takes one message of a worker."""
        try:
            kind, *rest = worker.pipe.recv()
        except (EOFError, OSError):
            return
        if kind == "ready":
            worker.ready, self._pause = True, 0.0
            if not self._began and all(one.ready for one in self.workers):
                self._began = True
                self.when_ready()
        elif kind == "failed":
            worker.error = rest[0]
        elif kind == "change":
            self._begin_change(worker, *rest)
        elif kind == "done":
            self._note_done(worker, *rest)

    def _bury(self, worker: _Worker) -> None:
        """Takes a worker off that has ended, and thinks about the next one."""
        while worker.pipe.poll():  # its last words
            before = worker.error
            self._hear(worker)
            if worker.error == before:
                break
        self.workers.remove(worker)
        worker.process.join()
        worker.pipe.close()
        forget_process(worker.process.pid, os.environ[FOLDER])
        for number in list(self._changes):
            self._note_done(worker, number, ("a worker died meanwhile; try again", 503))
        if self.ending is not None:
            return
        reason = worker.error or f"exit code {worker.process.exitcode}"
        if not self._began:
            raise WorkerError(worker.error or f"a worker ended at its start: {reason}")
        _log.warning("a worker ended (%s); another one is started", reason)
        if not worker.ready:
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause or 1.0)
            self._not_before = time.monotonic() + self._pause

    def _begin_change(self, worker: _Worker, number: int, action: Action, name: str) -> None:
        self._last += 1
        change = _Change(worker, number, set(self.workers), action, name)
        self._changes[self._last] = change
        for one in list(change.waiting):
            _send(one.pipe, "do", self._last, action, name)

    def _note_done(self, worker: _Worker, number: int, error: tuple[str, int] | None) -> None:
        change = self._changes.get(number)
        if change is None or worker not in change.waiting:
            return
        change.waiting.remove(worker)
        change.error = change.error or error
        if change.waiting:
            return
        del self._changes[number]
        if change.error is None:
            (self._unloaded.add if change.action == "unload" else self._unloaded.discard)(
                change.name
            )
        if change.worker in self.workers:
            _send(change.worker.pipe, "answer", change.number, change.error)

    def _end_late_ones(self) -> None:
        """Kills workers that don't end in the time that draining may take."""
        if self.ending is None:
            return
        options = self.settings.options
        late = options.drain_delay + 2 * options.drain_timeout + 5
        if time.monotonic() - self.ending > late:
            for one in self.workers:
                one.process.kill()


def _send(pipe: Connection, *message: Any) -> None:
    try:
        pipe.send(message)
    except OSError as exc:  # the worker has died, which is noticed by itself
        _log.debug("a message was not sent: %s", exc)


def _work(
    settings: ServerSettings,
    address: tuple[str, int],
    pipe: Connection,
    load_first: bool,
    unloaded: frozenset[str],
) -> None:
    """Is a worker: the whole of a process."""
    configure_logging(settings.log_format, settings.log_level)
    control = Control(pipe)
    try:
        run_server(
            settings,
            lambda: listen(*address, shared=True),
            control.ready,
            control=control,
            load_first=load_first,
            but=unloaded,
        )
    except SigcamError as exc:
        control.failed(str(exc))
        raise SystemExit(1) from None
