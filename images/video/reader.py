"""Video files: frames in, at the times of the container, upright and of square pixels.

PyAV reads where it is installed, OpenCV elsewhere; both use FFmpeg, and give the same frames at the
same times. PyAV decodes more (AV1), counts what is damaged, and tells of interlaced frames.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Literal

from sigcam.core.errors import VideoError
from sigcam.core.types import Array
from sigcam.images.video.frames import Frame, Source, Wanted, every_nth
from sigcam.images.video.header import read_header
from sigcam.images.video.notes import too_large, without_password
from sigcam.images.video.opencv import OpenCVSource
from sigcam.images.video.pyav import PyAVSource, uses_pyav


class VideoReader:
    """An opened video. A context manager that closes it.

    Attributes:
        path: the file, or its address.
        reader: the library that reads it, with its version.
        width, height: of the frames, upright and of square pixels, in pixels.
        fps: frames a second on average, as the file says; None where it doesn't.
        promised: number of frames by the file's header, an estimate in some formats; None where
            it says nothing.
        read: number of frames that were passed so far.
        notes: what the user should know of the frames, such as that their colours are HDR.
        problem: why the frames ended before their time; None while there is no reason.
    """

    def __init__(
        self,
        path: str | Path,
        max_pixels: int | None = None,
        *,
        reader: Literal["auto", "pyav", "opencv"] = "auto",
    ) -> None:
        """Opens a video.

        Args:
            path: the file; or the address of one, http:// or https://.
            max_pixels: larger frames are refused; None for no limit.
            reader: "auto" takes PyAV where it is installed, and OpenCV elsewhere.

        Raises:
            VideoError: a file that is missing, not a video, without frames or too large.
            UsageError: PyAV is asked for and not installed.
        """
        self.path = path if is_address(path) else Path(path)
        self._header = None
        if isinstance(self.path, Path):
            if not self.path.is_file():
                raise VideoError(f"there is no video file {path}; check the path")
            self._header = read_header(self.path)
        opened = PyAVSource if uses_pyav(reader) else OpenCVSource
        try:
            self.source: Source = opened(str(path), self._header, _TIMEOUT)
        except VideoError as exc:
            shown = str(exc).replace(str(path), without_password(str(path)))
            raise VideoError(shown) from exc
        self.reader = self.source.reader
        self.width, self.height = self.source.width, self.source.height
        if max_pixels is not None and self.width * self.height > max_pixels:
            self.source.close()
            raise VideoError(too_large(str(path), self.width, self.height, max_pixels))
        self.fps, self.promised = self.source.fps, self.source.promised
        self.problem: str | None = None

    def __enter__(self) -> VideoReader:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    @property
    def read(self) -> int:
        """Counts the frames that were passed so far."""
        return self.source.count

    @property
    def notes(self) -> list[str]:
        """Returns what the user should know of the frames; grows while they are read."""
        return self.source.notes

    def frames(self, every: int = 1) -> Generator[Array, None, None]:
        """Yields every Nth frame from the first on, uint8 [H, W, 3] RGB, each a new array.

        Can be called once, in place of `timed`. Ends with the video, or before it with a
        `problem`.
        """
        with closing(self.timed(every_nth(every))) as found:
            for frame in found:
                yield frame.image

    def timed(self, wanted: Wanted) -> Generator[Frame, None, None]:
        """Yields the wanted frames with their numbers and times.

        Can be called once, in place of `frames`. Ends with the video, or before it with a
        `problem`.

        Args:
            wanted: says by a frame's number and seconds whether it is wanted.
        """
        yield from self.source.frames(wanted)
        self.problem = self._problem()

    def is_steady(self) -> bool:
        """Says whether the first frames come at `fps`, as far as one rate can tell them apart.

        They are read anew, so that those of this reader are still to come.
        """
        if (fps := self.fps) is None:
            return False
        kind: Literal["opencv", "pyav"]
        kind = "opencv" if isinstance(self.source, OpenCVSource) else "pyav"
        steps: list[float] = []

        def note(_: int, seconds: float) -> bool:
            steps.append(seconds * fps)
            return len(steps) >= _FIRST

        with VideoReader(self.path, reader=kind) as again:
            next(again.timed(note), None)
        ticks = [math.floor(step + 0.5) for step in steps]
        near = all(abs(step - tick) < 0.26 for step, tick in zip(steps, ticks, strict=True))
        return near and len(set(ticks)) == len(ticks)

    def _problem(self) -> str | None:
        name = without_password(str(self.path))
        source, cut = self.source, None if self._header is None else self._header.cut
        if cut is not None and not source.exact:
            return f"{name} ends after {source.count} frames: it is truncated, {cut}; {_AGAIN}"
        # A file may lack its end and no frame.
        if cut is not None and source.count < (source.promised or 0):
            return (
                f"{name} ends after {source.count} of the {source.promised} frames that its "
                f"header promises: it is truncated, {cut}; {_AGAIN}"
            )
        if source.damaged:
            return (
                f"{name} is damaged: {source.damaged} pieces of it could not be decoded, "
                f"{source.count} frames could; {_AGAIN}"
            )
        if source.ended_by is not None:
            return f"{name} ends after {source.count} frames: {source.ended_by}; {_AGAIN}"
        return None


_TIMEOUT = 30.0
_AGAIN = "get it again"
_FIRST = 100  # frames that tell whether a video has one rate


def is_address(path: str | Path) -> bool:
    """Says whether a video's name is an address on the network.

    Example:
        >>> is_address("https://example.com/clip.mp4"), is_address("clip.mp4")
        (True, False)
    """
    return isinstance(path, str) and path.startswith(("http://", "https://", "rtsp://", "rtsps://"))
