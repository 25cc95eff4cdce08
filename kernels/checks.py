"""Checks of what `ClampCombine` is called with."""

from __future__ import annotations

from typing import Any

import numpy as np

from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.arrays import View
from sigcam.kernels.plan import Inputs, Interpolation


def axes(
    shape: tuple[int, ...], size: tuple[int, int] | None, rows: Axis | None, columns: Axis | None
) -> tuple[Axis, Axis]:
    """How the heatmaps lie over the CAM of features [B, N, h, w]."""
    if len(shape) != 4:
        raise ValueError(f"features must be [B, N, h, w], got {list(shape)}")
    if size is not None and rows is None and columns is None:
        return whole(size[0], shape[2]), whole(size[1], shape[3])
    if size is None and rows is not None and columns is not None:
        return rows, columns
    raise ValueError("either size=(H, W) or both rows and columns must be given")


def inputs(features: View, weights: View, clamp: bool) -> Inputs:
    """Shapes and types of features and weights that belong together."""
    kinds = (np.dtype(np.float32), np.dtype(np.float16))
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
        alignment=alignment(features.address | weights.address),
    )


def writable(
    view: View, name: str, shape: tuple[int, ...], kinds: tuple[np.dtype[Any], ...]
) -> View:
    """`view`, if it is what results of that shape and one of those types can go to."""
    if view.read_only or view.shape != shape or view.dtype not in kinds:
        raise ValueError(
            f"{name} must be a writable {' or '.join(map(str, kinds))} {list(shape)}, got "
            f"{'read-only ' if view.read_only else ''}{view.dtype} {list(view.shape)}"
        )
    return view


def pixel(dtype: str) -> np.dtype[Any]:
    """The type of the heatmaps, by its name."""
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype must be 'float32' or 'uint8', got {dtype!r}")
    return np.dtype(dtype)


def alignment(address: int) -> int:
    """The largest power of two, up to 16, that divides an address."""
    return min(address & -address, 16) if address else 16


def way(interpolation: str) -> Interpolation:
    """The interpolation, by its name."""
    if interpolation == "bilinear":
        return "bilinear"
    if interpolation == "bicubic":
        return "bicubic"
    raise ValueError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
