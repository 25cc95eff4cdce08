"""WebP: the chunks of its RIFF container."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from sigcam.images.formats.exif import exif_orientation, xmp_orientation
from sigcam.images.formats.header import Header

_PIXELS = frozenset((b"VP8 ", b"VP8L", b"ALPH", b"ANMF"))
_SIZED = 10  # bytes at the beginning of pixels, in which their size stands


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    r"""Yields name and payload of each chunk, the last one cut where the data end.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> list(chunks(b"RIFF\x0c\0\0\0WEBPEXIF\x02\0\0\0ab"))
        [(b'EXIF', b'ab')]
    """
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def without_pixels(stream: BinaryIO) -> bytes:
    r"""Reads a file but for most of the payloads that hold pixels, for `header`.

    Args:
        stream: of the file, at its beginning.

    Example:
        >>> import io
        >>> alpha = b"ALPH" + (40).to_bytes(4, "little") + bytes(40)
        >>> list(chunks(without_pixels(io.BytesIO(b"RIFF\0\0\0\0WEBP" + alpha)))) == [
        ...     (b"ALPH", bytes(10))
        ... ]
        True
    """
    found = [stream.read(12)]
    while len(head := stream.read(8)) == 8:
        length = int.from_bytes(head[4:], "little")
        kept = min(length, _SIZED) if head[:4] in _PIXELS else length
        payload = stream.read(kept)
        found += [head[:4], len(payload).to_bytes(4, "little"), payload, bytes(len(payload) % 2)]
        stream.seek(length + length % 2 - kept, 1)
    return b"".join(found)


def header(data: bytes) -> Header:
    """Reads size, orientation, colour profile and the number of frames.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> import cv2, numpy
        >>> webp = cv2.imencode(".webp", numpy.zeros((4, 6, 3), numpy.uint8))[1].tobytes()
        >>> header(webp).upright
        (6, 4)
    """
    found = Header(bits=8, components=3)
    exif = xmp = frames = 0
    for name, payload in chunks(data):
        size = (0, 0) if found.width else _size(name, payload)
        if size[0]:
            found = replace(found, width=size[0], height=size[1])
        if name == b"ICCP":
            found = replace(found, profile=payload)
        elif name == b"EXIF":
            exif = exif_orientation(payload)
        elif name == b"XMP ":
            xmp = xmp_orientation(payload)
        elif name == b"ANMF":
            frames += 1
    return replace(found, orientation=exif or xmp or 1, frames=max(1, frames))


def _size(name: bytes, payload: bytes) -> tuple[int, int]:
    if name == b"VP8X" and len(payload) >= 10:
        width, height = payload[4:7], payload[7:10]
        return int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1
    if name == b"VP8 " and payload[3:6] == b"\x9d\x01\x2a" and len(payload) >= 10:
        width, height = payload[6:8], payload[8:10]
        return int.from_bytes(width, "little") & 0x3FFF, int.from_bytes(height, "little") & 0x3FFF
    if name == b"VP8L" and payload[:1] == b"\x2f" and len(payload) >= 5:
        both = int.from_bytes(payload[1:5], "little")
        return (both & 0x3FFF) + 1, (both >> 14 & 0x3FFF) + 1
    return 0, 0


def is_whole(data: bytes) -> bool:
    r"""Says whether the file is as long as its header says.

    Example:
        >>> is_whole(b"RIFF\x04\0\0\0WEBP"), is_whole(b"RIFF\x05\0\0\0WEBP")
        (True, False)
    """
    return len(data) >= 8 + int.from_bytes(data[4:8], "little")
