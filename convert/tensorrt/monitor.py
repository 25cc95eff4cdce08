"""The bar of a build, and the way to break it off."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from sigcam.core.progress import Bar

T = TypeVar("T")


class _PhaseBar:
    """A bar over the steps of a build's outermost phase, with the name of the innermost."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._outermost: str | None = None
        self._bar: Bar | None = None

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Notes that a phase begins."""
        if parent is None and self._show:
            self._outermost = name
            self._bar = Bar(steps, unit="step", label=name, shown=True, stays=False)
        elif self._bar is not None:
            self._bar.note(name, at_once=True)

    def step(self, name: str, step: int) -> None:
        """Notes that a step of a phase is done."""
        if self._bar is not None and name == self._outermost:
            self._bar.advance_to(step + 1)

    def finish(self, name: str) -> None:
        """Notes that a phase ends."""
        if name == self._outermost:
            self.close()

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def make_monitor(module: Any, *, show: bool) -> Any:
    """Makes a progress monitor for `IBuilderConfig.progress_monitor`.

    Args:
        module: the imported TensorRT package.
        show: whether a bar is drawn on standard error.

    Returns:
        The monitor. `stop()` ends the build after the step at hand; `close()` removes the bar.

    Example:
        config.progress_monitor = monitor = make_monitor(tensorrt, show=True)
    """
    bar = _PhaseBar(show=show)

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Moves the bar, and asks to stop; TensorRT calls it from any of its threads."""

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

    Python answers Ctrl-C with an exception in whatever Python code the main thread is in. In a
    callback of TensorRT's, the exception would have to pass through C++, which can't let it. In
    Thread.join() it makes CPython before 3.13 take the thread for ended, and a builder that
    calls back when the interpreter goes away ends the process by abort(). So here Ctrl-C only
    asks `work` to end. (In a thread other than the main one Python allows no signal handlers,
    and Ctrl-C doesn't arrive.)

    Args:
        work: what is run.
        stop: asks `work` to end soon; it is called at Ctrl-C.

    Returns:
        What `work` returns; what it raises is raised here.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; `work` has ended by then.

    Example:
        >>> run_stoppable(lambda: sum(range(5)), stop=lambda: None)
        10
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
