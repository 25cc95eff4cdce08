"""Video files: frames in, overlay frames out, through OpenCV's FFmpeg.

Frames are upright: OpenCV turns them as the file's orientation says. Sound is neither read
nor written. Where a video changes its size midway, OpenCV 5 scales what follows to the size
of the beginning.
"""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2

from sigcam.core.errors import StorageError, UsageError, VideoError
from sigcam.core.files import atomic_path
from sigcam.core.types import Array
from sigcam.images.decode import quiet_opencv

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
)
"""How the names of video files end."""

CODECS = {
    ".mp4": "mp4v",
    ".m4v": "mp4v",
    ".mov": "mp4v",
    ".mkv": "mp4v",
    ".avi": "XVID",
    ".webm": "VP80",
}
"""What is written by suffix: MPEG-4 Part 2, and VP8 in WebM (eight times the time). OpenCV's
wheels bring no encoder of H.264 or H.265."""

_QUIET = "-8"  # FFmpeg's AV_LOG_QUIET


class VideoReader:
    """An opened video. A context manager that closes it.

    Attributes:
        path: the file.
        width, height: of the frames, upright, in pixels.
        fps: frames a second, as the file says on average; None where it doesn't.
        promised: number of frames by the file's header, sometimes an estimate; None where it
            says nothing.
        read: number of frames that were read so far.
        problem: why the frames ended before their time; None while there is no reason.
    """

    def __init__(self, path: str | Path, max_pixels: int | None = None) -> None:
        """Opens a video.

        Args:
            path: the file.
            max_pixels: larger frames are refused; None for no limit.

        Raises:
            VideoError: a file that is missing, not a video, without frames or too large.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise VideoError(f"there is no video file {path}; check the path")
        # OpenCV reads it when it loads FFmpeg; whoever wants FFmpeg's own words sets it.
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _QUIET)
        with quiet_opencv():
            self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
            opened, first = self._capture.read()
        if not opened:
            self._capture.release()
            raise VideoError(
                f"{path} is no video that OpenCV can read, or has no frames: empty, damaged or "
                "truncated; get it again, or convert it to MP4, AVI, MKV or WebM"
            )
        self._first: Array | None = first
        self.height, self.width = first.shape[:2]
        if max_pixels is not None and self.width * self.height > max_pixels:
            self._capture.release()
            raise VideoError(
                f"{path} has frames of {self.width} x {self.height} pixels, more than "
                f"max_pixels = {max_pixels}; scale it down or raise max_pixels"
            )
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else None
        count = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.promised = int(count) if math.isfinite(count) and count >= 1 else None
        self.read = 0
        self.problem: str | None = None

    def __enter__(self) -> VideoReader:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def frames(self, every: int = 1) -> Generator[Array, None, None]:
        """Yields every Nth frame from the first on, uint8 [H, W, 3] RGB, each a new array.

        Can be called once. Ends with the video, or before it with a `problem`.
        """
        frame, self._first = self._first, None
        while frame is not None:
            if frame.shape[:2] != (self.height, self.width):
                self.problem = (
                    f"{self.path} changes its size at frame {self.read}, from {self.width} x "
                    f"{self.height} to {frame.shape[1]} x {frame.shape[0]}; split it there"
                )
                return
            self.read += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            frame = self._next(every)
        if self.promised is not None and self.read < self._least():
            self.problem = (
                f"{self.path} ends after {self.read} of the {self.promised} frames that its "
                "header promises: it is truncated or damaged; get it again"
            )

    def _next(self, every: int) -> Array | None:
        with quiet_opencv():
            for _ in range(every - 1):
                if not self._capture.grab():
                    return None
                self.read += 1
            found, frame = self._capture.read()
        return frame if found else None

    def _least(self) -> int:
        """Frames of a whole video: some headers give the length in time, not the frames."""
        promised = self.promised or 0
        return promised - max(1, promised // 100)


class VideoWriter:
    """Writes frames to a file that `write_video` opened."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self.written = 0

    def write(self, frame: Array) -> None:
        """Appends a frame, uint8 [H, W, 3] RGB, of the video's size."""
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self.written += 1


@contextmanager
def write_video(path: str | Path, width: int, height: int, fps: float) -> Iterator[VideoWriter]:
    """Writes a video whole or not at all.

    Args:
        path: its suffix, one of `CODECS`, says the format.
        width: of the frames; of an odd one, encoders leave out the last pixel.
        height: likewise.
        fps: frames a second.

    Raises:
        UsageError: another suffix, or frames of less than 2 x 2 pixels.
        StorageError: the file can't be written.

    Example:
        with write_video("overlay.mp4", 640, 480, fps=25.0) as writer:
            for frame in frames:  # uint8 [480, 640, 3] RGB
                writer.write(frame)
    """
    codec = codec_of(Path(path))
    if min(width, height) < 2:
        raise UsageError(f"a video has at least 2 x 2 pixels, got {width} x {height}")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", _QUIET)
    with atomic_path(path) as temporary:
        fourcc = cv2.VideoWriter.fourcc(*codec)
        with quiet_opencv():
            opened = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, fourcc, fps, (width, height))
        try:
            if not opened.isOpened():
                raise StorageError(
                    f"OpenCV can't write {path} as {codec}; choose another folder, or one of the "
                    f"formats {', '.join(CODECS)}"
                )
            writer = VideoWriter(opened)
            yield writer
        finally:
            opened.release()
        # OpenCV's writer doesn't report a full disk.
        if writer.written and not _is_whole(temporary, writer.written):
            raise StorageError(
                f"{path} was not written whole; choose a folder that is writable and has room"
            )


def codec_of(path: Path) -> str:
    """Returns the four letters of the codec for a video file's name.

    Raises:
        UsageError: a suffix that isn't one of `CODECS`.

    Example:
        >>> codec_of(Path("overlay.mp4"))
        'mp4v'
    """
    codec = CODECS.get(path.suffix.lower())
    if codec is None:
        raise UsageError(f"cannot write a video as {path.name!r}; the suffixes are {_known()}")
    return codec


def _known() -> str:
    return ", ".join(CODECS)


def _is_whole(path: Path, frames: int) -> bool:
    try:
        with VideoReader(path) as video:
            # Of the WebM and Matroska files the count is their length times the rate.
            return video.promised is None or video.promised >= frames - 1
    except VideoError:
        return False
