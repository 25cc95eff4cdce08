"""Ctrl-C at a point where the state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Interruption:
    """While entered, the first Ctrl-C is only noted; a second one interrupts at once.

    An optimiser's step changes many tensors; an exception in its middle would leave
    neither the old nor the new state. The training loop looks at `asked` between steps.
    In a thread other than the main one (where Python allows no signal handlers) it does
    nothing, and `asked` stays False.
    """

    def __init__(self) -> None:
        self.asked = False
        self._installed = False

    def __enter__(self) -> Interruption:  # noqa: PYI034 (Self came with Python 3.11)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, self._before)
            self._installed = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
