"""Encoding videos through PyAV: frames at their times, with the sound of another file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sigcam.core.errors import StorageError
from sigcam.core.types import Array
from sigcam.images.video.pyav import PyAVSource

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.packet import Packet
    from av.stream import Stream

    from sigcam.images.video.reader import VideoReader

_FORMATS = {
    ".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi", ".webm": "webm",
}  # fmt: skip
_ENCODERS = {
    # Nearly transparent, and quick enough to keep up with a small network.
    "libx264": {"crf": "18", "preset": "veryfast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "5", "crf": "8"},
    "mpeg4": {},
}
_BT601, _BT709, _LIMITED = 6, 1, 1


class PyAVSink:
    """Encodes frames through PyAV. See `writer.Sink`."""

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
            fps: frames a second, on average.
            sound: the video whose sound is copied; None for none.

        Raises:
            StorageError: the file can't be written.
        """
        import av

        self._path = path
        self._file = temporary
        self._format = _FORMATS[path.suffix.lower()]
        self._codec = _codec(self._format)
        self.one_rate = self._format == "avi"
        self._rate = Fraction(fps).limit_denominator(1001)
        self._width, self._height = width // 2 * 2, height // 2 * 2
        self.encoder = f"PyAV {av.__version__} as {_NAMES[self._codec]}"
        self.notes: list[str] = []
        self._last = -1
        self._sound = None if sound is None else _Sound(sound)
        try:
            self._open()
        except (av.error.FFmpegError, ValueError) as exc:
            if self._sound is None or not self._sound.copied:
                raise self._refused(exc) from exc
            # Some codecs are known to a format and refused when it comes to it.
            self._sound.refused = True
            self._container.close()
            try:
                self._open()
            except (av.error.FFmpegError, ValueError) as again:
                raise self._refused(again) from again
        if self._sound is not None:
            self.notes += self._sound.notes

    @property
    def sound(self) -> bool:
        """Says whether sound is copied."""
        return self._sound is not None and self._sound.copied > 0

    def _open(self) -> None:
        import av

        self._container: OutputContainer = av.open(str(self._file), "w", format=self._format)
        stream = self._container.add_stream(
            self._codec, rate=self._rate, options=dict(_ENCODERS[self._codec])
        )
        if not isinstance(stream, av.VideoStream):
            raise StorageError(f"PyAV has no encoder {self._codec}")
        stream.width, stream.height, stream.pix_fmt = self._width, self._height, "yuv420p"
        if self._codec != "libx264":
            stream.bit_rate = max(400_000, self._width * self._height * 8)
        context = stream.codec_context
        self._base = self._time_base()
        context.time_base = self._base
        # So that players don't guess: the conversion from RGB is BT.601's.
        context.colorspace, context.color_range = _BT601, _LIMITED
        context.color_primaries, context.color_trc = _BT709, _BT709
        self._stream = stream
        if self._sound is not None:
            self._sound.into(self._container)
        self._container.start_encoding()

    def _time_base(self) -> Fraction:
        """Returns the unit of times: of the file or, if that has none, of the encoder."""
        if self.one_rate:
            return 1 / self._rate
        if self._format in ("matroska", "webm"):
            return Fraction(1, 1000)
        return Fraction(1, 90000 if self._codec == "libx264" else 60000)

    def add(self, frame: Array, seconds: float) -> None:
        """Encodes a frame that is shown at that time, and until the next one."""
        import av

        image = np.ascontiguousarray(frame[: self._height, : self._width])
        made = av.VideoFrame.from_ndarray(image, "rgb24")
        made = made.reformat(format="yuv420p", dst_colorspace="ITU601", interpolation="BICUBIC")
        offset = 0.0 if self._sound is None else self._sound.offset
        # Two frames can't share a time in a file.
        self._last = max(round((seconds + offset) / self._base), self._last + 1)
        made.pts, made.time_base = self._last, self._base
        try:
            self._container.mux(self._stream.encode(made))
            self._copy_sound(seconds + offset)
        except av.error.FFmpegError as exc:
            raise self._refused(exc) from exc

    def finish(self) -> None:
        """Writes what is left, and closes the file."""
        import av

        try:
            self._container.mux(self._stream.encode())
            self._copy_sound(None)
            self._container.close()
        except av.error.FFmpegError as exc:
            raise self._refused(exc) from exc
        self.close()

    def close(self) -> None:
        """Closes the file as it is; a second call does nothing."""
        import av

        with suppress(av.error.FFmpegError, OSError):  # an error that comes first is being raised
            self._container.close()
        if self._sound is not None:
            self._sound.close()

    def _copy_sound(self, until: float | None) -> None:
        if self._sound is not None and self._last >= 0:
            for packet in self._sound.packets(until):
                self._container.mux(packet)

    def _refused(self, exc: Exception) -> StorageError:
        reason = getattr(exc, "strerror", None) or str(exc)
        return StorageError(
            f"cannot write {self._path}: {reason}; choose a folder that is writable and has room, "
            "or another format"
        )


_NAMES = {"libx264": "H.264", "libvpx": "VP8", "mpeg4": "MPEG-4 Part 2"}


def _codec(container: str) -> str:
    import av

    if container == "webm":
        return "libvpx"
    # What browsers play; builds of FFmpeg without it have FFmpeg's own encoder.
    has_h264 = container != "avi" and "libx264" in av.codecs_available
    return "libx264" if has_h264 else "mpeg4"


class _Sound:
    """Copies the sound of a video, packet by packet, as it is encoded there.

    Attributes:
        refused: whether the file has refused it as a whole, so that nothing is copied.
        offset: seconds by which the first frame comes after the beginning.
        copied: number of streams that are copied.
        notes: what the user should know of it.
    """

    def __init__(self, video: VideoReader) -> None:
        import av

        source = video.source
        self.offset, self._start = 0.0, 0.0
        if isinstance(source, PyAVSource):
            self._start, self.offset = source.start, max(0.0, source.first - source.start)
        name = str(video.path)
        name = f"file:{name}" if isinstance(video.path, Path) else name
        self._container: InputContainer = av.open(name, "r", metadata_errors="replace")
        self._streams: dict[int, Stream] = {}
        self.refused = False
        self.copied = 0
        self.notes: list[str] = []
        self._pending: Iterator[Packet[Stream]] | None = None
        self._held: Packet[Stream] | None = None

    def into(self, target: OutputContainer) -> None:
        """Adds streams to a file for those that it can take; notes the others."""
        self._streams, self.copied, self.notes = {}, 0, []
        for stream in self._container.streams.audio:
            codec = None if stream.codec_context is None else stream.codec_context.name
            taken = not self.refused and codec is not None
            try:
                if taken and _canonical(stream) in target.supported_codecs:
                    self._streams[stream.index] = target.add_stream_from_template(stream)
                    continue
            except ValueError:
                pass
            self.notes.append(
                f"sound as {codec or 'an unknown codec'} can't be copied into "
                f"{target.format.name}, so it is left out; .mkv takes nearly any"
            )
        self.copied = len(self._streams)
        self._keeps_early = target.format.name in ("mp4", "mov")

    def packets(self, until: float | None) -> Iterator[Packet[Stream]]:
        """Yields the next packets up to a time, or all that are left."""
        if not self._streams:
            return
        if self._pending is None:
            chosen = [self._container.streams[index] for index in self._streams]
            self._pending = self._container.demux(*chosen)
        while True:
            packet = self._held or self._read()
            self._held = None
            if packet is None:
                return
            begins = packet.pts if packet.pts is not None else packet.dts
            if begins is None:  # the end of a stream
                continue
            shift = round(self._start / packet.time_base)
            begins -= shift
            if until is not None and begins * packet.time_base > until:
                self._held = packet
                return
            if begins < 0 and not self._keeps_early:
                continue  # would move everything else to later times
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
            packet.stream = self._streams[packet.stream.index]
            yield packet

    def _read(self) -> Packet[Stream] | None:
        import av

        try:
            return None if self._pending is None else next(self._pending, None)
        except (av.error.FFmpegError, OSError):  # the frames tell of a truncated file
            return None

    def close(self) -> None:
        """Frees the file."""
        self._container.close()


def _canonical(stream: Stream) -> str:
    return str(stream.codec_context.codec.canonical_name)
