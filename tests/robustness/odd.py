"""A kind of files whose items end in every way there is, to try the watch with."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from sigcam.core.errors import UsageError
from tests.robustness.target import Fault, Target

NAME = "tests.robustness.odd:Odd"
WAYS = (
    "works", "refused", "traceback", "hang", "crash", "exit", "memory", "message", "long",
    "unnoticed",
)  # fmt: skip


class _LongError(UsageError):
    def __str__(self) -> str:
        return "many words " * 1000


class Odd(Target):
    """Items end in the way that stands in the file that `damage` writes."""

    seconds = 1.0

    def make_corpus(self, folder: Path) -> None:
        (folder / "ways").write_text("\n".join(WAYS))

    def open(self, folder: Path) -> None:
        self._ways = (folder / "ways").read_text().splitlines()

    def damage(self, rng: random.Random, scratch: Path) -> str:
        way = rng.choice(self._ways)
        (scratch / "way").write_text(way)
        return way

    def check(self, rng: random.Random, scratch: Path) -> None:
        way = (scratch / "way").read_text()
        if way != "works":
            getattr(self, f"_{way}")()

    def _refused(self) -> None:
        raise UsageError("the number must be 3, got 4")

    def _traceback(self) -> None:
        raise KeyError("shape")

    def _hang(self) -> None:
        time.sleep(60)

    def _crash(self) -> None:
        os.abort()

    def _exit(self) -> None:
        os._exit(3)

    def _memory(self) -> None:
        bytearray(100 << 30)

    def _message(self) -> None:
        raise UsageError("bad")

    def _long(self) -> None:
        raise _LongError

    def _unnoticed(self) -> None:
        raise Fault("unnoticed", "verify passed it")


class Mild(Odd):
    """The same items, none of which ends the process."""

    def check(self, rng: random.Random, scratch: Path) -> None:
        pass
