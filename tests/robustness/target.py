"""What a kind of files is to the campaign: whole files to begin with, damage, and a check."""

from __future__ import annotations

import random
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from sigcam.core.errors import SigcamError

LONGEST_MESSAGE = 4_000
"""Characters; a longer message isn't a sentence but a part of the damaged file."""


class Fault(Exception):  # noqa: N818  (it is what the campaign looks for)
    """Something that must not happen, such as a changed file that `verify` lets pass.

    Args:
        outcome: its class in the table, such as "unnoticed".
        text: what was seen.
    """

    def __init__(self, outcome: str, text: str) -> None:
        super().__init__(text)
        self.outcome = outcome


class Target(Protocol):
    """A kind of files. One object serves one worker process.

    Attributes:
        seconds: the longest that one item may compute.
    """

    seconds: float = 5.0

    def make_corpus(self, folder: Path) -> None:
        """Writes the whole files that are damaged; called once for all workers."""

    def open(self, folder: Path) -> None:
        """Reads the corpus; called in each worker before its first item."""

    def damage(self, rng: random.Random, scratch: Path) -> str:
        """Writes one damaged file (or several that belong together) into an empty folder.

        Returns:
            What was done, in words: "JPEG: bytes removed".
        """

    def check(self, rng: random.Random, scratch: Path) -> None:
        """Uses what `damage` wrote as a user would. Returns where all of it worked.

        Raises:
            SigcamError: refused, as it should be where it doesn't work.
            Fault: what must not happen and is no exception by itself.
        """


def judge(
    target: Target, rng: random.Random, scratch: Path, tell: Callable[[str], object]
) -> tuple[str, str, str]:
    """Damages a file, uses it, and says how that ended.

    Args:
        target: the kind of files.
        rng: what the damage follows from.
        scratch: an empty folder.
        tell: gets what was done, before the file is used.

    Returns:
        The outcome ("works", "refused", "traceback", "message" or that of a `Fault`), what was
        done, and the error's text; for a traceback with the innermost frames.
    """
    done = target.damage(rng, scratch)
    tell(done)
    try:
        target.check(rng, scratch)
    except SigcamError as exc:
        text = str(exc)
        wrong = _no_sentence(text)
        return ("message", done, wrong) if wrong else ("refused", done, shortened(text))
    except Fault as exc:
        return exc.outcome, done, shortened(str(exc))
    except Exception as exc:
        # Of our own code and the library below, without the campaign's frames.
        frames = traceback.extract_tb(exc.__traceback__)[-4:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        return "traceback", done, shortened(f"{type(exc).__name__}: {exc} ({where})")
    return "works", done, ""


def use_all(uses: Iterable[Callable[[], object]]) -> None:
    """Does all of them, whichever refuse.

    Raises:
        SigcamError: the first of those that refused.
    """
    refused = []
    for use in uses:
        try:
            use()
        except SigcamError as exc:  # noqa: PERF203
            refused.append(exc)
    if refused:
        raise refused[0]


def shortened(text: str, limit: int = 300) -> str:
    return text if len(text) <= limit else f"{text[:limit]}..."


def _no_sentence(text: str) -> str:
    """Says what is wrong with an error's text; empty if nothing is."""
    if len(text) > LONGEST_MESSAGE:
        return f"a message of {len(text)} characters: {shortened(text)}"
    if len(text.split()) < 4:
        return f"no sentence: {text!r}"
    return ""
