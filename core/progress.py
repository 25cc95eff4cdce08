"""Telling how far a method of several passes has come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tqdm import tqdm

Report: TypeAlias = Callable[[int, int], None]
"""Called with the passes done and the passes in all, for the image at hand."""


def reporter(progress: bool | Report, label: str) -> Report:
    """What to call after each run of the backend.

    Args:
        progress: True: a bar on standard error for each image, with the time left; False:
            nothing; a callable is used as it is.
        label: before the bar.
    """
    if callable(progress):
        return progress
    return _Bar(label) if progress else _silent


def _silent(done: int, total: int) -> None:
    del done, total


class _Bar:
    """One bar for each image, of as many steps as there are passes."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: tqdm[Any] | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            if done >= total:
                return  # a single pass needs no bar
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, desc=self._label, unit="pass", file=sys.stderr, leave=False
            )
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
            self._bar = None
