"""TIFF: the tags of its pages, and the files that OpenCV can't read right.

OpenCV returns the first band of a file with more than four, or makes black and white of values
that are no bytes, and says nothing; so the tags decide who reads a file. The pixels of those are
read by the package tifffile. BigTIFF has the same tags, with wider numbers.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import simplejpeg

from sigcam.core.errors import ImageError
from sigcam.core.types import Array
from sigcam.images.formats.header import Header

ORIENTATION = 274
"""The tag that says which way up the image is, in EXIF too."""

CMYK = 5
"""The photometric interpretation of inks."""

Tags: TypeAlias = "dict[int, tuple[int, ...] | bytes]"

_SUBFILE, _WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _MOST_VALUE, _PLANAR = 273, 277, 278, 279, 281, 284
_TILE_WIDTH, _TILE_LENGTH, _TILES, _TILE_BYTES, _JPEG_TABLES = 322, 323, 324, 325, 347
_EXTRA, _SAMPLE_FORMAT, _PROFILE, _DNG = 338, 339, 34675, 50706
_SENSOR = (32803, 34892)  # photometric: a colour filter's mosaic, and linear raw values
# By the tag's type: BYTE, ASCII, SHORT, LONG, SBYTE, UNDEFINED, SSHORT, SLONG, IFD, LONG8, IFD8.
_TYPES = {
    1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 18: "Q",
}  # fmt: skip
_COLOURS = (2, 3, 5, 6, 8)  # photometric: RGB, palette, CMYK, YCbCr, CIE L*a*b*
_FORMATS = {1: "whole numbers from 0", 2: "whole numbers with a sign", 3: "floating point"}
_UNSIGNED, _INTERLEAVED, _UNASSOCIATED_ALPHA = 1, 1, 2
_MOST_PAGES = 65_536


@dataclass(frozen=True)
class TiffHeader:
    """What the tags of a page say, and how many pages there are.

    Attributes:
        pages: number of pages, without thumbnails and masks.
        samples: values of a pixel.
        bits: of a value.
        format: of a value: 1 whole from 0, 2 whole with a sign, 3 floating point.
        photometric: what the values mean.
        is_interleaved: whether a pixel's values lie side by side.
        alpha: whether there is an alpha channel that colours weren't multiplied by.
        compression: as in the tag.
        tiled: whether pixels lie in tiles and not in strips.
        is_raw: whether it is a camera's raw file (DNG), whose pages are sensor values or a preview.
    """

    pages: int
    samples: int
    bits: int
    format: int
    photometric: int
    is_interleaved: bool
    alpha: bool
    compression: int
    tiled: bool
    is_raw: bool

    @property
    def is_unsigned(self) -> bool:
        """Returns whether values are whole numbers from 0."""
        return self.format == _UNSIGNED

    @property
    def has_colours(self) -> bool:
        """Returns whether the values are colours and not just bands."""
        return self.photometric in _COLOURS

    @property
    def is_plain(self) -> bool:
        """Returns whether stored values are the colours: grey from black, or RGB."""
        return self.photometric in (1, 2)

    @property
    def is_photograph(self) -> bool:
        """Returns whether OpenCV reads all of it as grey or colour."""
        if self.samples == 1:
            return self.pages == 1 or self.has_colours
        return self.has_colours and self.samples <= 4

    @property
    def is_exact(self) -> bool:
        """Returns whether OpenCV reads a photograph's values as they are stored."""
        if self.samples == 1:
            return True
        premultiplied = self.alpha and self.bits == 8
        return self.is_interleaved and not premultiplied

    @property
    def kind(self) -> str:
        """Returns in words what is rare about it, for errors."""
        values = _FORMATS.get(self.format, f"sample format {self.format}")
        layout = "tiles" if self.tiled else "strips"
        return (
            f"{self.samples} x {self.bits} bits, {values}, in {layout}, compression "
            f"{self.compression}, photometric interpretation {self.photometric}"
        )


def directories(data: bytes, most: int = _MOST_PAGES) -> list[Tags]:
    r"""Reads the tags of each page: whole numbers as tuples, bytes and text as bytes.

    Args:
        data: of a TIFF or BigTIFF.
        most: pages that are read at most.

    Raises:
        ValueError: no TIFF, or it ends inside its tags.

    Example:
        >>> directories(b"II*\0" + bytes(4))
        []
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no TIFF")
    found: list[Tags] = []
    seen: set[int] = set()
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (at,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        while at and at not in seen and len(found) < most:
            seen.add(at)
            tags, at = _directory(data, at, order, big)
            found.append(tags)
    except (struct.error, OverflowError) as exc:
        raise ValueError("the file ends inside its tags") from exc
    return found


def _directory(data: bytes, at: int, order: str, big: bool) -> tuple[Tags, int]:
    count_letter, letter, entry_size, room = ("Q", "Q", 20, 8) if big else ("H", "I", 12, 4)
    (count,) = struct.unpack_from(order + count_letter, data, at)
    at += struct.calcsize(order + count_letter)
    end = at + entry_size * count
    (following,) = struct.unpack_from(order + letter, data, end)
    tags: Tags = {}
    for entry in range(at, end, entry_size):
        tag, kind, number = struct.unpack_from(f"{order}HH{letter}", data, entry)
        value = _TYPES.get(kind)
        if value is None or not number or tag in tags:  # of two, libtiff takes the first
            continue
        size, place = struct.calcsize("=" + value) * number, entry + entry_size - room
        if size > room:
            (place,) = struct.unpack_from(order + letter, data, place)
        if place + size > len(data):
            raise ValueError("the file ends inside its tags")
        if value == "B":
            tags[tag] = data[place : place + size]
        else:
            tags[tag] = struct.unpack_from(f"{order}{number}{value}", data, place)
    return tags, following


def _images(data: bytes) -> list[Tags]:
    """Returns the pages that are images of their own, not thumbnails (1) or masks (4)."""
    pages = directories(data)
    return [page for page in pages if not page.get(_SUBFILE, (0,))[0] & 5] or pages


def _first(tags: Tags, tag: int, default: int) -> int:
    return tags.get(tag, (default,))[0]


def header(data: bytes, page: int = 0) -> Header:
    """Reads size, orientation, colour profile, bits and the number of pages.

    Args:
        data: of the file; where its beginning doesn't reach the tags, sizes are 0.
        page: which one.

    Example:
        >>> import cv2
        >>> tiff = cv2.imencode(".tiff", np.zeros((4, 6), np.uint16))[1].tobytes()
        >>> found = header(tiff)
        >>> found.width, found.height, found.bits
        (6, 4, 16)
    """
    try:
        pages = _images(data)
    except ValueError:
        return Header()
    if page >= len(pages):
        return Header(frames=len(pages))
    tags = pages[page]
    bits, most = _first(tags, _BITS, 1), _first(tags, _MOST_VALUE, 0)
    orientation = _first(tags, ORIENTATION, 1)
    return Header(
        _first(tags, _WIDTH, 0),
        _first(tags, _LENGTH, 0),
        orientation if 1 <= orientation <= 8 else 1,
        bytes(tags.get(_PROFILE, b"")),
        len(pages),
        bits,
        most.bit_length() if 8 < most.bit_length() < bits <= 16 else 0,
        _first(tags, _SAMPLES, 1),
    )


def tiff_header(data: bytes, page: int | None = None) -> TiffHeader | None:
    """Reads the tags of a page; None where they are damaged.

    Args:
        data: the file's bytes.
        page: which one, alone; None for the first, with those that may be its further bands.

    Example:
        >>> import cv2
        >>> done, data = cv2.imencode(".tiff", np.zeros((4, 6, 3), np.uint16))
        >>> found = tiff_header(data.tobytes())
        >>> found.samples, found.bits, found.is_photograph
        (3, 16, True)
    """
    try:
        pages = _images(data)
        tags = pages[page or 0]
    except (IndexError, ValueError):
        return None
    return TiffHeader(
        len(pages) if page is None else 1,
        _first(tags, _SAMPLES, 1),
        _first(tags, _BITS, 1),
        _first(tags, _SAMPLE_FORMAT, _UNSIGNED),
        _first(tags, _PHOTOMETRIC, 0),
        _first(tags, _PLANAR, _INTERLEAVED) == _INTERLEAVED,
        _first(tags, _EXTRA, 0) == _UNASSOCIATED_ALPHA,
        _first(tags, _COMPRESSION, 1),
        _TILE_WIDTH in tags,
        any(_DNG in page or _first(page, _PHOTOMETRIC, 0) in _SENSOR for page in pages),
    )


def damage(data: bytes, page: int = 0) -> str:
    r"""Says what is wrong with a page's strips or tiles; nothing where they are whole.

    Each must lie inside the file. Those of zlib and JPEG are decompressed, as OpenCV gives black
    for what it can't decompress. Damage inside of LZW isn't found.

    Args:
        data: of the file.
        page: which one.

    Example:
        >>> import cv2
        >>> tiff = cv2.imencode(".tiff", np.zeros((4, 6), np.uint8))[1].tobytes()
        >>> damage(tiff), damage(b"II*\0")
        ('', 'the file ends inside its tags')
    """
    try:
        pages = _images(data)
    except ValueError as exc:
        return str(exc)
    if page >= len(pages):
        return "it has no page"
    tags = pages[page]
    tiled = _TILES in tags
    places = tags.get(_TILES if tiled else _STRIPS, ())
    sizes = tags.get(_TILE_BYTES if tiled else _STRIP_BYTES, ())
    what = "tiles" if tiled else "strips"
    if not places:
        return f"it has no {what}"
    needed = _segments(tags)
    if len(places) < needed:
        return f"{needed - len(places)} of its {needed} {what} are missing"
    outside = sum(place + size > len(data) for place, size in zip(places, sizes, strict=False))
    if outside or max(places) >= len(data):
        return f"{max(outside, 1)} of its {len(places)} {what} lie outside of the file"
    check = _CHECKS.get(_first(tags, _COMPRESSION, 1))
    for place, size in zip(places, sizes, strict=False) if check else ():
        if size and check and not check(data[place : place + size], tags):
            return f"one of its {len(places)} {what} can't be decompressed"
    return ""


def _segments(tags: Tags) -> int:
    """Counts the strips or tiles that a page of its size has; a strip has all rows by default."""
    width, length = _first(tags, _WIDTH, 0), _first(tags, _LENGTH, 0)
    planes = 1
    if _first(tags, _PLANAR, _INTERLEAVED) != _INTERLEAVED:
        planes = _first(tags, _SAMPLES, 1)
    rows = max(_first(tags, _ROWS, length), 1)
    if _TILES not in tags:
        return planes * -(-length // rows)
    across = max(_first(tags, _TILE_WIDTH, width), 1)
    down = max(_first(tags, _TILE_LENGTH, length), 1)
    return planes * -(-width // across) * -(-length // down)


def _unfolds(data: bytes, tags: Tags) -> bool:
    del tags
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(data)
    except zlib.error:
        return False
    return unpacker.eof


def _is_jpeg(data: bytes, tags: Tags) -> bool:
    """Says whether a strip's JPEG, with the tables that all strips share, decodes unharmed."""
    tables = bytes(tags.get(_JPEG_TABLES, b""))
    whole = tables[:-2] + data[2:] if tables else data
    try:
        simplejpeg.decode_jpeg(whole, "CMYK" if _first(tags, _SAMPLES, 1) == 4 else "GRAY")
    except ValueError as exc:
        return "Corrupt JPEG data" not in str(exc) and "Premature end" not in str(exc)
    return True


_CHECKS: dict[int, Callable[[bytes, Tags], bool]] = {7: _is_jpeg, 8: _unfolds, 32946: _unfolds}


def read_bands(data: bytes, name: str, page: int | None = None) -> Array:
    """Reads all bands of a TIFF, not turned upright.

    Bands are the values of a pixel, interleaved or not, or one to a page.

    Args:
        data: the file's bytes.
        name: what errors call the file.
        page: the one to read, alone; None for the first, with those that hold its further bands.

    Returns:
        [H, W, bands] of the file's own type; a copy.

    Raises:
        ImageError: the package tifffile is missing, or the file is damaged, or its pages have
            several bands each.

    Example:
        >>> import tifffile
        >>> file, bands = io.BytesIO(), np.zeros((6, 4, 5), np.uint16)
        >>> tifffile.imwrite(file, bands, photometric="minisblack", planarconfig="separate")
        >>> read_bands(file.getvalue(), "field.tif").shape
        (4, 5, 6)
    """
    try:
        import tifffile
    except ImportError as exc:
        found = tiff_header(data, page)
        kind = "" if found is None else f" ({found.kind})"
        raise ImageError(
            f"{name} is a TIFF of a kind that OpenCV doesn't read{kind}; it needs the package "
            'tifffile: pip install "sigcam[tiff]", or save the bands as .npy [H, W, bands]'
        ) from exc
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            axes, values = _values(file, page)
    except Exception as exc:  # a damaged file makes the package raise many kinds
        advice = (
            "; pip install imagecodecs" if "imagecodecs" in str(exc) else ": damaged or truncated"
        )
        raise ImageError(f"{name} is a TIFF that can't be decoded ({exc}){advice}") from exc
    if len(axes) != values.ndim:
        raise ImageError(f"{name} is a damaged TIFF: its tags contradict its pixels; get it again")
    bands = [axis for axis in axes if axis not in "YX"]
    if len(bands) > 1 or "Y" not in axes or "X" not in axes:
        raise ImageError(
            f"{name} must have bands in one axis, it has {list(values.shape)} ({axes}); save the "
            "bands as .npy [H, W, bands], or name a page: FILE#0"
        )
    order = [axes.index(axis) for axis in "YX"] + [axes.index(axis) for axis in bands]
    return np.ascontiguousarray(values.transpose(order))


def _values(file: Any, page: int | None) -> tuple[str, Array]:
    """Returns the names of the axes, and the values, of a page or of the first series."""
    if page is None:
        series = file.series[0]
        return series.axes, series.asarray()
    images = [one for one in file.pages if not int(one.subfiletype) & 5] or list(file.pages)
    return images[page].axes, images[page].asarray()
