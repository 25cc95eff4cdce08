"""`sigcam explain` on a video: frames in, lines and an overlay video out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.cli.common import EXIT_FAILED, fail, say
from sigcam.cli.explain.output import Plan, Rate, print_results
from sigcam.cli.explain.overlay import with_shared_range
from sigcam.core.errors import UsageError
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sigcam.images.overlay import OverlayOptions
    from sigcam.images.video.frames import Frame, Wanted
    from sigcam.images.video.reader import VideoReader
    from sigcam.images.video.writer import VideoWriter
    from sigcam.runtime.explanation import Explanation
    from sigcam.runtime.session import Session


@dataclass(frozen=True)
class Choice:
    """Which frames are explained; all of them by default.

    Attributes:
        every: every Nth.
        fps: so many a second.
    """

    every: int | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        if self.every is not None and self.fps is not None:
            raise UsageError("--every counts frames and --fps seconds; give one of them")

    @property
    def is_all(self) -> bool:
        """Says whether every frame is explained."""
        return self.fps is None and self.every in (None, 1)

    def wanted(self) -> Wanted:
        """Returns what says whether a frame is wanted, anew for each pass."""
        from sigcam.images.video.frames import every_nth, per_second

        return every_nth(self.every or 1) if self.fps is None else per_second(self.fps)


def explain_video(
    session: Session,
    path: Path | str,
    plan: Plan,
    out: Path | None,
    choice: Choice,
    max_pixels: int,
) -> None:
    """Prints the results of the chosen frames, and writes the overlay video.

    Args:
        session: that explains.
        path: the video, or its address.
        plan: what is asked of each frame.
        out: the overlay video; None writes none. It has every frame, at the time of the video's;
            those between explained ones show the latest map.
        choice: which frames are explained.
        max_pixels: larger frames are refused.

    Example:
        plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        clip, choice = Path("clip.mp4"), Choice(every=5)
        explain_video(session, clip, plan, Path("overlay.mp4"), choice, DEFAULT_MAX_PIXELS)
    """
    from sigcam.core.threads import WAITING, Stopwatch, in_order
    from sigcam.images.video import VideoReader
    from sigcam.images.video.notes import without_password

    check_model(session)
    if plan.shares_range:
        with VideoReader(path, max_pixels) as first:
            images = (frame.image for frame in first.timed(choice.wanted()))
            plan = with_shared_range(plan, session, images)
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(path, max_pixels))
        name = without_password(str(path))
        said = say_notes(name, video.notes, 0)
        overlays = None if out is None else _overlays(stack, video, out, choice, plan.overlay)
        rate = Rate(stopwatch)
        frames = Numbered(video.timed(choice.wanted()))
        results = session.stream(frames, **plan.question, readers=plan.readers, stopwatch=stopwatch)
        stack.enter_context(closing(results))

        def write(result: list[Explanation]) -> None:
            number, seconds = frames.next()
            more = {"frame": number, "seconds": seconds}
            print_results(f"{name}#{number}", result, as_json=plan.as_json, **more)
            if overlays is not None:
                overlays.add(number, seconds, result[0])

        done = in_order(write, results, 1, "sigcam-write", WAITING)
        stack.enter_context(closing(done))
        _count(done, video)
        if overlays is not None:
            overlays.finish()
    say_notes(name, video.notes, said)
    say(f"{rate.text(video.read, 'frames')}; read by {video.reader}")
    if overlays is not None:
        say_written(out, overlays.writer, video.width, video.height)
    if video.problem is not None:
        fail(video.problem, EXIT_FAILED)


class Numbered:
    """Passes on the images of frames, and keeps their numbers and times for their results."""

    def __init__(self, frames: Iterable[Frame]) -> None:
        """Takes the frames; results come in the same order."""
        self._frames = frames
        self._waiting: deque[tuple[int, float]] = deque()

    def __iter__(self) -> Iterator[npt.NDArray[np.uint8]]:
        for frame in self._frames:
            self._waiting.append((frame.number, frame.seconds))
            yield frame.image
            del frame  # the consumer's alone, while the next one is made

    def next(self) -> tuple[int, float]:
        """Returns number and seconds of the frame whose result comes next."""
        return self._waiting.popleft()


def check_model(session: Session) -> None:
    """Refuses a model that doesn't take the frames of a video.

    Raises:
        UsageError: it takes other channels than grey or RGB, or other values than bytes.
    """
    preprocessing = session.spec.preprocessing
    if preprocessing.channels not in (1, 3) or not preprocessing.takes_bytes:
        raise UsageError(
            f"a video has frames of 8 bits in RGB, this model takes {preprocessing.channels} "
            f"channels with the scale {preprocessing.scale:g}; explain images as files or arrays"
        )


def say_written(out: Path | None, writer: VideoWriter, width: int, height: int) -> None:
    """Tells what the overlay video has."""
    sound = "with its sound" if writer.sound else "without sound"
    # Encoders leave out the last row or column of an odd size.
    size = f"{width // 2 * 2} x {height // 2 * 2} pixels"
    say(f"{out}: {writer.written} frames of {size}, {sound}, by {writer.encoder}")
    for note in writer.notes:
        say(f"{out}: {note}")


class _Overlays:
    """Draws and writes the frames of the overlay video."""

    def __init__(
        self,
        writer: VideoWriter,
        between: Iterator[Frame] | None,
        options: OverlayOptions | None,
    ) -> None:
        self.writer = writer
        self._between = between
        self._options = options
        self._held: Frame | None = None
        self._latest: Explanation | None = None

    def add(self, number: int, seconds: float, explanation: Explanation) -> None:
        """Writes an explained frame, after those that come before it and show the map before."""
        if self._between is None:
            self._write(explanation.image, seconds, explanation)
            return
        self._write_until(number)
        self._latest = explanation

    def finish(self) -> None:
        """Writes the frames after the last explained one."""
        if self._between is not None:
            self._write_until(None)

    def _write_until(self, number: int | None) -> None:
        while self._between is not None:
            frame = self._held or next(self._between, None)
            self._held = frame
            if frame is None or (number is not None and frame.number >= number):
                return
            self._write(frame.image, frame.seconds, self._latest)
            self._held = None

    def _write(
        self, image: npt.NDArray[np.uint8], seconds: float, explanation: Explanation | None
    ) -> None:
        self.writer.write(drawn(image, explanation, self._options), seconds)


def drawn(
    image: npt.NDArray[np.uint8], explanation: Explanation | None, options: OverlayOptions | None
) -> npt.NDArray[np.uint8]:
    """Draws an explanation over a frame, its own or a later one."""
    from sigcam.images.overlay import DEFAULTS

    return image if explanation is None else explanation.overlay(options or DEFAULTS, image)


def _overlays(
    stack: ExitStack,
    video: VideoReader,
    out: Path,
    choice: Choice,
    options: OverlayOptions | None,
) -> _Overlays:
    from sigcam.images.video import VideoReader, write_video

    between = None
    if not choice.is_all:
        # The frames between the explained ones are read again: kept until their map is there,
        # they would fill the memory.
        again = stack.enter_context(VideoReader(video.path))
        between = stack.enter_context(closing(again.timed(lambda *_: True)))
    writer = write_video(out, video.width, video.height, video.fps, source=video)
    return _Overlays(stack.enter_context(writer), between, options)


def _count(done: Iterable[None], video: VideoReader) -> None:
    """Goes through the frames, with a bar and the rate for a person who waits."""
    with Bar(video.promised, unit="frame") as bar:
        for _ in done:
            bar.advance_to(video.read)


def say_notes(name: str, notes: list[str], said: int) -> int:
    """Tells the notes from a number on; returns how many have been told then."""
    for note in notes[said:]:
        say(f"{name}: {note}")
    return len(notes)
