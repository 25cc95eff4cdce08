"""What a video file says of itself, read from its bytes: its length, orientation and codec.

Decoders end quietly where a file ends. How long it should be stands in the structure of the usual
containers, in bytes; numbers of frames are estimates in some of them, and count frames that are
never shown in others.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sigcam.core.errors import VideoError

_MOST = 64 << 20
"""Most bytes of an index that are read; those of an hour have a few megabytes."""

_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")

CODEC_NAMES = {
    "av01": "AV1", "vp08": "VP8", "vp80": "VP8", "vp09": "VP9", "vp90": "VP9",
    "avc1": "H.264", "avc3": "H.264", "h264": "H.264",
    "hvc1": "H.265", "hev1": "H.265", "hevc": "H.265", "dvh1": "H.265 (Dolby Vision)",
    "dvhe": "H.265 (Dolby Vision)", "vvc1": "H.266", "vvi1": "H.266", "evc1": "EVC",
    "mp4v": "MPEG-4 Part 2", "xvid": "MPEG-4 Part 2", "mjpg": "Motion JPEG", "jpeg": "Motion JPEG",
    "apcn": "ProRes", "apch": "ProRes", "ap4h": "ProRes", "aprn": "ProRes RAW",
    "v_av1": "AV1", "v_vp8": "VP8", "v_vp9": "VP9", "v_mpeg4/iso/avc": "H.264",
    "v_mpegh/iso/hevc": "H.265", "v_mpegi/iso/vvc": "H.266",
}  # fmt: skip
"""Names of codecs by the codes of containers, in small letters."""


@dataclass(frozen=True)
class Header:
    """What was found in a file.

    Attributes:
        kind: "mp4", "matroska", "avi", "asf" or None for other containers.
        size: of the file in bytes.
        promised: bytes that the file should have; None where it doesn't say.
        indexed: False for an MP4 file without its index, which can't be read.
        matrix: a, b, c, d of the first video track's display matrix, of MP4 and Matroska; None
            where it isn't known.
        codec: the video's codec, by name if it is known; None where it isn't found.
        has_video: whether there is a video track; None where that isn't known.
        colours: numbers of the colour primaries and the transfer characteristics in ITU-T H.273;
            None where unknown.
    """

    kind: str | None
    size: int
    promised: int | None = None
    indexed: bool = True
    matrix: tuple[float, float, float, float] | None = None
    codec: str | None = None
    has_video: bool | None = None
    colours: tuple[int, int] | None = None

    @property
    def cut(self) -> str | None:
        """Says how the file is shorter than it should be; None where it isn't."""
        if self.promised is None or self.promised <= self.size:
            return None
        return f"its header promises {self.promised:,} bytes, and it has {self.size:,}"


def read_header(path: Path) -> Header:
    """Reads what a file says of itself.

    Raises:
        VideoError: the file can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "clip.avi"
        ...     size = path.write_bytes(b"RIFF" + struct.pack("<I", 1000) + b"AVI " + bytes(88))
        ...     read_header(path).cut
        'its header promises 1,008 bytes, and it has 100'
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            if start[4:8] in _FIRST_BOXES:
                return _mp4(file, size)
            if start[:4] == b"\x1aE\xdf\xa3":
                return _matroska(file, size)
            if start[:4] == b"RIFF" and start[8:12] == b"AVI ":
                return _avi(file, size)
            if start[:16] == _ASF:
                return _asf(file, size)
    except OSError as exc:
        raise VideoError(f"cannot read {path}: {exc.strerror or exc}") from exc
    except (struct.error, IndexError, ValueError):
        pass  # not what it looked like; whoever decodes it finds out
    return Header(None, size)


def codec_name(code: str) -> str:
    """Returns a codec's usual name for the code that containers write.

    Example:
        >>> codec_name("av01"), codec_name("V_MPEG4/ISO/AVC"), codec_name("Zzz1")
        ('AV1', 'H.264', 'Zzz1')
    """
    return CODEC_NAMES.get(code.strip("\0 ").lower(), code.strip("\0 "))


# MP4 and QuickTime: boxes of a size, four letters and their contents.

_FIRST_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp"))
_LETTERS = re.compile(rb"[A-Za-z0-9 \xa9_-]{4}")


def _mp4(file: BinaryIO, size: int) -> Header:
    at, promised, index = 0, 0, None
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = struct.unpack(">I4s", head[:8])
        skipped = 8
        if length == 1 and len(head) == 16:
            (length,), skipped = struct.unpack(">Q", head[8:]), 16
        if _LETTERS.fullmatch(name) is None or 0 < length < skipped:
            break  # something that was appended
        end = size if length == 0 else at + length
        promised = max(promised, end)
        if name == b"moov" and end <= size:
            file.seek(at + skipped)
            index = file.read(min(end - at - skipped, _MOST))
        at = end
    if index is None:
        return Header("mp4", size, promised, indexed=False)
    whole = _matrix(_box(index, b"mvhd"), 20, 32) or (1.0, 0.0, 0.0, 1.0)
    for name, track in _boxes(index):
        media = _box(track, b"mdia")
        if name != b"trak" or _box(media, b"hdlr")[8:12] != b"vide":
            continue
        own = _matrix(_box(track, b"tkhd"), 24, 36)
        samples = _box(_box(_box(media, b"minf"), b"stbl"), b"stsd")
        at = samples.find(b"colrnclx") + 8
        told = struct.unpack(">HH", samples[at : at + 4]) if 8 <= at <= len(samples) - 4 else None
        return Header(
            "mp4",
            size,
            promised,
            matrix=None if own is None else _after(own, whole),
            codec=codec_name(samples[12:16].decode("latin-1")),
            has_video=True,
            colours=told,
        )
    return Header("mp4", size, promised, has_video=False)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if length < 8:
            return
        yield name, data[at + 8 : at + length]
        at += length


def _box(data: bytes, wanted: bytes) -> bytes:
    return next((inside for name, inside in _boxes(data) if name == wanted), b"")


def _matrix(box: bytes, short: int, long: int) -> tuple[float, float, float, float] | None:
    """Reads the matrix out of a movie's or a track's header.

    Args:
        box: the header.
        short: bytes up to the end of its times, where these have 4 bytes.
        long: likewise, where they have 8.
    """
    if not box:
        return None
    times = long if box[0] == 1 else short
    start = times + 16
    a, b, _, c, d = struct.unpack(">5i", box[start : start + 20])
    return a / 65536, b / 65536, c / 65536, d / 65536


def _after(
    own: tuple[float, float, float, float], whole: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """Returns the matrix that turns by a track's own one first, then by the movie's."""
    a, b, c, d = own
    e, f, g, h = whole
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h


# Matroska and WebM: elements of an id, a size and their contents.


def _matroska(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    start = file.read(1 << 20)
    length, at = _number(start, 4)
    at += length
    promised = None
    if start[at : at + 4] == b"\x18S\x80g":  # the segment, which is the rest of the file
        known, at = _number(start, at + 4)
        # A recorder that can't go back writes "unknown", all ones.
        promised = None if known < 0 else at + known
    found = re.search(rb"\x86[\x80-\xbf](V_[A-Z0-9/]+)", start)
    codec = None if found is None else codec_name(found[1].decode("ascii"))
    return Header("matroska", size, promised, matrix=_pose(start), codec=codec)


def _pose(start: bytes) -> tuple[float, float, float, float] | None:
    """Returns the matrix of a projection's pose: mirrored for a yaw of 180, then rolled."""
    head = start.partition(b"\x1fC\xb6u")[0]  # what comes before the first cluster
    yaw, roll = _angle(head, 0x73), _angle(head, 0x75)
    if not yaw and not roll:
        return None
    mirrored = abs(yaw) > 90
    turn = math.radians(roll if not mirrored else -roll)
    a, b, c, d = math.cos(turn), -math.sin(turn), math.sin(turn), math.cos(turn)
    return (-a, b, -c, d) if mirrored else (a, b, c, d)


def _angle(head: bytes, last: int) -> float:
    """Reads an angle in degrees by its element's last byte; 0 where it isn't there."""
    found = re.search(b"\x76" + bytes([last]) + rb"(?:\x84(.{4})|\x88(.{8}))", head, re.DOTALL)
    if found is None:
        return 0.0
    value: float
    (value,) = struct.unpack(">f", found[1]) if found[1] else struct.unpack(">d", found[2])
    return value


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Reads a size of variable length; -1 for unknown. Returns it and where it ends."""
    length = 9 - data[at].bit_length()
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (-1 if value == (1 << 7 * length) - 1 else value), at + length


# AVI: one RIFF chunk, or several one after the other.


def _avi(file: BinaryIO, size: int) -> Header:
    at, promised = 0, 0
    while at + 8 <= size:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if name != b"RIFF" or length in (0, 0xFFFFFFFF, 0x7FFFFFFF):
            break  # a recorder that couldn't go back
        at += 8 + length
        promised = at
        at += length % 2
    file.seek(0)
    start = file.read(1 << 16)
    stream = start.find(b"vids")
    codec = None if stream < 0 else codec_name(start[stream + 4 : stream + 8].decode("latin-1"))
    return Header("avi", size, promised or None, codec=codec)


def _asf(file: BinaryIO, size: int) -> Header:
    file.seek(0)
    start = file.read(1 << 16)
    at = start.find(_ASF_FILE)
    if at < 0:
        return Header("asf", size)
    (promised,) = struct.unpack("<Q", start[at + 40 : at + 48])
    (flags,) = struct.unpack("<I", start[at + 88 : at + 92])
    # In a broadcast, flag 1, the numbers mean nothing.
    return Header("asf", size, None if flags & 1 else promised)
