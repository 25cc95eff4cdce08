"""Runs the items of a campaign in worker processes, under limits of time and memory.

A worker that crashes, hangs or takes too much memory costs one item, which is told by its number:
what an item does follows from the kind of files, the seed and this number alone.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.robustness.target import Target, judge
from tests.robustness.targets import make_target

WAITING = 6
"""How many times as long an item may take by the clock: other programs may keep the cores busy."""

START_SECONDS = 300.0
"""The longest that a worker may take to import what it needs and to open the corpus."""

ITEM_BYTES = 4 << 30
"""The most address space that an item may take beside what the worker has: an image of as many
pixels as are decoded takes 512 MiB for each of its copies."""

_DONE = "done.txt"
"""Where a worker writes what it did to the file at hand, in case that ends it."""

GOOD = ("works", "refused")
"""The outcomes that a file may have; all others are faults."""


@dataclass(frozen=True)
class Result:
    """How one item ended.

    Attributes:
        item: its number.
        outcome: "works", "refused", "traceback", "message", "hang", "crash" or that of a `Fault`.
        done: what was done to the file.
        text: the error's.
        seconds: that it took.
    """

    item: int
    outcome: str
    done: str = ""
    text: str = ""
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.outcome in GOOD


def run_item(name: str, seed: int, item: int, folder: Path) -> Result:
    """Runs one item in this process, for a look at what it does.

    Args:
        name: the kind of files.
        seed, item: what it follows from.
        folder: the whole files, which are made if it isn't there.
    """
    target = _opened(name, folder)
    with tempfile.TemporaryDirectory() as scratch:
        case = Path(scratch, "case")
        case.mkdir()
        return _judged(target, name, seed, item, case)


def run_items(name: str, seed: int, items: range, folder: Path, workers: int) -> Iterator[Result]:
    """Runs items in worker processes.

    Args:
        name: the kind of files.
        seed: of the campaign.
        items: the numbers.
        folder: the whole files, which are made if it isn't there.
        workers: processes at the same time.

    Yields:
        The result of each item, in any order. An item over the limit of time is tried once more
        in a worker of its own: it counts as a hang if it is over the limit again.
    """
    todo = iter(items)
    crew = [_Worker(name, seed, folder) for _ in range(min(workers, len(items)))]
    slow = []
    try:
        crew[0].start()  # makes the whole files, before the others look for them
        busy = [worker for worker in crew if worker.give(next(todo, None))]
        while busy:
            wait([worker.pipe for worker in busy], timeout=0.2)
            for worker in list(busy):
                result = worker.result()
                if result is None:
                    continue
                if result.outcome == "hang":
                    slow.append(result.item)
                else:
                    yield result
                if not worker.give(next(todo, None)):
                    busy.remove(worker)
        for item in slow:
            yield crew[0].again(item)
    finally:
        for worker in crew:
            worker.stop()


class _Worker:
    """A process that judges one item after another; it is started when an item is given."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self._arguments = name, seed, folder
        self._process: multiprocessing.process.BaseProcess | None = None
        self._busy = False
        self.pipe: Connection

    def give(self, item: int | None) -> bool:
        """Hands over an item; returns whether there was one."""
        if item is None:
            return False
        if self._process is None:
            self.start()
        self._item, self._begun, self._busy = item, time.monotonic(), True
        self._computed_before = self._computed()
        self.pipe.send(item)
        return True

    def result(self) -> Result | None:
        """Returns the item's result; None while it is at work."""
        seconds = time.monotonic() - self._begun
        try:
            if self.pipe.poll():
                result = Result(**self.pipe.recv())
                self._busy = False
                return result
        except EOFError:
            return self._gone(seconds)
        computed = self._computed() - self._computed_before
        if computed > self._limit or seconds > WAITING * self._limit:
            told = f"not done after {computed:.1f} s of computing, {seconds:.1f} by the clock"
            return self._ended("hang", told, seconds)
        return None

    def again(self, item: int) -> Result:
        """Runs an item that took too long, while nothing else of the campaign runs."""
        self.give(item)
        while (result := self.result()) is None:
            time.sleep(0.01)
        return result

    def stop(self) -> None:
        if self._process is not None:
            self.pipe.close()  # which ends a worker that waits
            self._process.join(0.0 if self._busy else 2.0)
            self._process.kill()
            self._process.join()
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._process, self._busy = None, False

    def start(self) -> None:
        self.pipe, theirs = _CONTEXT.Pipe()
        self._scratch = Path(tempfile.mkdtemp(prefix="sigcam-robustness-"))
        self._process = _CONTEXT.Process(
            target=_work, args=(theirs, *self._arguments, self._scratch), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            self._limit = self.pipe.recv() if self.pipe.poll(START_SECONDS) else 0.0
        except EOFError:
            self._limit = 0.0
        if not self._limit:
            raise RuntimeError(f"a worker for {self._arguments[0]} didn't start; see above")

    def _computed(self) -> float:
        """Returns the processor's seconds that the worker has taken."""
        assert self._process is not None
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            return self._computed_before
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _gone(self, seconds: float) -> Result:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._ended("crash", f"the process ended by {how}", seconds)

    def _ended(self, outcome: str, text: str, seconds: float) -> Result:
        """Stops the worker; what it did last stands in its folder."""
        done = self._scratch / _DONE
        told = done.read_text() if done.is_file() else ""
        self.stop()
        return Result(self._item, outcome, told, text, seconds)


_CONTEXT = multiprocessing.get_context("spawn")


def _opened(name: str, folder: Path) -> Target:
    """Makes the whole files of a kind, unless they are there, and opens them."""
    target = make_target(name)
    if not folder.is_dir():
        unfinished = folder.with_name(f"{folder.name}-unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        target.make_corpus(unfinished)
        unfinished.rename(folder)
    target.open(folder)
    return target


def _work(pipe: Connection, name: str, seed: int, folder: Path, scratch: Path) -> None:
    """Is the worker: judges the items that come until the pipe closes."""
    target = _opened(name, folder)
    # What libraries print about damaged files would drown the campaign's own lines.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ITEM_BYTES, size + ITEM_BYTES))
    pipe.send(target.seconds)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        case = scratch / "case"
        case.mkdir()
        (scratch / _DONE).unlink(missing_ok=True)
        pipe.send(asdict(_judged(target, name, seed, item, case)))
        shutil.rmtree(case)


def _judged(target: Target, name: str, seed: int, item: int, scratch: Path) -> Result:
    rng = random.Random(f"{seed} {item}")
    begun = time.monotonic()
    outcome, done, text = judge(target, rng, scratch, scratch.with_name(_DONE).write_text)
    return Result(item, outcome, done, text, time.monotonic() - begun)
