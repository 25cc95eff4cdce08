"""PNG: its chunks, and what they say."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from sigcam.images.formats.exif import exif_orientation, xmp_orientation
from sigcam.images.formats.header import Header

SIGNATURE = b"\x89PNG\r\n\x1a\n"
"""How such a file begins."""

MOST_SIDE = 1_000_000
"""The largest width and height that the library under OpenCV takes."""

_RAW_PROFILES = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_MOST_METADATA = 16 << 20  # bytes that a compressed chunk may unfold to
_COMPONENTS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the colour type


def chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, int]]:
    """Yields name, payload and start of each chunk that is there in full.

    Args:
        data: of the file, or its beginning. Payloads are views of it: most of a file are pixels,
            which needn't be copied.

    Example:
        >>> [(name, len(payload), at) for name, payload, at in chunks(
        ...     SIGNATURE + bytes(4) + b"IEND" + bytes(4)
        ... )]
        [(b'IEND', 0, 8)]
    """
    view = memoryview(data)
    at = len(SIGNATURE)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + length > len(data):
            return
        yield data[at + 4 : at + 8], view[at + 8 : at + 8 + length], at
        at += 12 + length


def without_pixels(stream: BinaryIO) -> bytes:
    """Reads a file but for the payloads that hold pixels, for `header`.

    Args:
        stream: of the file, at its beginning.

    Example:
        >>> import io
        >>> pixels = (1).to_bytes(4, "big") + b"IDAT" + bytes(5)
        >>> without_pixels(io.BytesIO(SIGNATURE + pixels)) == SIGNATURE
        True
    """
    found = [stream.read(len(SIGNATURE))]
    while len(head := stream.read(8)) == 8:
        rest = int.from_bytes(head[:4], "big") + 4
        if head[4:] in (b"IDAT", b"fdAT"):
            stream.seek(rest, 1)
        else:
            found += [head, stream.read(rest)]
        if head[4:] == b"IEND":
            break
    return b"".join(found)


def header(data: bytes) -> Header:
    """Reads size, orientation, colour profile, bits and the number of frames.

    Orientation stands in eXIf, in the text chunks that ImageMagick writes, or in XMP.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> import cv2, numpy
        >>> png = cv2.imencode(".png", numpy.zeros((4, 6), numpy.uint16))[1].tobytes()
        >>> found = header(png)
        >>> found.width, found.height, found.bits, found.components
        (6, 4, 16, 1)
    """
    found = Header()
    exif = xmp = 0
    for name, view, _ in chunks(data):
        if name in (b"IDAT", b"fdAT"):
            continue
        payload = bytes(view)
        if name == b"IHDR" and len(payload) == 13:
            found = replace(
                found,
                width=int.from_bytes(payload[:4], "big"),
                height=int.from_bytes(payload[4:8], "big"),
                bits=payload[8],
                components=_COMPONENTS.get(payload[9], 0),
            )
        elif name == b"eXIf":
            exif = exif_orientation(payload) or exif
        elif name == b"iCCP":
            found = replace(found, profile=_unfolded(payload.partition(b"\0")[2][1:]))
        elif name == b"sBIT" and payload:
            found = replace(found, significant=max(payload[: min(3, len(payload))]))
        elif name == b"acTL" and len(payload) == 8:
            found = replace(found, frames=max(1, int.from_bytes(payload[:4], "big")))
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            exif = exif or _raw_profile(name, payload)
            xmp = xmp or _xmp(name, payload)
        elif name == b"IEND":
            break
    return replace(found, orientation=exif or xmp or 1)


def _unfolded(data: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(data, _MOST_METADATA)
    except zlib.error:
        return b""


def _raw_profile(name: bytes, payload: bytes) -> int:
    """Reads the orientation of EXIF data written as text: a name, a length, hexadecimal digits."""
    if not payload.startswith(_RAW_PROFILES):
        return 0
    text = payload.partition(b"\0")[2]
    if name == b"zTXt":
        text = _unfolded(text[1:])
    elif name == b"iTXt":
        text = _international(text)
    lines = text.split(b"\n")
    try:
        return exif_orientation(bytes.fromhex(b"".join(lines[3:]).decode("ascii")))
    except ValueError:
        return 0


def _xmp(name: bytes, payload: bytes) -> int:
    if name != b"iTXt" or not payload.startswith(b"XML:com.adobe.xmp\0"):
        return 0
    return xmp_orientation(_international(payload.partition(b"\0")[2]))


def _international(text: bytes) -> bytes:
    """Returns the text of an iTXt chunk, whose keyword is taken off."""
    packed, rest = text[:1] == b"\1", text[2:]
    body = rest.partition(b"\0")[2].partition(b"\0")[2]
    return _unfolded(body) if packed else body


def damage(data: bytes) -> str:
    """Says what is wrong with the file; nothing where its chunks are whole.

    Only chunks that pixels come from count. The decoder checks the compressed pixels.

    Args:
        data: of the file.

    Example:
        >>> damage(SIGNATURE + bytes(4) + b"IEND" + zlib.crc32(b"IEND").to_bytes(4, "big"))
        ''
    """
    for name, payload, at in chunks(data):
        if name[:1].isupper():
            wanted = data[at + 8 + len(payload) : at + 12 + len(payload)]
            if zlib.crc32(payload, zlib.crc32(name)).to_bytes(4, "big") != wanted:
                return f"the checksum of its chunk {name.decode('latin-1')} is wrong"
        if name == b"IEND":
            return ""
    return "its end is missing"
