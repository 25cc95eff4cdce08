"""The reference of the CUDA kernels: what they compute, in plain NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.kernels.arguments import Axis, InputAxis
from sigcam.kernels.prepare import Values, halves_up
from sigcam.kernels.shapes import Interpolation

Array = npt.NDArray[Any]


def clamp_combine(
    features: Array, weights: Array, clamp: bool = True, *, signed: bool = False
) -> Array:
    """Computes CAMs from features and CAM weights: max(0, sum_n max(0, w_n) F_n).

    This is Eq. 4 of "Beyond Softmax", with negative-weight clamping (NWC) unless it is switched
    off. The CUDA kernel computes the same, and a Session calls this on artifacts of the profile
    "split" when it has no GPU.

    Args:
        features: float32 [B, N, h, w].
        weights: float32 [B, K, N], or [B, K, N, h, w] with a weight for each position.
        clamp: whether negative weights count as 0 (NWC).
        signed: whether the sum is left as it is; if not, what is negative is 0.

    Returns:
        CAMs, float32 [B, K, h, w], >= 0 unless signed, in a new array. A NaN stays NaN.

    Raises:
        ValueError: shapes that don't belong together, or another dtype.

    Example:
        >>> features = np.array([[[[1.0, 2.0]], [[4.0, 1.0]]]], np.float32)
        >>> weights = np.array([[[2.0, -1.0]]], np.float32)
        >>> clamp_combine(features, weights)
        array([[[[2., 4.]]]], dtype=float32)
        >>> clamp_combine(features, weights, clamp=False)
        array([[[[0., 3.]]]], dtype=float32)
        >>> clamp_combine(features, weights, clamp=False, signed=True)
        array([[[[-2.,  3.]]]], dtype=float32)
    """
    _check(features, weights)
    used = np.maximum(weights, 0) if clamp else weights
    # Not matmul: the threads of a BLAS library would wait for a core while a backend's own
    # threads spin, and einsum needs only 0.02 ms for a class of 1280 x 7 x 7.
    cams: Array
    if weights.ndim == 3:
        flat = features.reshape(*features.shape[:2], -1)
        cams = np.einsum("bkn,bnp->bkp", used, flat)
        cams = cams.reshape(*cams.shape[:2], *features.shape[2:])
    else:
        cams = np.einsum("bknhw,bnhw->bkhw", used, features)
    return cams if signed else np.maximum(cams, 0, out=cams)


def normalised_heatmaps(
    cams: Array, rows: Axis, columns: Axis, interpolation: Interpolation = "bilinear"
) -> tuple[Array, Array]:
    """Enlarges CAMs and scales each to its range inside the crop box.

    It follows the definition step by step, in float64. The runtime's own heatmaps on the CPU
    (`sigcam.images.upsample`) take a faster way to the same values.

    Args:
        cams: CAMs of any float type, [B, K, h, w].
        rows: how the heatmaps lie over the CAMs along the height.
        columns: the same along the width.
        interpolation: "bilinear", or "bicubic" with a = -0.75 (Keys 1981, Eq. 4).

    Returns:
        Heatmaps float64 [B, K, H, W], 0 to 1, 0 outside the crop box; and valid, bool [B, K]:
        False where a CAM is constant (a range of at most 1e-5 of its largest value) or not
        finite, and the heatmap 0.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> cams = np.array([[[[1.0, 3.0]], [[2.0, 2.0]]]])
        >>> heatmaps, valid = normalised_heatmaps(cams, whole(1, 1), whole(4, 2))
        >>> heatmaps
        array([[[[0.  , 0.25, 0.75, 1.  ]],
        <BLANKLINE>
                [[0.  , 0.  , 0.  , 0.  ]]]])
        >>> valid
        array([[ True, False]])
    """
    valid = np.logical_and.reduce(np.isfinite(cams), axis=(2, 3))
    large = enlarged(np.where(valid[..., None, None], cams, 0), rows, columns, interpolation)
    crop_box = large[..., rows.low : rows.high, columns.low : columns.high]
    low, high = crop_box.min((2, 3)), crop_box.max((2, 3))
    extent = high - low
    flat = np.maximum(1e-5 * np.maximum(abs(low), abs(high)), np.finfo(np.float32).tiny)
    valid &= (extent > flat) & (extent < np.finfo(np.float32).max)
    heatmaps = np.zeros(large.shape)
    inside = (..., slice(rows.low, rows.high), slice(columns.low, columns.high))
    scale = np.where(valid, extent, 1)[..., None, None]
    scaled = (crop_box - low[..., None, None]) / scale
    heatmaps[inside] = np.where(valid[..., None, None], scaled, 0)
    return heatmaps, valid


def enlarged(cams: Array, rows: Axis, columns: Axis, interpolation: Interpolation) -> Array:
    """Enlarges CAMs [..., h, w] to the heatmaps' size, with edge cells repeated outwards.

    Returns:
        float64 [..., H, W], in the units of the CAMs.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> enlarged(np.array([[[0.0, 4.0]]]), whole(1, 1), whole(4, 2), "bilinear")
        array([[[0., 1., 3., 4.]]])
    """
    down, across = _weights(rows, interpolation), _weights(columns, interpolation)
    large: Array = down @ cams.astype(np.float64) @ across.T
    return large


def to_bytes(heatmaps: Array) -> Array:
    """Converts heatmaps of 0 to 1 to uint8: 255 times the value, rounded half up.

    Example:
        >>> to_bytes(np.array([0.0, 0.5, 1.0]))
        array([  0, 128, 255], dtype=uint8)
    """
    return np.floor(heatmaps * 255 + 0.5).astype(np.uint8)


def _weights(axis: Axis, interpolation: Interpolation) -> Array:
    """Returns the cells' weights for every pixel, float64 [size, cells]."""
    at = np.arange(axis.size) * float(axis.scale) + float(axis.offset)
    taps = (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2)
    matrix = np.zeros((axis.size, axis.cells))
    for tap in taps:
        cell = np.floor(at) + tap
        distance = np.abs(at - cell)
        if interpolation == "bilinear":
            weight = 1 - distance
        else:
            a = -0.75
            near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
            far = ((distance - 5) * distance + 8) * distance * a - 4 * a
            weight = np.where(distance <= 1, near, far)
        index = cell.clip(0, axis.cells - 1).astype(np.int64)
        np.add.at(matrix, (np.arange(axis.size), index), weight)
    return matrix


def _check(features: Array, weights: Array) -> None:
    for name, array in (("features", features), ("weights", weights)):
        if array.dtype != np.float32:
            raise ValueError(f"{name} must be float32, got {array.dtype}")
    if features.ndim != 4:
        raise ValueError(f"features must be [B, N, h, w], got {list(features.shape)}")
    batch, channels, *positions = features.shape
    if weights.ndim not in (3, 5) or weights.shape[0] != batch or weights.shape[2] != channels:
        raise ValueError(
            f"weights must be [{batch}, K, {channels}] or [{batch}, K, {channels}, h, w] "
            f"for features {list(features.shape)}, got {list(weights.shape)}"
        )
    if weights.ndim == 5 and list(weights.shape[3:]) != positions:
        raise ValueError(
            f"weights with a value for each position must end in {positions}, "
            f"got {list(weights.shape)}"
        )


def prepared(image: Array, rows: InputAxis, columns: InputAxis, values: Values) -> Array:
    """Makes a network's input from an image of bytes.

    Args:
        image: uint8 [H, W, n].
        rows: how the input lies in the image along the height.
        columns: along the width.
        values: what is made of a pixel.

    Returns:
        uint8 [H, W, n], or float32 [n, H, W] where the values have a scale.

    Example:
        >>> image = np.array([[[10], [20], [30], [41]]], np.uint8)
        >>> rows, columns = InputAxis(0, 1, 1, 0, 1, 1), InputAxis(0, 2, 2, 1, 2, 4)
        >>> prepared(image, rows, columns, Values(border=(7,)))[0, :, 0].tolist()
        [7, 15, 36, 7]
    """
    high, wide, channels = rows.factor, columns.factor, image.shape[2]
    seen = image[
        rows.start : rows.start + rows.cells * high,
        columns.start : columns.start + columns.cells * wide,
    ]
    cells = seen.reshape(rows.cells, high, columns.cells, wide, channels).astype(np.float64)
    means = cells.sum((1, 3)) / (high * wide)
    means = np.floor(means + 0.5) if halves_up(high, wide, channels) else np.rint(means)
    top, below, down = _between(rows)
    left, right, across = _between(columns)
    down, across = down[:, None, None], across[None, :, None]
    lines = means[top] * (1 - down) + means[below] * down
    levels = np.empty((rows.length, columns.length, channels), np.float64)
    levels[:] = values.border
    levels[rows.first : rows.first + rows.shown, columns.first : columns.first + columns.shown] = (
        np.rint(lines[:, left] * (1 - across) + lines[:, right] * across)
    )
    if values.scale is None or values.shift is None:
        return levels.astype(np.uint8)
    made = levels * np.array(values.scale) + np.array(values.shift)
    return np.ascontiguousarray(made.transpose(2, 0, 1).astype(np.float32))


def _between(axis: InputAxis) -> tuple[Array, Array, Array]:
    """Returns each shown pixel's two cells along an axis, and the second one's share."""
    places = (np.arange(axis.shown) + 0.5) * (axis.cells / axis.shown) - 0.5
    places = places.clip(0, axis.cells - 1)
    cells = places.astype(np.int64)
    return cells, np.minimum(cells + 1, axis.cells - 1), places - cells
