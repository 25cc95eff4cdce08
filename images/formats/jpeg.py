"""JPEG: the segments before the pixels, and a decoder that doesn't hide damage.

libjpeg fills what is missing with grey, warns, and goes on; OpenCV keeps the warnings from its
caller. The package simplejpeg is a thin layer over libjpeg-turbo that raises them. Its pixels are
those of OpenCV, bit by bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple, cast

import cv2
import numpy as np
import simplejpeg

from sigcam.core.errors import ImageError
from sigcam.core.types import Array
from sigcam.images.formats.exif import exif_orientation, xmp_orientation
from sigcam.images.formats.header import Header

_SOS, _APP1, _APP2 = 0xDA, 0xE1, 0xE2
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_XMP, _ICC = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"

# What libjpeg warns of though no pixel is lost.
_HARMLESS = (
    "Invalid SOS parameters",
    "Unknown Adobe color transform",
    "unknown JFIF revision",
    "bad ICC marker",
)
_EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0x([0-9a-f]{2})")
# How its messages about files begin that are whole, but of a rare kind.
_UNSUPPORTED = ("Unsupported JPEG", "Sorry", "Could not determine subsampling", "Requested feature")


class Segment(NamedTuple):
    """A marker segment before the first scan.

    Attributes:
        marker: its second byte.
        start: of its first byte, 0xFF, in the file.
        junk: bytes before it that belong to no segment.
        payload: what follows its length.
    """

    marker: int
    start: int
    junk: int
    payload: bytes


def segments(data: bytes) -> Iterator[Segment]:
    """Yields the segments up to the first scan, or to where the data end.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> [hex(one.marker) for one in segments(bytes.fromhex("ffd8 ffe0 0004 0000 ffda 0002"))]
        ['0xe0', '0xda']
    """
    at = 2
    while True:
        start = data.find(b"\xff", at)
        while start >= 0 and data[start + 1 : start + 2] == b"\xff":  # fill bytes
            start += 1
        if start < 0 or start + 4 > len(data):
            return
        marker = data[start + 1]
        if marker == 0 or 0xD0 <= marker <= 0xD7:
            at = start + 2
            continue
        end = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
        yield Segment(marker, start, len(data[at:start].rstrip(b"\xff")), data[start + 4 : end])
        if marker in (_SOS, 0xD9):
            return
        at = end


def header(data: bytes) -> Header:
    """Reads size, orientation and colour profile.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> found = header(jpeg)
        >>> found.width, found.height, found.components
        (6, 4, 3)
    """
    frame = (0, 0, 0, 0)
    exif, xmp, parts = 0, 0, {}
    for marker, _, _, payload in segments(data):
        if marker in _FRAMES and len(payload) >= 6 and not frame[1]:
            frame = (
                payload[0],
                int.from_bytes(payload[1:3], "big"),
                int.from_bytes(payload[3:5], "big"),
                payload[5],
            )
        elif marker == _APP1 and payload.startswith(b"Exif\0"):
            exif = exif or exif_orientation(payload[6:])
        elif marker == _APP1 and payload.startswith(_XMP):
            xmp = xmp or xmp_orientation(payload)
        elif marker == _APP2 and payload.startswith(_ICC):
            parts[payload[12]] = payload[14:]
    bits, height, width, components = frame
    profile = b"".join(parts[number] for number in sorted(parts))
    return Header(width, height, exif or xmp or 1, profile, bits=bits, components=components)


def is_whole(data: bytes) -> bool:
    """Says whether an end marker follows the first scan.

    The segments before it are walked by their lengths, because an EXIF thumbnail is a JPEG of its
    own with its own end marker. Inside a scan, 0xFF is always escaped.

    Args:
        data: of the file.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> is_whole(jpeg), is_whole(jpeg[:-2])
        (True, False)
    """
    scan = next((one.start for one in segments(data) if one.marker == _SOS), None)
    return scan is not None and data.find(b"\xff\xd9", scan) >= 0


def decode(data: bytes, found: Header, name: str, reduction: int = 1) -> Array:
    """Decodes to RGB, not turned upright.

    Args:
        data: of the file.
        found: its header.
        name: what errors call it.
        reduction: 1, 2, 4 or 8; how many times smaller each way.

    Returns:
        uint8 [ceil(height / reduction), ceil(width / reduction), 3]; of a CMYK file, 4 values
        with 255 for no ink, as Adobe's programs write them.

    Raises:
        ImageError: damaged, or of a kind that libjpeg-turbo doesn't decode.

    Example:
        >>> jpeg = cv2.imencode(".jpg", np.full((4, 6, 3), 9, np.uint8))[1].tobytes()
        >>> decode(jpeg, header(jpeg), "grey.jpg").shape
        (4, 6, 3)
    """
    size = {
        "min_height": -(-found.height // reduction),
        "min_width": -(-found.width // reduction),
        "min_factor": reduction,
    }
    space = "CMYK" if found.components == 4 else "RGB"
    try:
        return cast("Array", simplejpeg.decode_jpeg(data, space, **size))
    except ValueError as exc:
        return _second_try(data, str(exc), name, space, size)


def _second_try(data: bytes, warning: str, name: str, space: str, size: dict[str, int]) -> Array:
    """Decodes a file that libjpeg warned of, if nothing of the image is lost."""
    harmless = any(text in warning for text in _HARMLESS)
    cleaned = data if harmless else _without_padding(data, warning)
    if cleaned is None:
        if warning.startswith(_UNSUPPORTED):
            raise ImageError(
                f"{name} is a JPEG of a kind that isn't read ({warning}); save it as a usual JPEG, "
                "8 bits and Huffman coded, or as PNG"
            )
        raise ImageError(
            f"{name} is a damaged JPEG: a part of the image is missing or wrong ({warning}); get "
            "it again"
        )
    try:
        image = simplejpeg.decode_jpeg(cleaned, space, strict=not harmless, **size)
    except ValueError as exc:
        raise ImageError(f"{name} is a damaged JPEG ({exc}); get it again") from exc
    return cast("Array", image)


def _without_padding(data: bytes, warning: str) -> bytes | None:
    """Takes away bytes that belong to nothing: between segments, or one value before the end.

    Bytes before the end that differ are what a decoder has left over that lost its place.
    """
    found = _EXTRANEOUS.search(warning)
    if not found:
        return None
    count = int(found[1])
    if found[2] != "d9":
        kept, at = [], 0
        for one in segments(data):
            kept.append(data[at : one.start - one.junk])
            at = one.start
        cleaned = b"".join(kept) + data[at:]
        return cleaned if len(cleaned) < len(data) else None
    scan = next((one.start for one in segments(data) if one.marker == _SOS), 0)
    end = data.find(b"\xff\xd9", scan)
    padding = data[end - count : end]
    if end < count or len(set(padding)) != 1:
        return None
    return data[: end - count].rstrip(padding[:1]) + data[end:]


def rgb_of_cmyk(image: Array) -> Array:
    """Makes RGB of CMYK without a profile: each colour times black.

    Args:
        image: uint8 [H, W, 4], 255 for no ink.

    Example:
        >>> rgb_of_cmyk(np.array([[[255, 0, 128, 255]]], np.uint8)).tolist()
        [[[255, 0, 128]]]
    """
    black = cv2.merge([image[:, :, 3]] * 3)
    return cv2.multiply(np.ascontiguousarray(image[:, :, :3]), black, scale=1 / 255)
