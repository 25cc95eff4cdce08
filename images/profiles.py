"""Colour profiles: what the numbers of an image mean, and the same colours as sRGB.

Networks are trained on sRGB. A profile (ICC.1) of another colour space says how its values become
light: here those of the form "curves and a matrix" (Display P3, Adobe RGB, ProPhoto and the like),
of grey with a curve, and tables (CMYK printing). Colours that sRGB doesn't have are clipped.
"""

from __future__ import annotations

import struct
import warnings
from functools import lru_cache
from typing import NamedTuple, TypeAlias, cast

import cv2
import numpy as np

from sigcam.core.errors import ImageWarning
from sigcam.core.types import Array
from sigcam.images.tables import Table, read_table

Curve: TypeAlias = Array
"""float32 [256]: what a byte stands for, 0 to 1."""

_SPACES = {b"RGB ": 3, b"GRAY": 1, b"CMYK": 4}
# From XYZ under D50 to linear sRGB: the matrix of its primaries, adapted (Bradford), inverted.
_TO_SRGB = np.array([
    [3.1338561, -1.6168667, -0.4906146],
    [-0.9787684, 1.9161415, 0.0334540],
    [0.0719453, -0.2289914, 1.4052427],
])  # fmt: skip
_PIXELS = 8192  # that are converted at once
_LEAST = 1  # levels: closer profiles count as sRGB itself


class _Curves(NamedTuple):
    """Light of each channel, and the matrix that makes linear sRGB of it."""

    curves: tuple[Curve, ...]
    matrix: Array  # float32 [3, channels]


def is_grey(profile: bytes) -> bool:
    """Says whether a profile is of grey images.

    Example:
        >>> is_grey(b"")
        False
    """
    return profile[16:20] == b"GRAY"


def to_srgb(image: Array, profile: bytes, name: str) -> Array:
    """Returns the image's colours in sRGB.

    Args:
        image: uint8 [H, W, 1], [H, W, 3] RGB or [H, W, 4] CMYK with 255 for no ink.
        profile: the file's; empty for none.
        name: what warnings call the image.

    Returns:
        uint8 [H, W, 3], or [H, W, 1] of a grey image; the image itself where the profile is
        sRGB's or empty, or where it can't be used, of which an ImageWarning tells.

    Example:
        >>> to_srgb(np.zeros((4, 6, 3), np.uint8), b"", "black.png").shape
        (4, 6, 3)
    """
    if not profile:
        return image
    found = _transform(profile, image.shape[2])
    if isinstance(found, str):
        warnings.warn(
            f"{name} has a colour profile that isn't used: {found}; its colours are taken for sRGB",
            ImageWarning,
            stacklevel=2,
        )
        return image
    if found is None:
        return image
    return _applied(image, found)


@lru_cache(maxsize=32)
def _transform(profile: bytes, channels: int) -> _Curves | Table | str | None:
    """Returns how the profile's colours become sRGB: None for as they are; or why they can't."""
    try:
        tags = _tags(profile)
        wanted = _SPACES.get(profile[16:20])
        if wanted != channels:
            space = profile[16:20].decode("ascii", "replace").strip()
            return f"it is for {space or 'nothing'}, and the image has {channels} channels"
        found = _read(profile, tags, channels)
    except (struct.error, KeyError, IndexError, ValueError, ArithmeticError) as exc:
        return f"it is damaged or of a kind that isn't read ({exc})"
    if channels == 4:
        return found
    levels = np.arange(0, 256, 15).astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * channels), -1).reshape(1, -1, channels)
    off = np.abs(_applied(grid, found).astype(int) - grid).max()
    return found if off > _LEAST else None


def _tags(profile: bytes) -> dict[bytes, bytes]:
    if profile[36:40] != b"acsp":
        raise ValueError("no ICC profile")
    (count,) = struct.unpack_from(">I", profile, 128)
    found = {}
    for at in range(132, 132 + 12 * min(count, 200), 12):
        name, start, length = struct.unpack_from(">4sII", profile, at)
        found[name] = profile[start : start + length]
    return found


def _read(profile: bytes, tags: dict[bytes, bytes], channels: int) -> _Curves | Table:
    if channels == 1 and b"kTRC" in tags:
        return _Curves((_curve(tags[b"kTRC"]),), np.ones((1, 1), np.float32))
    if channels == 3 and b"rXYZ" in tags:
        columns = [struct.unpack_from(">iii", tags[one], 8) for one in (b"rXYZ", b"gXYZ", b"bXYZ")]
        matrix = _TO_SRGB @ (np.array(columns, np.float64).T / 65536)
        curves = tuple(_curve(tags[one]) for one in (b"rTRC", b"gTRC", b"bTRC"))
        return _Curves(curves, matrix.astype(np.float32))
    if b"A2B0" in tags:
        return read_table(tags[b"A2B0"], channels, profile[20:24], _TO_SRGB)
    raise ValueError("neither curves nor a table")


def _curve(tag: bytes) -> Curve:
    x = np.arange(256) / 255
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        if count == 0:
            return x.astype(np.float32)
        values = np.frombuffer(tag[12 : 12 + 2 * count], ">u2").astype(np.float64)
        if values.size != count:
            raise ValueError("a curve is cut off")
        if count == 1:
            return cast("Array", (x ** (values[0] / 256)).astype(np.float32))
        table = np.interp(x, np.linspace(0, 1, count), values / 65535)
        return table.astype(np.float32)
    if tag[:4] != b"para":
        raise ValueError("a curve of an unknown type")
    (kind,) = struct.unpack_from(">H", tag, 8)
    count = (1, 3, 4, 5, 7)[kind]
    g, *rest = (one / 65536 for one in struct.unpack_from(f">{count}i", tag, 12))
    a, b, c, d, e, f = (*rest, *(0.0,) * (6 - len(rest))) if rest else (1.0, *(0.0,) * 5)
    if kind == 1:
        c, d = 0.0, -b / a
    elif kind == 2:
        c, d, e, f = 0.0, -b / a, c, c
    with np.errstate(all="ignore"):  # a damaged curve may have any numbers
        power = np.maximum(a * x + b, 0) ** g + e
    curve = np.nan_to_num(np.where(x >= d, power, c * x + f)).clip(0, 1)
    return cast("Array", curve.astype(np.float32))


@lru_cache(maxsize=1)
def _encoding() -> Array:
    """Returns the byte of sRGB for each of 65,536 steps of light."""
    light = np.arange(65536) / 65535
    curved = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return cast("Array", np.rint(255 * curved).astype(np.uint8))


def _applied(image: Array, found: _Curves | Table) -> Array:
    if isinstance(found, Table):
        light = found.linear(image)
    elif len(found.curves) == 1:
        levels = _encoding()[_steps(found.curves[0])]
        return levels[image]
    else:
        return _by_rows(image, found)
    return np.take(_encoding(), _steps(light))


def _by_rows(image: Array, found: _Curves) -> Array:
    """Converts some rows at a time, so that what is in between stays in the processor's cache."""
    table = np.stack(found.curves, -1).reshape(256, 1, 3)
    out = np.empty_like(image)
    step = max(1, _PIXELS // image.shape[1])
    for top in range(0, len(image), step):
        rows = slice(top, top + step)
        light = cast("Array", cv2.transform(cv2.LUT(image[rows], table), found.matrix))
        np.take(_encoding(), _steps(light), out=out[rows], mode="clip")
    return out


def _steps(light: Array) -> Array:
    """Returns the step of `_encoding`, uint16; values outside of 0 to 1 are its ends."""
    scaled = cv2.addWeighted(light, 65535, light, 0, 0, dtype=cv2.CV_16U)  # rounds and clips
    return cast("Array", scaled).reshape(light.shape)
