"""From a CAM to the heatmap: enlarged to the original image and normalised."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement

Interpolation = Literal["bilinear", "bicubic"]

FLAT = 1e-5
"""A heatmap whose range is below this part of its largest value is constant: float32
products of a constant CAM differ by some 1e-7 from pixel to pixel."""

_MARGIN = 2.0**-20
_NEAR = 4.0
"""Cells of at most `_NEAR` are enlarged with an error below `_MARGIN`, so a heatmap that is
scaled to that distance from 0 and 1 stays between them. Cutting every pixel off there
takes longer than enlarging the CAM."""


def spread(cam: Array, placement: Placement, interpolation: Interpolation = "bilinear") -> Array:
    """Enlarges a CAM to the original image, in one step.

    Pixel centres, edge cells repeated outwards; "bicubic" uses a = -0.75. Separable, so
    it is two products with small matrices, which are kept for the next image of the
    same size.

    Args:
        cam: float32 [h, w] over the whole input.
        placement: of the input in the image.
        interpolation: "bilinear", or "bicubic" as in the protocol of Choe et al. (2020).

    Returns:
        float32 [H, W] in a new array; 0 outside the crop box.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> placement = place(Preprocessing(4, 4, "stretch"), 2, 4)
        >>> spread(np.array([[0.0, 4.0]], np.float32), placement)[0].tolist()
        [0.0, 1.0, 3.0, 4.0]
    """
    return _enlarged(cam, placement, interpolation)


def _enlarged(
    cam: Array,
    placement: Placement,
    interpolation: Interpolation,
    bounds: tuple[float, float] | None = None,
) -> Array:
    """Enlarges as `spread` does, with values cut to `bounds` if there are any.

    OpenBLAS starts threads for products of more than 2^18 multiplications. While a
    backend's own threads spin, these wait for a core: 30 ms were seen on two cores instead
    of 0.1 ms. So the rows are done in blocks that stay below, and are cut while they are
    still in the processor's cache.
    """
    down = _matrix(placement.rows, cam.shape[0], interpolation)
    across = _matrix(placement.columns, cam.shape[1], interpolation)
    wide = _wide(cam, across)
    out = np.empty((len(down), len(across)), np.float32)
    block = max(2, 2**18 // wide.size)
    for first in range(0, len(down), block):
        part = out[first : first + block]
        np.matmul(down[first : first + block], wide, out=part)
        if bounds is not None:
            np.clip(part, *bounds, out=part)
    return out


def _wide(cam: Array, across: Array) -> Array:
    """Enlarges the columns of a CAM, [h, W]; no product large enough for threads."""
    wide = np.empty((len(cam), len(across)), np.float32)
    block = max(2, 2**18 // cam.size)
    for first in range(0, len(across), block):
        np.matmul(cam, across[first : first + block].T, out=wide[:, first : first + block])
    return wide


def to_heatmap(
    cam: Array, placement: Placement, interpolation: Interpolation = "bilinear"
) -> tuple[Array, bool]:
    """Makes the heatmap of a CAM: enlarged to the image, then min-max normalised.

    Normalising and enlarging may change places, as every pixel inside the crop box is a
    weighted mean of cells: so minimum and maximum are found first, on the few pixels
    where they can be, and the image-sized array is written once.

    Args:
        cam: float32 [h, w] over the whole input.
        placement: of the input in the image.
        interpolation: as for `spread`.

    Returns:
        The heatmap, float32 [H, W] in a new array: 0 to 1 inside the crop box (minimum and
        maximum are taken there; they come out as 0 and 1 within 2e-6), 0 outside. And
        whether it is valid: a CAM that is constant or not finite gives a heatmap of zeros
        and False.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> placement = place(Preprocessing(4, 4, "stretch"), 4, 8)
        >>> heatmap, valid = to_heatmap(np.array([[0.0, 2.0]], np.float32), placement)
        >>> (8 * heatmap[0]).round().astype(int).tolist(), valid
        ([0, 0, 1, 3, 5, 7, 8, 8], True)
    """
    shape = (placement.height, placement.width)
    if not np.isfinite(cam).all():
        return np.zeros(shape, np.float32), False
    low, high = _extremes(cam.astype(np.float64), placement, interpolation)
    extent = high - low
    flat = max(FLAT * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
    if not flat < extent < np.finfo(np.float32).max:
        return np.zeros(shape, np.float32), False
    scaled = (cam - low) / extent
    # Cells may lie outside 0 to 1 where no pixel does: far outside in an image of a few
    # pixels, whose rounding errors then have to be cut off.
    bounds = (0.0, 1.0) if np.abs(scaled).max() > _NEAR else None
    inner = (_MARGIN + scaled * (1 - 2 * _MARGIN)).astype(np.float32)
    return _enlarged(inner, placement, interpolation, bounds), True


def _extremes(
    cam: Array, placement: Placement, interpolation: Interpolation
) -> tuple[float, float]:
    """Finds the smallest and largest value of the enlarged CAM inside the crop box."""
    rows = _candidates(placement.rows, cam.shape[0], interpolation)
    columns = _candidates(placement.columns, cam.shape[1], interpolation)
    values = (rows @ cam) @ columns.T
    return float(values.min()), float(values.max())


@lru_cache(maxsize=32)
def _candidates(axis: Axis, cells: int, interpolation: Interpolation) -> Array:
    """Returns the rows of `_matrix` that can hold an extreme value, float64 [n, cells].

    Between two neighbouring cell centres a bilinear heatmap is linear along each axis, so
    its extremes lie at the first and last pixel there. A bicubic one may have them
    anywhere in the crop box.
    """
    kept = np.arange(axis.low, axis.high)
    if interpolation == "bilinear":
        piece = np.floor(_cell_coordinate(axis, cells, kept))
        ends = np.flatnonzero(np.diff(piece))
        kept = kept[np.unique(np.concatenate(([0], ends, ends + 1, [len(kept) - 1])))]
    rows = _matrix(axis, cells, interpolation)[kept].astype(np.float64)
    rows.setflags(write=False)
    return rows


def _cell_coordinate(axis: Axis, cells: int, pixels: Array) -> Array:
    """Finds where the pixels of the image lie in the CAM; 0 is a first cell's centre."""
    at: Array = (axis.to_input(pixels.astype(np.float64)) + 0.5) * (cells / axis.length) - 0.5
    return at


@lru_cache(maxsize=32)
def _matrix(axis: Axis, cells: int, interpolation: Interpolation) -> Array:
    """Returns the weights of the CAM's cells for each pixel of an axis, float32 [size, cells].

    Rows inside the crop box sum to 1; rows outside are 0. Read-only, as it is shared.
    """
    if interpolation not in ("bilinear", "bicubic"):
        raise UsageError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
    pixels = np.arange(axis.low, axis.high)
    at = _cell_coordinate(axis, cells, pixels)
    base = np.floor(at)
    matrix = np.zeros((axis.size, cells), np.float32)
    for tap in (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2):
        cell = (base + tap).clip(0, cells - 1).astype(np.int64)
        np.add.at(matrix, (pixels, cell), _weight(at - (base + tap), interpolation))
    matrix.setflags(write=False)
    return matrix


def _weight(distance: Array, interpolation: Interpolation) -> Array:
    """Evaluates the interpolation kernel; bicubic as Keys (1981), Eq. 4, with a = -0.75."""
    d = np.abs(distance)
    if interpolation == "bilinear":
        return np.asarray(1 - d)
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, far)
