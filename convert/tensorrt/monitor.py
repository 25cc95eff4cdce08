"""A build's progress, and the way to break it off."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class _Bar:
    """The bar of a build: the steps of its outermost phase, and the name of the innermost."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._outermost: str | None = None
        self._bar: Any = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        if parent is None and self._show:
            from tqdm import tqdm

            self._outermost = name
            self._bar = tqdm(total=steps, desc=name, unit="step", file=sys.stderr, leave=False)
        elif self._bar is not None:
            self._bar.set_postfix_str(name)

    def step(self, name: str, step: int) -> None:
        """A step of a phase is done."""
        if self._bar is not None and name == self._outermost:
            self._bar.update(step + 1 - self._bar.n)

    def finish(self, name: str) -> None:
        """A phase ends."""
        if name == self._outermost:
            self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def make_monitor(module: Any, *, show: bool) -> Any:
    """A progress monitor for `IBuilderConfig.progress_monitor`.

    Args:
        module: the TensorRT package.
        show: whether a bar is drawn on standard error.

    Returns:
        The monitor. `stop()` ends the build after the step at hand; `close()` removes the bar.
    """
    bar = _Bar(show=show)

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Called by TensorRT from any of its threads."""

        def __init__(self) -> None:
            module.IProgressMonitor.__init__(self)
            self.stopped = False
            self._lock = threading.Lock()

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            with self._lock:
                bar.start(name, parent, steps)

        def step_complete(self, name: str, step: int) -> bool:
            with self._lock:
                bar.step(name, step)
            return not self.stopped

        def phase_finish(self, name: str) -> None:
            with self._lock:
                bar.finish(name)

        def stop(self) -> None:
            self.stopped = True

        def close(self) -> None:
            with self._lock:
                bar.close()

    return Monitor()


def run_stoppable(work: Callable[[], T], stop: Callable[[], None]) -> T:
    """Runs `work` in a thread of its own and waits for it.

    Python's own answer to Ctrl-C is an exception in whatever Python code the main thread
    is in. In a callback of TensorRT's it would have to pass through C++, which can't let it;
    in Thread.join() it makes CPython before 3.13 take the thread for ended, and a builder
    that calls back when the interpreter goes away ends the process by abort(). So here
    Ctrl-C only asks `work` to end. (In a thread other than the main one Python allows no
    signal handlers, and Ctrl-C doesn't arrive.)

    Args:
        work: what to do.
        stop: asks it to end soon; called at Ctrl-C.

    Returns:
        What `work` returns.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; `work` has ended by then.
    """
    done: list[T] = []
    failed: list[BaseException] = []
    interrupted = False

    def run() -> None:
        try:
            done.append(work())
        except BaseException as exc:
            failed.append(exc)

    def note(*_: object) -> None:
        nonlocal interrupted
        interrupted = True
        stop()

    before = signal.getsignal(signal.SIGINT)
    handles = (
        threading.current_thread() is threading.main_thread()
        and before is not signal.SIG_IGN  # as in a job in a shell's background
        and before is not None  # which is a handler of the C program around Python
    )
    if handles:
        signal.signal(signal.SIGINT, note)
    try:
        thread = threading.Thread(target=run, name="sigcam build-engine")
        thread.start()
        while thread.is_alive():
            thread.join(0.1)  # not for ever: on Windows nothing interrupts a lock
    finally:
        if handles:
            signal.signal(signal.SIGINT, before)
    if interrupted:
        raise KeyboardInterrupt
    if failed:
        raise failed[0]
    return done[0]
