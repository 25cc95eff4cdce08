"""TIFF files that OpenCV can't read right: more than four bands, or bands that are no colours.

OpenCV returns the first band of some of these and says nothing, so the header decides who reads
a file. Its tags are read here; the pixels of such files by the package tifffile.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.types import Array

_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _PLANAR = 258, 262, 274, 277, 284
_EXTRA, _SAMPLE_FORMAT = 338, 339
_SIZES = {1: ("B", 1), 3: ("H", 2), 4: ("I", 4)}  # by the tag's type: BYTE, SHORT, LONG
_COLOURS = (2, 3, 5, 6, 8)  # photometric: RGB, palette, CMYK, YCbCr, CIE L*a*b*
_UNSIGNED, _INTERLEAVED, _UNASSOCIATED_ALPHA = 1, 1, 2
_MOST_PAGES = 4096


@dataclass(frozen=True)
class TiffHeader:
    """What the tags of a TIFF's first page say, and how many pages there are.

    Attributes:
        pages: number of pages.
        samples: values of a pixel.
        bits: of a value.
        is_unsigned: whether values are whole numbers from 0.
        has_colours: whether they are colours and not just bands.
        is_interleaved: whether a pixel's values lie side by side.
        alpha: whether there is an alpha channel that colours weren't multiplied by.
        orientation: as in EXIF, 1 to 8.
    """

    pages: int
    samples: int
    bits: int
    is_unsigned: bool
    has_colours: bool
    is_interleaved: bool
    alpha: bool
    orientation: int

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


def tiff_header(data: bytes) -> TiffHeader | None:
    """Reads the tags of a TIFF; None where they are damaged.

    Args:
        data: the file's bytes.

    Example:
        >>> import cv2
        >>> done, data = cv2.imencode(".tiff", np.zeros((4, 6, 3), np.uint16))
        >>> header = tiff_header(data.tobytes())
        >>> header.samples, header.bits, header.is_photograph
        (3, 16, True)
    """
    try:
        first, pages = _directories(data)
    except (struct.error, ValueError):
        return None
    return TiffHeader(
        pages,
        first.get(_SAMPLES, 1),
        first.get(_BITS, 1),
        first.get(_SAMPLE_FORMAT, _UNSIGNED) == _UNSIGNED,
        first.get(_PHOTOMETRIC, 0) in _COLOURS,
        first.get(_PLANAR, _INTERLEAVED) == _INTERLEAVED,
        first.get(_EXTRA, 0) == _UNASSOCIATED_ALPHA,
        first.get(_ORIENTATION, 1),
    )


def exif_orientation(data: bytes) -> int:
    """Returns the orientation that EXIF metadata state, 1 to 8; 1 where they don't.

    Args:
        data: the metadata, which have the form of a TIFF.

    Example:
        >>> exif_orientation(b"")
        1
    """
    try:
        return _directories(data.removeprefix(b"Exif\0\0"))[0].get(_ORIENTATION, 1)
    except (struct.error, ValueError):
        return 1


def _directories(data: bytes) -> tuple[dict[int, int], int]:
    """Reads the first value of each whole number of the first page, and counts the pages."""
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        raise ValueError("no TIFF")
    (at,) = struct.unpack_from(order + "I", data, 4)
    tags: dict[int, int] = {}
    pages = 0
    while at and pages < _MOST_PAGES:
        (count,) = struct.unpack_from(order + "H", data, at)
        for entry in range(at + 2, at + 2 + 12 * count, 12) if pages == 0 else ():
            tag, kind, number = struct.unpack_from(order + "HHI", data, entry)
            letter, size = _SIZES.get(kind, ("", 0))
            if not size or not number:
                continue
            place = entry + 8
            if size * number > 4:
                (place,) = struct.unpack_from(order + "I", data, place)
            (tags[tag],) = struct.unpack_from(order + letter, data, place)
        pages += 1
        (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * count)
    return tags, pages


def read_bands(data: bytes, name: str) -> Array:
    """Reads all bands of a TIFF, not turned upright.

    Bands are the values of a pixel, interleaved or not, or one to a page.

    Args:
        data: the file's bytes.
        name: what errors call the file.

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
        raise ImageError(
            f"{name} is a TIFF of several bands, which needs the package tifffile: "
            'pip install "sigcam[tiff]", or save the bands as .npy [H, W, bands]'
        ) from exc
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series = file.series[0]
            axes, values = series.axes, series.asarray()
    except Exception as exc:  # a damaged file makes the package raise many kinds
        advice = (
            "; pip install imagecodecs" if "imagecodecs" in str(exc) else ": damaged or truncated"
        )
        raise ImageError(f"{name} is a TIFF that can't be decoded ({exc}){advice}") from exc
    bands = [axis for axis in axes if axis not in "YX"]
    if len(bands) > 1 or "Y" not in axes or "X" not in axes:
        raise ImageError(
            f"{name} must have bands in one axis, it has {list(values.shape)} ({axes}); save the "
            "bands as .npy [H, W, bands]"
        )
    order = [axes.index(axis) for axis in "YX"] + [axes.index(axis) for axis in bands]
    return np.ascontiguousarray(values.transpose(order))
