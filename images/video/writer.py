"""Writing videos: every frame at its time, the sound copied, a file whole or not at all.

PyAV writes where it is installed: times as they are, the sound of another file. OpenCV does
elsewhere: at one rate, at which frames are repeated or left out to keep the time, without sound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import cv2

from sigcam.core.errors import StorageError, UsageError
from sigcam.core.files import atomic_path
from sigcam.core.types import Array
from sigcam.images.decode import quiet_opencv
from sigcam.images.video.header import read_header
from sigcam.images.video.notes import plausible_rate
from sigcam.images.video.opencv import READER, quiet_ffmpeg
from sigcam.images.video.pyav import uses_pyav
from sigcam.images.video.pyav_writer import PyAVSink
from sigcam.images.video.reader import VideoReader

CODECS = {
    ".mp4": "mp4v",
    ".m4v": "mp4v",
    ".mov": "mp4v",
    ".mkv": "mp4v",
    ".avi": "XVID",
    ".webm": "VP80",
}
"""What OpenCV writes by suffix: MPEG-4 Part 2, and VP8 in WebM (eight times the time). Its wheels
bring no encoder of H.264 or H.265; PyAV writes H.264, but VP8 in WebM and MPEG-4 in AVI."""

_UNKNOWN_RATE = 60.0
"""Frames a second of a file of one rate, where the video doesn't say its own."""


class Sink(Protocol):
    """What encodes frames into a file.

    Attributes:
        encoder: the library and its version, and the codec.
        one_rate: whether the file can't have times of its own for each frame.
        notes: what the user should know of the file.
    """

    encoder: str
    one_rate: bool
    notes: list[str]

    @property
    def sound(self) -> bool:
        """Says whether sound is copied."""
        ...

    def add(self, frame: Array, seconds: float) -> None:
        """Encodes a frame that is shown at that time, and until the next one."""
        ...

    def finish(self) -> None:
        """Writes what is left, and closes the file."""
        ...

    def close(self) -> None:
        """Closes the file as it is; a second call does nothing."""
        ...


class VideoWriter:
    """Writes frames to a file that `write_video` opened.

    Attributes:
        written: number of frames that were given.
        repeated: number of frames that a file of one rate has beside them, to keep the time.
        left_out: number of those given that such a file lacks, as another one came in the same
            fraction of a second.
    """

    def __init__(self, sink: Sink, fps: float) -> None:
        self._sink = sink
        self._fps = fps
        self._waiting: tuple[Array, int] | None = None
        self._ticks = 0
        self.written = self.repeated = self.left_out = 0

    @property
    def ticks(self) -> int:
        """Counts the frames in a file of one rate."""
        return self._ticks

    @property
    def encoder(self) -> str:
        """Names the library and the codec."""
        return self._sink.encoder

    @property
    def sound(self) -> bool:
        """Says whether sound is copied."""
        return self._sink.sound

    @property
    def notes(self) -> list[str]:
        """Returns what the user should know of the file."""
        notes = list(self._sink.notes)
        if self.repeated or self.left_out:
            notes.append(
                f"it has one rate, {self._fps:g} frames a second: {self.repeated} frames were "
                f"repeated and {self.left_out} left out to keep the time"
            )
        return notes

    def write(self, frame: Array, seconds: float | None = None) -> None:
        """Appends a frame.

        Args:
            frame: uint8 [H, W, 3] RGB, of the video's size.
            seconds: when it is shown, 0 for the first; None for the next one at the video's rate.
        """
        if seconds is None:
            seconds = self.written / self._fps
        self.written += 1
        if not self._sink.one_rate:
            self._sink.add(frame, seconds)
            return
        tick = math.floor(seconds * self._fps + 0.5)
        if self._waiting is not None:
            before, at = self._waiting
            if tick <= at:  # the newer one is shown in its place
                self.left_out += 1
                tick = at
            else:
                self._fill(before, tick)
        self._waiting = frame, tick

    def finish(self) -> None:
        """Writes what is left, and closes the file."""
        if self._waiting is not None:
            frame, tick = self._waiting
            self._fill(frame, tick + 1)
        self._sink.finish()

    def _fill(self, frame: Array, until: int) -> None:
        """Writes a frame for every tick before one; the first frame from the beginning on."""
        self.repeated += max(0, until - self._ticks - 1)
        while self._ticks < until:
            self._sink.add(frame, self._ticks / self._fps)
            self._ticks += 1


@contextmanager
def write_video(
    path: str | Path,
    width: int,
    height: int,
    fps: float | None,
    *,
    source: VideoReader | None = None,
    writer: Literal["auto", "pyav", "opencv"] = "auto",
) -> Iterator[VideoWriter]:
    """Writes a video whole or not at all.

    Args:
        path: its suffix, one of `CODECS`, says the format.
        width: of the frames; of an odd one, the last pixel is left out.
        height: likewise.
        fps: frames a second, on average where each is written with its time; None where that
            isn't known: 60 in a file of one rate.
        source: the video that the frames come from, whose first frame is the first one written.
            Its sound is copied; OpenCV copies none, and says so in `VideoWriter.notes`.
        writer: "auto" takes PyAV where it is installed, and OpenCV elsewhere.

    Raises:
        UsageError: another suffix, frames of less than 2 x 2 pixels, a rate out of range, or PyAV
            is asked for and not installed.
        StorageError: the file can't be written.

    Example:
        with write_video("overlay.mp4", 640, 480, fps=25.0) as writer:
            for frame in frames:  # uint8 [480, 640, 3] RGB
                writer.write(frame)
    """
    path = Path(path)
    codec_of(path)
    if min(width, height) < 2:
        raise UsageError(f"a video has at least 2 x 2 pixels, got {width} x {height}")
    if fps is not None and plausible_rate(fps) is None:
        raise UsageError(f"fps must be above 0 and below 1000, got {fps}")
    pyav = uses_pyav(writer)
    rate = fps or _UNKNOWN_RATE
    one_rate = not pyav or path.suffix.lower() == ".avi"
    if one_rate and source is not None and not source.is_steady():
        rate = _UNKNOWN_RATE  # the average would leave out whatever comes in bursts
    with atomic_path(path) as temporary:
        kind = PyAVSink if pyav else OpenCVSink
        sink: Sink = kind(temporary, path, width, height, rate, source)
        try:
            opened = VideoWriter(sink, rate)
            yield opened
            opened.finish()
        finally:
            sink.close()
        # OpenCV's writer doesn't report a full disk.
        if opened.written and not _is_whole(temporary, opened.ticks):
            raise StorageError(
                f"{path} was not written whole; choose a folder that is writable and has room"
            )


class OpenCVSink:
    """Encodes frames through OpenCV: at one rate, without sound. See `Sink`."""

    one_rate = True

    def __init__(
        self,
        temporary: Path,
        path: Path,
        width: int,
        height: int,
        fps: float,
        sound: VideoReader | None,
    ) -> None:
        """Opens the file.

        Args:
            temporary: the file that is written.
            path: the file that it becomes.
            width: of the frames.
            height: likewise.
            fps: frames a second.
            sound: the video whose sound is wanted, and isn't copied.

        Raises:
            StorageError: the file can't be written.
        """
        codec = codec_of(path)
        self.encoder = f"{READER} as {codec}"
        self.notes: list[str] = []
        if sound is not None:
            self.notes.append(
                'PyAV (pip install "sigcam[video]") would copy the sound, and write every frame '
                "at its own time"
            )
        quiet_ffmpeg()
        with quiet_opencv():
            self._writer = cv2.VideoWriter(
                str(temporary), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*codec), fps, (width, height)
            )
        if not self._writer.isOpened():
            raise StorageError(
                f"OpenCV can't write {path} as {codec}; choose another folder, or one of the "
                f"formats {_known()}"
            )

    @property
    def sound(self) -> bool:
        """Says that no sound is copied."""
        return False

    def add(self, frame: Array, seconds: float) -> None:
        """Encodes a frame, which is shown after the one before."""
        del seconds
        with quiet_opencv():
            self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    def finish(self) -> None:
        """Writes what is left, and closes the file."""
        self.close()

    def close(self) -> None:
        """Closes the file as it is; a second call does nothing."""
        self._writer.release()


def codec_of(path: Path) -> str:
    """Returns the four letters of OpenCV's codec for a video file's name.

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
    """Says whether a file that was written has its end, and as many frames as it should.

    Of WebM and Matroska files the count is their length times the rate, which says nothing of a
    file without one rate; 0 frames ask for the end alone.
    """
    header = read_header(path)
    if header.cut is not None or not header.indexed:
        return False
    quiet_ffmpeg()
    with quiet_opencv():
        capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        try:
            return capture.isOpened() and capture.get(cv2.CAP_PROP_FRAME_COUNT) >= frames - 1
        finally:
            capture.release()
