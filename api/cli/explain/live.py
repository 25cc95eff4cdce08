"""`sigcam explain` on a live source: the newest frames in, lines and an overlay video out."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.cli.common import EXIT_FAILED, fail, say
from sigcam.cli.explain.output import Plan, Rate, print_results
from sigcam.cli.explain.video import (
    Choice,
    Numbered,
    check_model,
    drawn,
    say_notes,
    say_written,
)
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    from sigcam.images.video.live import LiveSource
    from sigcam.runtime.explanation import Explanation
    from sigcam.runtime.session import Session

_UNKNOWN_RATE = 30.0
"""Frames a second of an overlay video of one rate, where the source doesn't say its own."""


def explain_live(
    session: Session,
    address: str,
    plan: Plan,
    out: Path | None,
    choice: Choice,
    max_pixels: int,
    reconnect: int,
) -> None:
    """Prints the results of the newest frames until the source ends, or Ctrl-C does.

    Args:
        session: that explains; of one image at a time, or frames would wait for others.
        address: a camera, an address or a named pipe.
        plan: what is asked of each frame.
        out: the overlay video; None writes none. It has the explained frames, each at the time at
            which it came; Ctrl-C and SIGTERM leave it whole.
        choice: which of the frames that come may be explained.
        max_pixels: larger frames are refused.
        reconnect: how many times in a row a source that failed or ended is opened again.

    Example:
        plan = Plan(None, 1, method=None, readers=1, as_json=True, verbose=False)
        explain_live(session, "camera:0", plan, None, Choice(fps=2), DEFAULT_MAX_PIXELS, 0)
    """
    from sigcam.core.threads import WAITING, Stopwatch, in_order
    from sigcam.images.video import LiveSource, write_video

    check_model(session)
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        source = stack.enter_context(
            LiveSource(address, wanted=choice.wanted(), reconnect=reconnect, max_pixels=max_pixels)
        )
        stack.enter_context(stopped_by_signals(source))
        name = source.name
        said = say_notes(name, source.notes, 0)
        say(f"{name}: {source.width} x {source.height} pixels, by {source.reader}; Ctrl-C ends it")
        writer = None
        if out is not None:
            rate = min(source.fps or _UNKNOWN_RATE, 2 * _UNKNOWN_RATE)
            writer = stack.enter_context(write_video(out, source.width, source.height, rate))
        rate_of = Rate(stopwatch)
        frames = Numbered(source.timed())
        # Without readers: they would hold frames that are old by the time of their turn.
        results = session.stream(frames, **plan.question, readers=0, stopwatch=stopwatch)
        stack.enter_context(closing(results))

        def write(result: list[Explanation]) -> None:
            number, seconds = frames.next()
            more = {"frame": number, "seconds": seconds}
            print_results(f"{name}#{number}", result, as_json=plan.as_json, **more)
            if writer is not None:
                writer.write(drawn(result[0].image, result[0], plan.overlay), seconds)

        done = in_order(write, results, 1, "sigcam-write", WAITING)
        stack.enter_context(closing(done))
        count = 0
        with Bar(None, unit="frame") as bar:
            for _ in done:
                count += 1
                bar.advance()
    say_notes(name, source.notes, said)
    say(
        f"{rate_of.text(count, 'frames')}; of {source.read} that came, {source.dropped} were "
        "dropped for newer ones"
    )
    if out is not None and writer is not None:
        say_written(out, writer, source.width, source.height)
    _say_end(source)


def _say_end(source: LiveSource) -> None:
    if source.reconnected:
        say(f"{source.name} was opened again {source.reconnected} times")
    if source.ended is None:
        say(f"{source.name} was stopped")
    elif source.failed:
        fail(source.ended, EXIT_FAILED)
    else:
        say(source.ended)


@contextmanager
def stopped_by_signals(source: LiveSource) -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM end the source, so that what was written so far becomes whole.

    A second one interrupts the program as usual. In a thread other than the main one, where
    Python allows no signal handlers, they stay what they were.

    Example:
        with LiveSource("camera:0") as camera, stopped_by_signals(camera):
            ...
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}

    def stop(*_: object) -> None:
        source.stop()
        restore()

    def restore() -> None:
        for one, handler in before.items():
            if handler is not None:
                signal.signal(one, handler)

    for one, handler in before.items():
        if handler is not signal.SIG_IGN:  # as of a job in a shell's background
            signal.signal(one, stop)
    try:
        yield
    finally:
        restore()
