"""AVIF, HEIC and JPEG 2000: files made of boxes, each with a length and a name."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from sigcam.images.formats.header import Header

_AVIF, _HEIC = (b"avif", b"avis"), (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1")
# By quarter turns against the clock, and then the mirror: none, rows exchanged, columns exchanged.
_ORIENTATIONS = ((1, 4, 2), (8, 5, 7), (3, 2, 4), (6, 7, 5))
_CODESTREAM = b"\xff\x4f\xff\x51"


def kind_of(head: bytes) -> str | None:
    r"""Returns "AVIF" or "HEIC" by a file's first box; None for any other.

    Example:
        >>> kind_of(b"\0\0\0\x10ftypavif\0\0\0\0")
        'AVIF'
    """
    if head[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, length - 3, 4))]
    for kind, names in (("AVIF", _AVIF), ("HEIC", _HEIC)):
        if any(brand in names for brand in brands):
            return kind
    return None


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    r"""Yields name, start and end of the content of each box.

    Args:
        data: of the file, or its beginning.
        start: of the box that holds them.
        end: of it.

    Example:
        >>> list(boxes(b"\0\0\0\x0afreeab"))
        [(b'free', 8, 10)]
    """
    end = len(data) if end is None else min(end, len(data))
    while start + 8 <= end:
        length, name = int.from_bytes(data[start : start + 4], "big"), data[start + 4 : start + 8]
        content = start + 8
        if length == 1:
            length = int.from_bytes(data[start + 8 : start + 16], "big")
            content = start + 16
        elif length == 0:
            length = end - start
        if length < content - start:
            return
        yield name, content, start + length
        start += length


def _inside(data: bytes, span: tuple[int, int], *path: bytes) -> Iterator[tuple[int, int]]:
    """Yields where the boxes of a path are; "meta" begins with four bytes of its own."""
    for name, start, end in boxes(data, *span):
        if name == path[0]:
            inner = (start + 4 if name == b"meta" else start, end)
            if len(path) == 1:
                yield inner
            else:
                yield from _inside(data, inner, *path[1:])


@dataclass
class _Item:
    """What the properties of the main image say.

    Attributes:
        header: of it.
        turns: quarter turns against the clock.
        mirror: 0 none, 1 rows exchanged, 2 columns exchanged.
        aperture: width and height of the part that is shown; zeros for all of it.
    """

    header: Header = field(default_factory=Header)
    aperture: tuple[int, int] = (0, 0)
    turns: int = 0
    mirror: int = 0


def heic_header(data: bytes) -> Header:
    """Reads the same of a HEIC, whose decoder cuts the image to the part that is shown.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> heic_header(b"").upright
        (0, 0)
    """
    return _read(data, cut=True)


def header(data: bytes) -> Header:
    r"""Reads size, orientation, colour profile and number of frames of an AVIF file.

    Orientation is that of the properties irot and imir; EXIF doesn't count in these formats.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> header(b"\0\0\0\x10ftypavif\0\0\0\0").upright
        (0, 0)
    """
    return _read(data, cut=False)


def _read(data: bytes, *, cut: bool) -> Header:
    whole = (0, len(data))
    item = _Item(Header(components=3))
    for start, end in _inside(data, whole, b"meta", b"iprp"):
        properties = [box for place in _inside(data, (start, end), b"ipco")
                      for box in boxes(data, *place)]  # fmt: skip
        for index in _associated(data, (start, end), _primary(data, whole)):
            if 0 < index <= len(properties):
                _apply(item, data, *properties[index - 1])
    found = item.header
    if cut and min(item.aperture) > 0:
        found = replace(found, width=item.aperture[0], height=item.aperture[1])
    if found.width:
        found = replace(found, orientation=_ORIENTATIONS[item.turns][item.mirror])
    return replace(found, frames=_samples(data, whole))


def _primary(data: bytes, whole: tuple[int, int]) -> int:
    for start, _ in _inside(data, whole, b"meta", b"pitm"):
        width = 2 if data[start] == 0 else 4
        return int.from_bytes(data[start + 4 : start + 4 + width], "big")
    return 1


def _associated(data: bytes, iprp: tuple[int, int], item: int) -> list[int]:
    """Returns the numbers of an item's properties, from 1, in the order that they apply."""
    for start, end in _inside(data, iprp, b"ipma"):
        version, flags = data[start], data[start + 3]
        letter, size = ("H", 2) if version == 0 else ("I", 4)
        wide = flags & 1
        at = start + 8
        while at + size < end:
            (number,) = struct.unpack_from(">" + letter, data, at)
            count = data[at + size]
            at += size + 1
            step = 2 if wide else 1
            if number == item:
                mask = 0x7FFF if wide else 0x7F
                places = range(at, at + step * count, step)
                return [int.from_bytes(data[one : one + step], "big") & mask for one in places]
            at += step * count
    return []


def _apply(item: _Item, data: bytes, name: bytes, start: int, end: int) -> None:
    content = data[start:end]
    if name == b"ispe" and len(content) >= 12:
        width, height = struct.unpack_from(">II", content, 4)
        item.header = replace(item.header, width=width, height=height)
    elif name == b"clap" and len(content) >= 16:
        over = struct.unpack_from(">IIII", content)
        item.aperture = (over[0] // max(1, over[1]), over[2] // max(1, over[3]))
    elif name == b"colr" and content[:4] in (b"prof", b"rICC"):
        item.header = replace(item.header, profile=content[4:])
    elif name == b"pixi" and len(content) >= 6:
        bits = content[5]
        item.header = replace(
            item.header, bits=bits, significant=_within_16(bits), components=content[4]
        )
    elif name == b"irot" and content:
        item.turns = content[0] & 3
        if item.mirror and item.turns & 1:  # mirrored first: the other axis after the turn
            item.mirror = 3 - item.mirror
    elif name == b"imir" and content:
        item.mirror = 1 + (content[0] & 1)


def _samples(data: bytes, whole: tuple[int, int]) -> int:
    """Counts the frames of a sequence: the samples of its first track."""
    path = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz")
    for start, _ in _inside(data, whole, *path):
        return max(1, int.from_bytes(data[start + 8 : start + 12], "big"))
    return 1


def jpeg2000_header(data: bytes) -> Header:
    """Reads size, bits and colour profile of a JPEG 2000 file or bare codestream.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> import cv2, numpy
        >>> jp2 = cv2.imencode(".jp2", numpy.zeros((40, 60, 3), numpy.uint8))[1].tobytes()
        >>> found = jpeg2000_header(jp2)
        >>> found.width, found.height, found.components
        (60, 40, 3)
    """
    at = data.find(_CODESTREAM)
    if at < 0 or at + 41 > len(data):
        return Header()
    right, lower, left, upper = struct.unpack_from(">IIII", data, at + 8)
    components, bits = int.from_bytes(data[at + 40 : at + 42], "big"), data[at + 42]
    profile = b""
    for start, end in _inside(data, (0, len(data)), b"jp2h", b"colr"):
        if data[start] == 2 and end <= at:  # a restricted ICC profile
            profile = data[start + 3 : end]
    return Header(
        right - left,
        lower - upper,
        profile=profile,
        bits=(bits & 127) + 1,
        significant=_within_16((bits & 127) + 1),
        components=components,
    )


def _within_16(bits: int) -> int:
    """Returns the bits that are used of the 16 that OpenCV gives for values of more than 8."""
    return bits if 8 < bits < 16 else 0
