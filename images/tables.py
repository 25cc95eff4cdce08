"""The tables of colour profiles (types mft1 and mft2): any number of inks to Lab or XYZ."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from sigcam.core.types import Array

_D50 = np.array([0.9642, 1.0, 0.8249])
_ROWS = 1 << 16  # pixels that are looked up at once: what is in between stays small


@dataclass(frozen=True, eq=False)
class Table:
    """A grid of colours, and the curves in front of it.

    Attributes:
        curves: float32 [channels, 256], 0 to 1: where a byte lies along each axis of the grid.
        grid: float32 [n, ..., n, 3], 0 to 1.
        last: float64 [3, m]: the curves behind it, at even steps.
        space: what their values mean: b"Lab " or b"XYZ ".
        wide: whether they were of 16 bits.
        to_srgb: float64 [3, 3], from XYZ under D50 to linear sRGB.
    """

    curves: Array
    grid: Array
    last: Array
    space: bytes
    wide: bool
    to_srgb: Array

    def linear(self, image: Array) -> Array:
        """Returns linear sRGB, float32 [H, W, 3]: between grid points, all corners count.

        Args:
            image: uint8 [H, W, channels]; of four, 255 stands for no ink.
        """
        flat = image.reshape(-1, image.shape[2])
        if image.shape[2] == 4:
            flat = 255 - flat
        out = np.empty((len(flat), 3), np.float32)
        for start in range(0, len(flat), _ROWS):
            values = self._looked_up(flat[start : start + _ROWS])
            steps = np.linspace(0, 1, self.last.shape[1])
            curved = [np.interp(values[:, one], steps, self.last[one]) for one in range(3)]
            light = _xyz(np.stack(curved, -1), self.space, wide=self.wide) @ self.to_srgb.T
            out[start : start + _ROWS] = light
        return out.reshape(*image.shape[:2], 3)

    def _looked_up(self, pixels: Array) -> Array:
        size, channels = self.grid.shape[0], pixels.shape[1]
        cells = self.grid.reshape(-1, 3)
        places = [self.curves[one][pixels[:, one]] * (size - 1) for one in range(channels)]
        lower = [np.minimum(place.astype(np.int32), size - 2) for place in places]
        parts = [place - low for place, low in zip(places, lower, strict=True)]
        found = np.zeros((len(pixels), 3), np.float32)
        for corner in itertools.product((0, 1), repeat=channels):
            index = np.zeros(len(pixels), np.int32)
            weight = np.ones(len(pixels), np.float32)
            for step, low, part in zip(corner, lower, parts, strict=True):
                index = index * size + low + step
                weight *= part if step else 1 - part
            found += weight[:, None] * cells[index]
        return found


def read_table(tag: bytes, channels: int, space: bytes, to_srgb: Array) -> Table:
    """Reads the tag A2B0 of a profile.

    Args:
        tag: its bytes.
        channels: of the image.
        space: what the table leads to: b"Lab " or b"XYZ ".
        to_srgb: float64 [3, 3], from XYZ under D50 to linear sRGB.

    Raises:
        ValueError, struct.error: another type, or damaged.

    Example:
        table = read_table(tags[b"A2B0"], 4, b"Lab ", matrix)
    """
    kind = tag[:4]
    if kind not in (b"mft1", b"mft2"):
        raise ValueError(f"a table of the type {kind.decode('ascii', 'replace')}")
    inputs, outputs, size = tag[8], tag[9], tag[10]
    if inputs != channels or outputs != 3 or size < 2:
        raise ValueError(f"a table from {inputs} to {outputs} channels")
    if kind == b"mft1":
        steps = after = 256
        start, letter, most = 48, "u1", 255.0
    else:
        steps, after = struct.unpack_from(">HH", tag, 48)
        start, letter, most = 52, ">u2", 65535.0
    dtype: np.dtype[Any] = np.dtype(letter)
    counts = (inputs * steps, size**inputs * 3, after * 3)
    values = np.frombuffer(tag[start : start + sum(counts) * dtype.itemsize], dtype)
    if values.size != sum(counts) or min(steps, after) < 2:
        raise ValueError("a table is cut off")
    scaled = values.astype(np.float64) / most
    first, grid, last = np.split(scaled, np.cumsum(counts)[:2])
    x = np.arange(256) / 255
    curves = [np.interp(x, np.linspace(0, 1, steps), one) for one in first.reshape(inputs, steps)]
    if space not in (b"Lab ", b"XYZ "):
        raise ValueError("a table that leads to another space")
    return Table(
        np.array(curves, np.float32),
        grid.astype(np.float32).reshape(*(size,) * inputs, 3),
        last.reshape(3, after),
        space,
        kind == b"mft2",
        to_srgb,
    )


def _xyz(values: Array, space: bytes, *, wide: bool) -> Array:
    """Makes XYZ of what a table's numbers from 0 to 1 stand for."""
    if space == b"XYZ ":
        return values * (1 + 32767 / 32768)
    # In 16 bits, 100 and 127 lie at 0xFF00 and not at the end.
    unit = values * (65535 / 65280 if wide else 1.0)
    lightness, a, b = unit[:, 0] * 100, unit[:, 1] * 255 - 128, unit[:, 2] * 255 - 128
    y = (lightness + 16) / 116
    f = np.stack([y + a / 500, y, y - b / 200], -1)
    light = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return cast("Array", light * _D50)
