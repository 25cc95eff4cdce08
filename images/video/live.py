"""Live sources: cameras, streams and pipes, of which a slow consumer gets the newest frames.

A thread reads all the time, as a camera doesn't wait and a server closes a connection that isn't
read. Frames wait in a short queue; one that comes when it is full pushes out the oldest, which is
counted.
"""

from __future__ import annotations

import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from sigcam.core.errors import UsageError, VideoError
from sigcam.core.types import Array
from sigcam.images.suffixes import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from sigcam.images.video.frames import Frame, Source, Wanted, every_nth
from sigcam.images.video.notes import too_large, without_password
from sigcam.images.video.opencv import OpenCVSource
from sigcam.images.video.pyav import PyAVSource, uses_pyav

_CAMERA = "camera:"
_SCHEMES = frozenset(
    ("rtsp", "rtsps", "rtmp", "rtmps", "rtp", "udp", "tcp", "srt", "http", "https")
)
_OPTIONS = {
    # UDP loses packets on the way to most cameras; what waits in buffers is late.
    "rtsp": {"rtsp_transport": "tcp", "fflags": "nobuffer"},
    "rtsps": {"rtsp_transport": "tcp", "fflags": "nobuffer"},
}
_TURN = 0.2  # seconds after which a wait looks whether it was told to stop
_LEAVE = 1.0  # seconds that a thread gets to end, which may hang in a read
_LONGEST_PAUSE = 10.0


class LiveSource:
    """A live source that is read in a thread. A context manager that ends it; iterable, once.

    Attributes:
        name: what was asked for, without a password.
        reader: the library that reads it, with its version.
        width, height: of the frames in pixels.
        fps: frames a second, as the source says; None where it doesn't.
        read: number of frames that came.
        dropped: number of frames that were pushed out of the queue unseen.
        reconnected: number of times that the source was opened again.
        notes: what the user should know of the frames.
        ended: why there are no more frames; None while there may be.
        failed: whether that is a failure, and not the end of the stream or a stop.

    Example:
        with LiveSource("camera:0") as camera, sigcam.load("model.onnx", batch_size=1) as session:
            for explanations in session.stream(camera):
                print(explanations[0].label)
    """

    def __init__(
        self,
        name: str | int | Path,
        *,
        queue: int = 2,
        wanted: Wanted | None = None,
        timeout: float = 10.0,
        reconnect: int = 0,
        max_pixels: int | None = None,
    ) -> None:
        """Opens a source, and waits for its first frame.

        Args:
            name: a camera as its number, "camera:0" or "camera:/dev/video0"; an address
                (rtsp://, http:// and others that FFmpeg knows); or the path of a named pipe or
                a file.
            queue: most frames that wait.
            wanted: says by a frame's number and seconds whether it is wanted; None for all.
            timeout: seconds after which an address that is silent counts as gone. A pipe may be
                silent for any time.
            reconnect: how many times in a row a source that failed or ended is opened again,
                after a pause of 1, 2, 4, ... seconds.
            max_pixels: larger frames are refused; None for no limit.

        Raises:
            VideoError: it can't be opened, has no frames, or has too large ones.
            UsageError: a number out of range.
        """
        if queue < 1 or reconnect < 0 or not timeout > 0:
            raise UsageError(
                "queue must be at least 1, reconnect at least 0 and timeout above 0, got "
                f"{queue}, {reconnect} and {timeout}"
            )
        self._address = f"{_CAMERA}{name}" if isinstance(name, int) else str(name)
        self.name = without_password(self._address)
        self.read = self.dropped = self.reconnected = 0
        self.ended: str | None = None
        self.failed = False
        self._wanted = wanted or every_nth(1)
        self._timeout, self._reconnect, self._max_pixels = timeout, reconnect, max_pixels
        self._queue: deque[Frame] = deque(maxlen=queue)
        self._changed = threading.Condition()
        self._stopped = self._over = False
        self._began: float | None = None
        self._source: Source | None = None
        self._refusal: Exception | None = None
        # A daemon: a read that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="sigcam-live", daemon=True)
        self._thread.start()
        try:
            self._wait_for(lambda: self._source is not None)
        except BaseException:
            self.stop()
            raise
        source = self._opened()
        self.reader, self.fps, self.notes = source.reader, source.fps, source.notes
        self.width: int = source.width
        self.height: int = source.height

    def __enter__(self) -> LiveSource:  # noqa: PYI034 (Self is new in Python 3.11)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(_LEAVE)

    def __iter__(self) -> Iterator[Array]:
        """Yields frames as they come, uint8 [H, W, 3] RGB, the newest to who comes late."""
        for frame in self.timed():
            yield frame.image

    def timed(self) -> Generator[Frame, None, None]:
        """Yields frames with their numbers, and the seconds from the first one's arrival."""
        while True:
            self._wait_for(lambda: bool(self._queue))
            with self._changed:
                if self._stopped or not self._queue:
                    return
                frame = self._queue.popleft()
            yield frame
            del frame

    def stop(self) -> None:
        """Ends the source, also from a signal handler: who waits for a frame gets no more."""
        self._stopped = True

    def _opened(self) -> Source:
        if self._refusal is not None:
            raise self._refusal
        assert self._source is not None  # noqa: S101 (it was waited for)
        return self._source

    def _wait_for(self, there: Callable[[], bool]) -> None:
        """Waits until something is there, the thread is at its end, or `stop` was called."""
        with self._changed:
            while not (there() or self._over or self._stopped):
                self._changed.wait(_TURN)

    def _run(self) -> None:
        """Reads frames, and opens the source again; the thread runs this."""
        tries = 0
        try:
            while not self._stopped:
                before = self.read
                reason, failed = self._read_once()
                tries = 0 if self.read > before else tries
                if self._stopped or self._refusal is not None:
                    return
                self.ended, self.failed = reason, failed
                if tries == self._reconnect:
                    return
                self._pause(min(2.0**tries, _LONGEST_PAUSE))
                tries += 1
                self.reconnected += 1
        except Exception as exc:  # whoever waits must hear of it
            self._refusal = exc
            self.ended, self.failed = str(exc), True
        finally:
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _read_once(self) -> tuple[str, bool]:
        """Opens the source and reads it to its end; says why it ended, and whether it failed."""
        try:
            source = self._open()
        except VideoError as exc:
            told = str(exc).replace(self._address, self.name)
            if self._source is None:
                self._refusal = VideoError(told)
            return told, True
        try:
            for frame in source.frames(self._arrives):
                if self._stopped:
                    break
                self._put(frame)
        finally:
            source.close()
        if source.ended_by is not None:
            return f"{self.name} failed after {self.read} frames: {source.ended_by}", True
        return f"{self.name} ended after {self.read} frames", False

    def _open(self) -> Source:
        source = open_live(self._address, self._timeout)
        size = source.width, source.height
        if self._max_pixels is not None and size[0] * size[1] > self._max_pixels:
            source.close()
            raise VideoError(too_large(self.name, *size, self._max_pixels))
        with self._changed:
            if self._source is None:
                self._source = source
                self._changed.notify_all()
                return source
        if size != (self.width, self.height):
            source.close()
            raise VideoError(
                f"{self.name} came back with frames of {size[0]} x {size[1]} pixels, it had "
                f"{self.width} x {self.height}; call again"
            )
        return source

    def _arrives(self, _: int, __: float) -> bool:
        """Notes a frame's arrival, which is its time; says whether it is wanted."""
        now = time.monotonic()
        if self._began is None:
            self._began = now
        self._seconds = round(now - self._began, 6)
        self.read += 1
        return self._wanted(self.read - 1, self._seconds)

    def _put(self, frame: Frame) -> None:
        with self._changed:
            self.dropped += len(self._queue) == self._queue.maxlen
            self._queue.append(Frame(self.read - 1, self._seconds, frame.image))
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped and time.monotonic() < until:
            time.sleep(min(_TURN, seconds))


def open_live(name: str, timeout: float) -> Source:
    """Opens a camera with OpenCV; an address or a pipe with PyAV, or OpenCV where there is none.

    Raises:
        VideoError: it can't be opened.
    """
    if name.startswith(_CAMERA):
        place = name.removeprefix(_CAMERA)
        return OpenCVSource(int(place) if place.isdecimal() else place, camera=True)
    scheme = urlsplit(name).scheme.lower()
    on_network = scheme in _SCHEMES
    if not on_network and not Path(name).exists():
        raise VideoError(f"there is no {name}; check the path")
    limit = timeout if on_network else None
    if not uses_pyav("auto"):
        return OpenCVSource(name, timeout=limit)
    return PyAVSource(name, timeout=limit, options=_OPTIONS.get(scheme), live=True)


def is_live(name: str) -> bool:
    """Says whether a name is one of a live source: a camera, a stream's address, a named pipe.

    An address whose path ends as a video file's or an image's does is such a file.

    Example:
        >>> [is_live(name) for name in ("camera:0", "rtsp://door/1", "http://door/video.cgi")]
        [True, True, True]
        >>> [is_live(name) for name in ("https://example.com/clip.mp4", "clip.mp4")]
        [False, False]
    """
    if name.startswith(_CAMERA):
        return True
    parts = urlsplit(name)
    if parts.scheme.lower() in ("http", "https"):
        return Path(parts.path).suffix.lower() not in VIDEO_SUFFIXES | IMAGE_SUFFIXES
    if "://" in name:
        return parts.scheme.lower() in _SCHEMES
    try:
        return stat.S_ISFIFO(Path(name).stat().st_mode)
    except (OSError, ValueError):
        return False
