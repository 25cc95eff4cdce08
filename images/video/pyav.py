"""Reading videos through PyAV, which the extra `video` brings."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.core.errors import UsageError, VideoError
from sigcam.core.types import Array
from sigcam.images.video.frames import Clock, Frame, Shape, Wanted
from sigcam.images.video.header import Header
from sigcam.images.video.notes import (
    colour_note,
    damage,
    no_video,
    plausible_rate,
    shape_notes,
    silence,
    size_note,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream


def has_pyav() -> bool:
    """Says whether PyAV is installed.

    Example:
        >>> has_pyav() in (True, False)
        True
    """
    try:
        import av  # noqa: F401
    except ImportError:
        return False
    return True


_BT709 = 1


def uses_pyav(choice: str) -> bool:
    """Says whether PyAV is the reader or writer: "pyav", or "auto" where it is installed.

    Raises:
        UsageError: PyAV is asked for and not installed.

    Example:
        >>> uses_pyav("opencv")
        False
    """
    if choice == "pyav" and not has_pyav():
        raise UsageError('PyAV is not installed; pip install "sigcam[video]"')
    return has_pyav() if choice == "auto" else choice == "pyav"


class PyAVSource:
    """Reads the frames of a file or an address. See `frames.Source`.

    Attributes:
        start: seconds by the container's clock at which its first stream begins.
        first: seconds by the same clock at which the first frame is shown.
    """

    def __init__(
        self,
        target: str,
        header: Header | None = None,
        timeout: float | None = None,
        options: dict[str, str] | None = None,
        live: bool = False,
    ) -> None:
        """Opens a video.

        Args:
            target: a path or an address.
            header: what the file says of itself; None for what isn't a file.
            timeout: seconds after which an address that is silent counts as gone.
            options: of FFmpeg, for the container or the protocol.
            live: whether frames are wanted as soon as they can be had.

        Raises:
            VideoError: it can't be opened, or has no frames that PyAV decodes.
        """
        import av

        self.reader = f"PyAV {av.__version__}"
        self._target, self._timeout, self._live = target, timeout, live
        try:
            # Without the prefix, FFmpeg takes what stands before a colon for a protocol.
            name = target if header is None else f"file:{target}"
            self._container: InputContainer = av.open(
                name, "r", options=options or {}, timeout=timeout, metadata_errors="replace"
            )
        except (av.error.FFmpegError, OSError, ValueError) as exc:
            if header is None:
                if timeout is not None and isinstance(exc, av.error.ExitError):
                    raise VideoError(f"cannot open {target}: {silence(timeout)}") from exc
                raise VideoError(f"cannot open {target}: {_words(exc)}; check the address") from exc
            raise VideoError(f"{target} is no video that PyAV can read{damage(header)}") from exc
        try:
            self._stream = self._chosen(header)
            self._describe(header)
        except BaseException:
            self.close()
            raise

    def _chosen(self, header: Header | None) -> VideoStream:
        """Chooses the video stream: the default one of those that are no cover."""
        from av.stream import Disposition

        found = self._container.streams.video
        streams = [one for one in found if not one.disposition & Disposition.attached_pic]
        if not streams:
            if header is not None and (header.size == 0 or header.cut is not None):
                raise VideoError(f"{self._target} is no video that PyAV can read{damage(header)}")
            raise VideoError(no_video(self._target))
        chosen = next((one for one in streams if one.disposition & Disposition.default), streams[0])
        self.notes: list[str] = []
        if len(streams) > 1:
            self.notes.append(f"it has {len(streams)} video streams; stream {chosen.index} is read")
        context: object = chosen.codec_context
        if context is None:
            codec = (header.codec if header is not None else None) or "a codec without a name"
            raise VideoError(
                f"{self._target} is encoded as {codec}, which PyAV doesn't decode; convert it "
                "where it plays, as with: ffmpeg -i INPUT -c:v libx264 OUTPUT.mp4"
            )
        # Threads for several frames hold some of them back.
        chosen.thread_type = "SLICE" if self._live else "AUTO"
        return chosen

    def _describe(self, header: Header | None) -> None:
        from av.video.reformatter import VideoReformatter

        stream = self._stream
        self.fps = plausible_rate(stream.average_rate)
        self.exact = stream.frames > 0
        self.promised: int | None = stream.frames or self._estimate()
        self.count = self.damaged = 0
        self.ended_by: str | None = None
        self._decoded = self._decode()
        self._next = next(self._decoded, None)
        if self._next is None:
            codec = stream.codec_context.name
            raise VideoError(
                f"{self._target} has no frames that PyAV can decode as {codec}{damage(header)}"
            )
        frame = self._next
        self._changed = False
        self._reformatter, self._changes = VideoReformatter(), dict[str, int]()
        self.start = (self._container.start_time or 0) / 1_000_000
        self.first = self.start if frame.time is None else frame.time
        self._size = frame.width, frame.height
        aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio
        self._shape = Shape.of_matrix(_matrix(frame), aspect or Fraction(1))
        self.width, self.height = self._shape.size(*self._size)
        self.notes += shape_notes(self._shape, *self._size)
        note = colour_note(int(frame.color_primaries), int(frame.color_trc))
        if note is not None:
            self.notes.append(note)
            self._changes = {"dst_color_trc": _BT709, "dst_color_primaries": _BT709}
        if frame.interlaced_frame:
            self.notes.append(
                "it is interlaced, moving edges look like combs; deinterlace it first, as with: "
                "ffmpeg -i INPUT -vf bwdif OUTPUT.mp4"
            )

    def _estimate(self) -> int | None:
        duration = self._container.duration
        if duration is None or duration <= 0 or self.fps is None:
            return None
        return max(1, round(duration / 1_000_000 * self.fps))

    def frames(self, wanted: Wanted) -> Iterator[Frame]:
        """Yields the wanted frames from the first on; can be called once."""
        clock = Clock(self.fps)
        frame, self._next = self._next, None
        while frame is not None:
            number, self.count = self.count, self.count + 1
            seconds = clock.seconds(frame.time)
            if wanted(number, seconds):
                yield Frame(number, seconds, self._image(frame, number))
            frame = next(self._decoded, None)

    def _decode(self) -> Iterator[VideoFrame]:
        """Yields what can be decoded; counts what can't once there is something."""
        import av

        any_yet = False
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError) as exc:
                if exc.errno == errno.EIO and self._container.format.name == "mpjpeg":
                    return  # so FFmpeg calls it when a server of Motion JPEG closes
                gone = isinstance(exc, av.error.ExitError) and self._timeout is not None
                self.ended_by = silence(self._timeout or 0) if gone else _words(exc)
                return
            if packet is None:
                return
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self.damaged += any_yet
                continue
            for frame in frames:
                any_yet = True
                yield frame

    def _image(self, frame: VideoFrame, number: int) -> Array:
        import av

        size = frame.width, frame.height
        if size != self._size and not self._changed:
            self._changed = True
            self.notes.append(size_note(number, self._size, size))
        # OpenCV scales and converts so, too. One for all frames: its tables for HDR take seconds.
        try:
            made = self._reformatter.reformat(
                frame, *self._size, format="rgb24", interpolation="BICUBIC", **self._changes
            )
        except (av.error.FFmpegError, ValueError) as exc:
            raise VideoError(
                f"frame {number} of {self._target} can't be made RGB from {frame.format.name} with "
                f"the colours that it names: {_words(exc)}; convert the video, as with: ffmpeg -i "
                "INPUT -pix_fmt yuv420p OUTPUT.mp4"
            ) from exc
        return self._shape.of(np.asarray(made.to_ndarray()))

    def close(self) -> None:
        """Frees the file; a second call does nothing."""
        self._container.close()


def _matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """Returns a, b, c, d of a frame's display matrix, of the container's or the codec's."""
    found: Any = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return 1, 0, 0, 1
    a, b, _, c, d = struct.unpack_from("=5i", found)
    return a, b, c, d


def _words(exc: BaseException) -> str:
    return getattr(exc, "strerror", None) or str(exc)
