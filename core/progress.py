"""Progress: a bar on standard error, and what methods of several passes report to.

This is the one module that knows tqdm, which is imported with the first bar that is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

if TYPE_CHECKING:
    from tqdm import tqdm

__all__ = ["Bar", "Report", "cleared", "reporter", "somebody_waits", "write_line"]

Report: TypeAlias = Callable[[int, int], None]
"""Called with the passes done and the passes in all, for the image at hand."""


class Bar:
    """A bar on standard error with the time left, as a context manager.

    Args:
        total: number of steps; None where nobody knows it.
        unit: what one step is, such as "image".
        label: text before the bar.
        done: steps that an earlier run did, which don't count in the rate.
        shown: whether there is a bar at all. None shows it where standard error is a terminal:
            it is for a person who waits, and not for a log file.
        stays: whether the full bar stays on the screen.
        scaled: whether large numbers are shortened, as in "12.3k".

    Example:
        >>> with Bar(10, unit="image", shown=False) as bar:  # draws nothing
        ...     for _ in range(10):
        ...         bar.advance()
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str,
        label: str | None = None,
        done: int = 0,
        shown: bool | None = None,
        stays: bool = True,
        scaled: bool = False,
    ) -> None:
        self._bar: tqdm[Any] | None = None
        if somebody_waits() if shown is None else shown:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=label, unit=unit, unit_scale=scaled,
                leave=stays, file=sys.stderr,
            )  # fmt: skip

    def __enter__(self) -> Bar:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def advance(self, steps: int = 1) -> None:
        """Moves the bar on by a number of steps."""
        if self._bar is not None:
            self._bar.update(steps)

    def advance_to(self, done: int) -> None:
        """Moves the bar to a number of steps since its beginning, `done` of an earlier run too."""
        if self._bar is not None:
            self._bar.update(done - self._bar.n)

    def note(self, text: str, *, at_once: bool = False) -> None:
        """Sets the text after the bar.

        Args:
            text: the text, which takes the place of the one before.
            at_once: whether the bar is drawn again now, rather than with its next steps.
        """
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=at_once)

    def close(self) -> None:
        """Ends the bar; a second call does nothing."""
        if self._bar is not None:
            self._bar.close()


def somebody_waits() -> bool:
    """Says whether standard error is a terminal, so that a person sees what goes on.

    Example:
        >>> from unittest import mock
        >>> with mock.patch("sys.stderr", None):  # the caller closed it
        ...     somebody_waits()
        False
    """
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def cleared(stream: TextIO) -> Iterator[None]:
    """Takes the bars off the terminal while something is written to it, and draws them again.

    Where no bar is shown, or the stream is a file, it does nothing.

    Example:
        >>> with cleared(sys.stderr):
        ...     print("left out: broken.jpg", file=sys.stderr)
    """
    shown = "tqdm" in sys.modules and stream.isatty()
    if not shown:
        yield
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=stream):
        yield


def write_line(text: str) -> None:
    """Writes a line to standard error, above the bars that are there.

    Example:
        >>> write_line("left out: broken.jpg")  # on standard error
    """
    with cleared(sys.stderr):
        print(text, file=sys.stderr, flush=True)


def reporter(progress: bool | Report, label: str) -> Report:
    """Returns what to call after each run of the backend.

    Args:
        progress: True draws a bar on standard error for each image, with the time left; False
            draws nothing; a callable is used as it is.
        label: text before the bar.

    Example:
        >>> seen = []
        >>> report = reporter(lambda done, total: seen.append((done, total)), "passes")
        >>> report(1, 4)
        >>> seen
        [(1, 4)]
    """
    if callable(progress):
        return progress
    return _BarOfEach(label) if progress else _silent


def _silent(done: int, total: int) -> None:
    del done, total


class _BarOfEach:
    """One bar for each image, of as many steps as there are passes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if done >= total:
                return  # a single pass needs no bar
            self._bar = Bar(total, unit="pass", label=self._label, shown=True, stays=False)
        self._bar.advance_to(done)
        if done >= total:
            self._bar.close()
            self._bar = None
