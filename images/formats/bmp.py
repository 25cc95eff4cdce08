"""BMP: its headers, and a reader for the kinds that OpenCV takes for another or refuses.

Uncompressed pixels are rows of packed numbers, so NumPy reads them: any depth, any channel masks,
upside down or not, and the headers of OS/2. Run-length coded files are OpenCV's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.types import Array
from sigcam.images.formats.header import Header

_RGB, _RLE8, _RLE4, _FIELDS, _ALPHA_FIELDS = 0, 1, 2, 3, 6
_COMPRESSIONS = {4: "JPEG", 5: "PNG"}
_EMBEDDED = 0x4D424544  # "MBED": a V5 header's own colour profile
_USUAL = {16: (0x7C00, 0x3E0, 0x1F), 32: (0xFF0000, 0xFF00, 0xFF)}


@dataclass(frozen=True)
class Layout:
    """Where the pixels are and what they look like.

    Attributes:
        width, height: of the image.
        top_down: whether the first row comes first.
        bits: of a pixel.
        compression: as in the file.
        masks: bits of red, green and blue in a pixel of 16 or 32 bits.
        palette: uint8 [n, 3] RGB.
        start: of the pixels in the file.
        profile: the colour profile; empty where there is none.
    """

    width: int
    height: int
    top_down: bool
    bits: int
    compression: int
    masks: tuple[int, int, int]
    palette: Array
    start: int
    profile: bytes


def layout(data: bytes) -> Layout | None:
    """Reads the headers; None where they end early or contradict each other.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> import cv2
        >>> bmp = cv2.imencode(".bmp", np.zeros((4, 6, 3), np.uint8))[1].tobytes()
        >>> found = layout(bmp)
        >>> found.width, found.height, found.bits, found.top_down
        (6, 4, 24, False)
    """
    try:
        start, size = struct.unpack_from("<II", data, 10)
        if size == 12:  # OS/2 1.x, whose palette has no fourth byte
            width, height, _, bits = struct.unpack_from("<HHHH", data, 18)
            palette = _palette(data, 26, 1 << bits if bits <= 8 else 0, 3, start)
            masks = _USUAL.get(bits, (0, 0, 0))
            return Layout(width, height, False, bits, _RGB, masks, palette, start, b"")
        if size < 16:
            return None
        width, height, _, bits = struct.unpack_from("<iiHH", data, 18)
        compression, colours = _RGB, 0
        if size >= 40:
            compression, _, _, _, colours = struct.unpack_from("<IIiiI", data, 30)
        is_os2 = size in (16, 64)  # 3 and 4 mean other compressions there
        masks = _USUAL.get(bits, (0, 0, 0))
        after = 14 + size
        if compression in (_FIELDS, _ALPHA_FIELDS) and not is_os2 and bits in (16, 32):
            masks = struct.unpack_from("<III", data, 54)
            if size == 40:
                after += 12 if compression == _FIELDS else 16
        count = min(colours or 1 << bits, 256) if bits <= 8 else 0
        palette = _palette(data, after, count, 4, start)
    except struct.error:
        return None
    profile = _profile(data) if size >= 124 else b""
    compression += 100 if is_os2 and compression > _RLE4 else 0
    return Layout(width, abs(height), height < 0, bits, compression, masks, palette, start, profile)


def _palette(data: bytes, at: int, count: int, step: int, end: int) -> Array:
    room = max(0, (end - at) // step) if end > at else count
    values = np.frombuffer(data[at : at + step * min(count, room)], np.uint8)
    return values[: values.size // step * step].reshape(-1, step)[:, 2::-1]


def _profile(data: bytes) -> bytes:
    (kind,) = struct.unpack_from("<I", data, 14 + 56)
    start, length = struct.unpack_from("<II", data, 14 + 112)
    return data[14 + start : 14 + start + length] if kind == _EMBEDDED else b""


def header(data: bytes) -> Header:
    """Reads the size and the colour profile.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> header(b"BM").upright
        (0, 0)
    """
    found = layout(data)
    if found is None or found.width < 1:
        return Header()
    return Header(found.width, found.height, profile=found.profile, bits=8, components=3)


def is_run_length(data: bytes) -> bool:
    """Says whether the pixels are run-length coded, which `decode` doesn't read.

    Example:
        >>> is_run_length(b"BM")
        False
    """
    found = layout(data)
    return found is not None and found.compression in (_RLE8, _RLE4)


def decode(data: bytes, name: str) -> Array:
    """Decodes to RGB. Alpha is dropped.

    Channels of fewer than 8 bits are scaled to 0..255 and rounded.

    Args:
        data: of the file.
        name: what errors call it.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ImageError: truncated, or of a kind that isn't read.

    Example:
        >>> import cv2
        >>> bmp = cv2.imencode(".bmp", np.full((4, 6, 3), (1, 2, 3), np.uint8))[1].tobytes()
        >>> decode(bmp, "a.bmp")[0, 0].tolist()
        [3, 2, 1]
    """
    found = layout(data)
    if found is None:
        raise ImageError(f"{name} is a BMP whose header can't be read; get it again")
    if found.compression not in (_RGB, _FIELDS, _ALPHA_FIELDS) or found.bits not in (
        1, 2, 4, 8, 16, 24, 32,
    ):  # fmt: skip
        kind = _COMPRESSIONS.get(found.compression, f"compression {found.compression % 100}")
        raise ImageError(
            f"{name} is a BMP of a kind that isn't read ({found.bits} bits, {kind}); save it as PNG"
        )
    stride = (found.width * found.bits + 31) // 32 * 4
    stored = data[found.start : found.start + stride * found.height]
    # Writers may leave out the last row's padding.
    missing = stride * found.height - len(stored)
    if missing > stride - (found.width * found.bits + 7) // 8:
        raise ImageError(f"{name} is a truncated BMP: {missing} bytes are missing; get it again")
    rows = np.frombuffer(stored + bytes(missing), np.uint8).reshape(found.height, stride)
    image = _coloured(rows, found, name)
    return np.ascontiguousarray(image if found.top_down else image[::-1])


def _coloured(rows: Array, found: Layout, name: str) -> Array:
    if found.bits == 24:
        return rows[:, : 3 * found.width].reshape(found.height, found.width, 3)[:, :, ::-1]
    if found.bits in (16, 32):
        pixels = np.ascontiguousarray(rows).view(f"<u{found.bits // 8}")[:, : found.width]
        return np.dstack([_channel(pixels, mask) for mask in found.masks])
    if found.bits < 8:
        shifts = np.arange(8 - found.bits, -1, -found.bits).astype(np.uint8)
        rows = (rows[:, :, None] >> shifts & (1 << found.bits) - 1).reshape(found.height, -1)
    indices = rows[:, : found.width]
    if indices.max() >= len(found.palette):
        raise ImageError(
            f"{name} is a damaged BMP: it uses colour {indices.max()} of a palette of "
            f"{len(found.palette)}; get it again"
        )
    return found.palette[indices]


def _channel(pixels: Array, mask: int) -> Array:
    """Takes the bits of a mask, wherever they lie, scaled to 0..255."""
    if mask == 0:
        return np.zeros(pixels.shape, np.uint8)
    shift = (mask & -mask).bit_length() - 1
    most = mask >> shift
    values = (pixels.astype(np.uint64) & mask) >> shift
    return ((values * 255 + most // 2) // most).astype(np.uint8)
