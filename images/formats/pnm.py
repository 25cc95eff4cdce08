"""PBM, PGM and PPM, in text or in bytes: P1 to P6."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.types import Array
from sigcam.images.formats.header import Header

_SPACE = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBERS = re.compile(rb"P[2356]" + (_SPACE + rb"(\d+)") * 3 + rb"\s")
_BITMAP = re.compile(rb"P[14]" + (_SPACE + rb"(\d+)") * 2 + rb"\s")
_COMMENT = re.compile(rb"#[^\r\n]*")


class _Layout(NamedTuple):
    kind: int  # 1 to 6
    width: int
    height: int
    most: int  # the value of white
    start: int  # of the pixels


def _layout(data: bytes) -> _Layout | None:
    found = _NUMBERS.match(data) or _BITMAP.match(data)
    if not found:
        return None
    numbers = [int(one) for one in found.groups()]
    most = numbers[2] if len(numbers) == 3 else 1
    if not 1 <= most <= 65535:
        return None
    return _Layout(data[1] - ord("0"), numbers[0], numbers[1], most, found.end())


def header(data: bytes) -> Header:
    r"""Reads size, bits and components.

    Args:
        data: of the file, or its beginning.

    Example:
        >>> header(b"P5 6 4 4095 ").significant
        12
    """
    found = _layout(data[:65536])
    if found is None:
        return Header()
    components = 3 if found.kind in (3, 6) else 1
    bits = 16 if found.most > 255 else 8
    used = found.most.bit_length()
    return Header(
        found.width, found.height, bits=bits, significant=used if used < bits else 0,
        components=components,
    )  # fmt: skip


def decode(data: bytes, name: str, *, scaled: bool) -> Array:
    r"""Decodes to [H, W] or [H, W, 3].

    Args:
        data: of the file.
        name: what errors call it.
        scaled: whether the file's white becomes 255, as bytes; if not, values are as stored.

    Returns:
        uint8 where `scaled` or white is at most 255; uint16 otherwise.

    Raises:
        ImageError: truncated, or values above the file's white.

    Example:
        >>> decode(b"P5 2 1 100 d2", "a.pgm", scaled=True).tolist()
        [[255, 128]]
    """
    found = _layout(data)
    if found is None:
        raise ImageError(f"{name} is a PNM whose header can't be read; get it again")
    depth = 3 if found.kind in (3, 6) else 1
    count = found.width * found.height * depth
    values = _text(data, found, count) if found.kind <= 3 else _bytes(data, found, count)
    if values.size < count:
        raise ImageError(
            f"{name} is a truncated PNM: {count} values are wanted, {values.size} are there; get "
            "it again"
        )
    if values.max() > found.most:
        raise ImageError(
            f"{name} is a damaged PNM: it has the value {values.max()}, and its white is "
            f"{found.most}; get it again"
        )
    if found.kind in (1, 4):
        values = 1 - values  # 1 is black
    if scaled and found.most != 255:
        wide = values.astype(np.uint32)
        values = ((wide * 255 + found.most // 2) // found.most).astype(np.uint8)
    shape = (found.height, found.width, depth) if depth == 3 else (found.height, found.width)
    return values.reshape(shape)


def _text(data: bytes, found: _Layout, count: int) -> Array:
    text = _COMMENT.sub(b"", data[found.start :])
    if found.kind == 1:  # digits may touch
        digits = re.findall(rb"[01]", text)[:count]
        return np.array([int(one) for one in digits], np.uint8)
    numbers = text.split()[:count]
    if not all(one.isdigit() and len(one) <= 5 for one in numbers):
        return np.empty(0, np.uint16)
    return np.array(numbers, np.int64).clip(0, 65535).astype(_dtype(found))


def _bytes(data: bytes, found: _Layout, count: int) -> Array:
    rest = data[found.start :]
    if found.kind == 4:
        stride = (found.width + 7) // 8
        packed = np.frombuffer(rest[: stride * found.height], np.uint8)
        packed = packed[: packed.size // stride * stride].reshape(-1, stride)
        return np.unpackbits(packed, axis=1)[:, : found.width].ravel()
    dtype = np.dtype(np.uint8 if found.most <= 255 else ">u2")
    values = np.frombuffer(rest[: min(count, len(rest) // dtype.itemsize) * dtype.itemsize], dtype)
    return values.astype(_dtype(found))


def _dtype(found: _Layout) -> type[np.uint8 | np.uint16]:
    return np.uint8 if found.most <= 255 else np.uint16
