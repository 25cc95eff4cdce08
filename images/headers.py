"""What an image file is: its format by its first bytes, its size, and whether its end is there.

The one place that sizes and orientations are read in, for decoding and for checks of data sets.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sigcam.core.errors import ImageError
from sigcam.images.formats import bmp, boxes, gif, jpeg, npy, png, pnm, tiff, webp
from sigcam.images.formats.header import Header

FORMATS = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, HEIC, JPEG 2000, PNM or NPY"
"""The formats, for messages."""

BEGINNING = 1 << 16
"""Bytes that a header is looked for in before the whole file is read."""

_NO_END = "its end is missing"


def size_of_file(path: Path) -> tuple[int, int]:
    """Reads width and height of an image's file from its header, upright.

    Args:
        path: the file.

    Returns:
        The size in pixels; zeros where the header can't be read.

    Raises:
        OSError: the file can't be read.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.zeros((4, 6, 5), np.uint16))
        ...     size_of_file(Path(folder, "a.npy"))
        (6, 4)
    """
    with path.open("rb") as stream:
        data = stream.read(BEGINNING)
        kind = format_of(data)
        if kind is None:
            return 0, 0
        try:
            found = read_header(kind, data, str(path))
            if len(data) == BEGINNING and kind in _AFTER_PIXELS:
                stream.seek(0)
                found = read_header(kind, _AFTER_PIXELS[kind](stream), str(path))
            elif len(data) == BEGINNING and not found.width:
                found = read_header(kind, data + stream.read(), str(path))
        except ImageError:
            return 0, 0
    return found.upright


def format_of(head: bytes) -> str | None:
    """Returns the name of the format that a file's first bytes are of; None for no image.

    Args:
        head: the first 64 bytes or more.

    Example:
        >>> format_of(b"GIF89a"), format_of(b"%PDF")
        ('GIF', None)
    """
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WebP"
    for kind, signatures in _SIGNATURES.items():
        if head.startswith(signatures):
            return kind
    if head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "PNM"
    return boxes.kind_of(head)


_SIGNATURES: dict[str, tuple[bytes, ...]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (png.SIGNATURE,),
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "BMP": (b"BM",),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "NPY": (npy.MAGIC,),
}

_HEADERS: dict[str, Callable[[bytes], Header]] = {
    "JPEG": jpeg.header,
    "PNG": png.header,
    "WebP": webp.header,
    "GIF": gif.header,
    "TIFF": tiff.header,
    "BMP": bmp.header,
    "PNM": pnm.header,
    "AVIF": boxes.header,
    "HEIC": boxes.heic_header,
    "JPEG 2000": boxes.jpeg2000_header,
}


# They may say after the pixels which way up they are.
_AFTER_PIXELS: dict[str, Callable[[BinaryIO], bytes]] = {
    "PNG": png.without_pixels,
    "WebP": webp.without_pixels,
}


def read_header(kind: str, data: bytes, name: str) -> Header:
    """Reads the header.

    Args:
        kind: the format, as `format_of` names it.
        data: of the file, or its beginning.
        name: what errors call it.

    Returns:
        What it says; sizes are 0 where the data end inside it.

    Raises:
        ImageError: an NPY that holds no image.

    Example:
        >>> read_header("GIF", b"GIF89a" + bytes((6, 0, 4, 0, 0, 0, 0)), "a.gif").upright
        (6, 4)
    """
    if kind == "NPY":
        width, height = npy.npy_size(io.BytesIO(data), name)
        return Header(width, height)
    try:
        return _HEADERS[kind](data)
    except (IndexError, struct.error):  # the data end inside it
        return Header()


def problem_of(kind: str, data: bytes, frame: int) -> str:
    r"""Says what is wrong with a file that a decoder may fill with grey; else nothing.

    Args:
        kind: the format.
        data: of the file.
        frame: which page of a TIFF.

    Example:
        >>> problem_of("WebP", b"RIFF\x05\0\0\0WEBP", 0)
        'its end is missing'
    """
    if kind == "JPEG":
        return "" if jpeg.is_whole(data) else _NO_END
    if kind == "PNG":
        return png.damage(data)
    if kind == "WebP":
        return "" if webp.is_whole(data) else _NO_END
    return tiff.damage(data, frame) if kind == "TIFF" else ""
