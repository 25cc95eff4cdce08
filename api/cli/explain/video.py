"""`sigcam explain` on a video: frames in, lines and an overlay video out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from sigcam.cli.common import EXIT_FAILED, fail, say
from sigcam.cli.explain.output import Plan, Rate, print_results
from sigcam.core.errors import UsageError
from sigcam.core.progress import Bar

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sigcam.images.video import VideoReader, VideoWriter
    from sigcam.runtime.explanation import Explanation
    from sigcam.runtime.session import Session


def explain_video(
    session: Session, path: Path, plan: Plan, out: Path | None, every: int, max_pixels: int
) -> None:
    """Prints the results of every Nth frame, and writes the overlay video.

    Args:
        session: that explains.
        path: the video.
        plan: what is asked of each frame.
        out: the overlay video; None writes none. It has every frame, at the rate of the video;
            those between explained ones show the latest map.
        every: N.
        max_pixels: larger frames are refused.

    Example:
        plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        explain_video(session, Path("clip.mp4"), plan, Path("overlay.mp4"), 5, DEFAULT_MAX_PIXELS)
    """
    from sigcam.core.threads import WAITING, Stopwatch, in_order
    from sigcam.images.video import VideoReader

    preprocessing = session.spec.preprocessing
    if preprocessing.channels not in (1, 3) or not preprocessing.takes_bytes:
        raise UsageError(
            f"a video has frames of 8 bits in RGB, this model takes {preprocessing.channels} "
            f"channels with the scale {preprocessing.scale:g}; explain images as files or arrays"
        )
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(path, max_pixels))
        overlays = None if out is None else _overlays(stack, video, out, every)
        rate = Rate(stopwatch)
        results = session.stream(
            video.frames(every),
            classes=plan.classes,
            top_k=plan.top_k,
            min_probability=plan.min_probability,
            method=plan.method,
            method_options=plan.method_options,
            readers=plan.readers,
            stopwatch=stopwatch,
        )
        stack.enter_context(closing(results))

        def write(numbered: tuple[int, list[Explanation]]) -> None:
            index, result = numbered
            frame = index * every
            more = {"frame": frame, "seconds": None if video.fps is None else frame / video.fps}
            print_results(f"{path}#{frame}", result, as_json=plan.as_json, **more)
            if overlays is not None:
                overlays.add(result[0])

        done = in_order(write, enumerate(results), 1, "sigcam-write", WAITING)
        stack.enter_context(closing(done))
        _count(done, video, every)
    say(rate.text(video.read, "frames"))
    if overlays is not None:
        say(f"{out}: {overlays.written} frames of {_size(video)}, without sound")
    if video.problem is not None:
        fail(video.problem, EXIT_FAILED)


class _Overlays:
    """Draws and writes the frames of the overlay video."""

    def __init__(
        self, writer: VideoWriter, between: Iterator[npt.NDArray[np.uint8]] | None, every: int
    ) -> None:
        self._writer = writer
        self._between = between
        self._every = every

    @property
    def written(self) -> int:
        """Counts the frames written."""
        return self._writer.written

    def add(self, explanation: Explanation) -> None:
        """Writes an explained frame and those up to the next one."""
        from sigcam.images.overlay import ALPHA, draw

        heatmap = explanation.heatmap if explanation.valid else None
        images: Iterable[npt.NDArray[np.uint8]] = [explanation.image]
        if self._between is not None:
            images = islice(self._between, self._every)
        for image in images:
            self._writer.write(draw(image, heatmap, explanation.crop_box, ALPHA))


def _overlays(stack: ExitStack, video: VideoReader, out: Path, every: int) -> _Overlays:
    from sigcam.core.errors import VideoError
    from sigcam.images.video import VideoReader, write_video

    if video.fps is None:
        raise VideoError(f"{video.path} doesn't say its frame rate; convert it, to MP4 for one")
    between = None
    if every > 1:
        # The frames between the explained ones are read again: kept until their map is there,
        # they would fill the memory.
        between = stack.enter_context(VideoReader(video.path)).frames()
    writer = stack.enter_context(write_video(out, video.width, video.height, video.fps))
    return _Overlays(writer, between, every)


def _count(done: Iterable[None], video: VideoReader, every: int) -> None:
    """Goes through the frames, with a bar and the rate for a person who waits."""
    with Bar(video.promised, unit="frame") as bar:
        for _ in done:
            bar.advance(every)


def _size(video: VideoReader) -> str:
    # Encoders leave out the last row or column of an odd size.
    return f"{video.width // 2 * 2} x {video.height // 2 * 2} pixels"


def the_video(
    arguments: tuple[str, ...], plan: Plan, out: Path | None, suffix: str | None, every: int | None
) -> Path | None:
    """Finds the video that is to be explained; None where the arguments are images.

    A video is known by its suffix, and is explained alone: its output is one file. Those in
    folders are left to a call of their own.

    Raises:
        UsageError: a video beside other arguments, or options that don't fit.

    Example:
        >>> from sigcam.cli.explain.output import Plan
        >>> plan = Plan(None, 1, method=None, readers=2, as_json=False, verbose=False)
        >>> the_video(("cat.jpg", "dog.jpg"), plan, None, None, None)
        >>> the_video(("clip.mp4",), plan, Path("overlay.mp4"), None, None).name
        'clip.mp4'
    """
    from sigcam.images.video import VIDEO_SUFFIXES, codec_of

    videos = [Path(a) for a in arguments if _is_named(a, VIDEO_SUFFIXES)]
    if not videos:
        if every is not None:
            raise UsageError("--every is for a video; the arguments are images")
        if out is not None and out.suffix.lower() in VIDEO_SUFFIXES and not out.is_dir():
            raise UsageError(
                f"--out names a folder for images, got {out}; a video comes out of a video"
            )
        return None
    if len(arguments) > 1:
        raise UsageError(f"a video is explained alone; call once for {videos[0]} by itself")
    if suffix is not None:
        raise UsageError("--format is for images; a video's format is --out's suffix")
    if out is not None:
        codec_of(out)
        if out.exists() and out.samefile(videos[0]):
            raise UsageError(f"--out is the video itself, {out}; name another file")
        if plan.min_probability is not None:
            raise UsageError(
                "an overlay video shows one class in every frame, and --min-probability asks for "
                "any number of them; leave out one of the two"
            )
        count = plan.top_k if plan.classes is None else len(plan.classes)
        if count > 1:
            raise UsageError(
                f"an overlay video shows one class, got {count}; leave out --out, or call once "
                "for each"
            )
    return videos[0]


def _is_named(argument: str, suffixes: frozenset[str]) -> bool:
    path = Path(argument)
    return path.suffix.lower() in suffixes and not path.is_dir()
