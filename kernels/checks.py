"""Checks of what `ClampCombine` is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.arrays import View
from sigcam.kernels.shapes import Cams, Inputs, Interpolation

Axes = Axis | Sequence[Axis]
"""An axis for all images, or one for each."""


def axes(
    cells: tuple[int, ...], size: tuple[int, int] | None, rows: Axes | None, columns: Axes | None
) -> tuple[Axes, Axes]:
    """Returns how the heatmaps lie over the CAM, along the height and along the width.

    Args:
        cells: (h, w) of the CAM.
        size: (H, W) of heatmaps that show the CAM's whole extent; None where both axes are given.
        rows: along the height; None where `size` is given.
        columns: along the width; None where `size` is given.

    Raises:
        ValueError: neither or both ways of saying it.

    Example:
        >>> rows, columns = axes((7, 7), (14, 28), None, None)
        >>> rows.scale, columns.scale
        (0.5, 0.25)
    """
    if size is not None and rows is None and columns is None:
        return whole(size[0], cells[0]), whole(size[1], cells[1])
    if size is None and rows is not None and columns is not None:
        return rows, columns
    raise ValueError("either size=(H, W) or both rows and columns must be given")


def cams(given: View) -> Cams:
    """Returns the shape of CAMs that heatmaps can be made of.

    Raises:
        ValueError: another type than float32, another number of sizes than four, or a size of 0.

    Example:
        >>> cams(View(0x1000, (2, 1000, 7, 7), np.dtype(np.float32), read_only=True))
        Cams(batch=2, classes=1000, height=7, width=7)
    """
    if given.dtype != np.float32 or len(given.shape) != 4 or 0 in given.shape:
        raise ValueError(
            f"cams must be float32 [B, K, h, w], none of them 0, got {given.dtype} "
            f"{list(given.shape)}"
        )
    return Cams(*given.shape)


def inputs(features: View, weights: View, clamp: bool, signed: bool = False) -> Inputs:
    """Returns the shapes and types of features and weights that belong together.

    Raises:
        ValueError: types that differ or are neither float32 nor float16, shapes that don't
            belong together, or a size of 0.

    Example:
        >>> half = np.dtype(np.float16)
        >>> features = View(0x1000, (2, 512, 7, 7), half, read_only=True)
        >>> weights = View(0x2008, (2, 3, 512), half, read_only=True)
        >>> found = inputs(features, weights, clamp=True)
        >>> found.classes, found.half, found.per_position, found.alignment
        (3, True, False, 8)
    """
    kinds = (np.dtype(np.float32), np.dtype(np.float16))
    if len(features.shape) != 4:
        raise ValueError(f"features must be [B, N, h, w], got {list(features.shape)}")
    if features.dtype not in kinds or weights.dtype != features.dtype:
        raise ValueError(
            "features and weights must both be float32 or both float16, got "
            f"{features.dtype} and {weights.dtype}"
        )
    batch, channels, height, width = features.shape
    if (
        weights.shape[:1] != (batch,)
        or weights.shape[2:] not in ((channels,), (channels, height, width))
        or 0 in (*features.shape, *weights.shape)
    ):
        raise ValueError(
            f"weights must be [{batch}, K, {channels}] or [{batch}, K, {channels}, {height}, "
            f"{width}] for features {list(features.shape)}, none of them 0; got "
            f"{list(weights.shape)}"
        )
    return Inputs(
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        classes=weights.shape[1],
        half=features.dtype == np.float16,
        per_position=len(weights.shape) == 5,
        clamp=clamp,
        signed=signed,
        alignment=alignment(features.address | weights.address),
    )


def writable(
    view: View, name: str, shape: tuple[int, ...], kinds: tuple[np.dtype[Any], ...]
) -> View:
    """Returns `view`, once results of that shape can be written to it.

    Args:
        view: the array.
        name: what messages call it.
        shape: the shape that it must have.
        kinds: the types, of which it must have one.

    Raises:
        ValueError: it is read-only or has another shape or type.

    Example:
        >>> out = View(0x1000, (1, 7, 7), pixel("uint8"), read_only=False)
        >>> writable(out, "out", (1, 7, 7), (pixel("uint8"),)) is out
        True
    """
    if view.read_only or view.shape != shape or view.dtype not in kinds:
        raise ValueError(
            f"{name} must be a writable {' or '.join(map(str, kinds))} {list(shape)}, got "
            f"{'read-only ' if view.read_only else ''}{view.dtype} {list(view.shape)}"
        )
    return view


def pixel(dtype: str) -> np.dtype[Any]:
    """Returns the NumPy type of the heatmaps' pixels by its name.

    Raises:
        ValueError: neither "float32" nor "uint8".

    Example:
        >>> pixel("uint8")
        dtype('uint8')
    """
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")
    return np.dtype(dtype)


def alignment(address: int) -> int:
    """Returns the largest power of two, up to 16, that divides an address.

    Example:
        >>> alignment(0x1004), alignment(0x1000)
        (4, 16)
    """
    return min(address & -address, 16) if address else 16


def interpolation_of(name: str) -> Interpolation:
    """Returns the interpolation of that name.

    Raises:
        ValueError: neither "bilinear" nor "bicubic".

    Example:
        >>> interpolation_of("bicubic")
        'bicubic'
    """
    if name == "bilinear":
        return "bilinear"
    if name == "bicubic":
        return "bicubic"
    raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {name!r}")
