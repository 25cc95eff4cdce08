"""From a CAM to the heatmap: enlarged to the original image and normalised."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import cv2
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
    """Enlarges as `spread` does, with values cut to `bounds` if there are any."""
    # New memory costs more than all the arithmetic, and what stays zero isn't touched.
    out = np.zeros((placement.height, placement.width), np.float32)
    _enlarge(cam, placement, interpolation, bounds, out)
    return out


def _enlarge(
    cam: Array,
    placement: Placement,
    interpolation: Interpolation,
    bounds: tuple[float, float] | None,
    out: Array,
) -> None:
    for part, values in _blocks(cam, placement, interpolation, out):
        np.matmul(*values, out=part)
        if bounds is not None:
            np.clip(part, *bounds, out=part)


def _blocks(
    cam: Array, placement: Placement, interpolation: Interpolation, out: Array
) -> Iterator[tuple[Array, tuple[Array, Array]]]:
    """Yields parts of `out`, which make up the crop box, and the two factors of their values.

    OpenBLAS starts threads for products of more than 2^18 multiplications. While a
    backend's own threads spin, these wait for a core: 30 ms were seen on two cores instead
    of 0.1 ms. So the rows are done in blocks that stay below, and whatever else is done with
    one is done while it is still in the processor's cache.
    """
    x0, y0, x1, y1 = placement.crop_box
    down = _matrix(placement.rows, cam.shape[0], interpolation)
    wide = _wide(cam, _matrix(placement.columns, cam.shape[1], interpolation)[x0:x1])
    block = max(2, 2**18 // wide.size)
    for first in range(y0, y1, block):
        rows = slice(first, min(first + block, y1))
        yield out[rows, x0:x1], (down[rows], wide)


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
    found = _normalised(cam, placement, interpolation)
    if found is None:
        return np.zeros((placement.height, placement.width), np.float32), False
    return _enlarged(found[0], placement, interpolation, found[1]), True


def write_heatmap(cam: Array, placement: Placement, out: Array) -> bool:
    """Writes the heatmap of a CAM into an array, as it is or as bytes.

    Args:
        cam: float32 [h, w] over the whole input.
        placement: of the input in the image.
        out: [H, W], all of it zero. float32: for what `to_heatmap` makes. uint8: for 255 times
            as much, rounded. May be a part of a larger array.

    Returns:
        Whether the heatmap is valid; if not, `out` stays as it is.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> out, placement = np.zeros((1, 4), np.uint8), place(Preprocessing(1, 4, "stretch"), 1, 4)
        >>> write_heatmap(np.array([[0.0, 2.0]], np.float32), placement, out), out.tolist()
        (True, [[0, 64, 191, 255]])
    """
    found = _normalised(cam, placement, "bilinear")
    if found is None:
        return False
    if out.dtype == np.float32:
        _enlarge(found[0], placement, "bilinear", found[1], out)
        return True
    scratch: Array = np.empty((0, 0), np.float32)
    for part, values in _blocks(found[0], placement, "bilinear", out):
        if scratch.shape != part.shape:
            scratch = np.empty(part.shape, np.float32)
        np.matmul(*values, out=scratch)
        if found[1] is not None:
            np.clip(scratch, *found[1], out=scratch)
        part[:] = cv2.convertScaleAbs(scratch, alpha=255)
    return True


def to_values(cam: Array, placement: Placement, cam_range: tuple[float, float]) -> Array:
    """Enlarges a CAM and scales it by a given range, so that maps can be compared.

    Args:
        cam: float32 [h, w] over the whole input, finite.
        placement: of the input in the image.
        cam_range: the values that become 0 and 1; what lies outside is cut off there.

    Returns:
        float32 [H, W] in [0, 1] in a new array; 0 outside the crop box.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> cam = np.array([[-2.0, 2.0]], np.float32)
        >>> to_values(cam, place(Preprocessing(1, 2), 1, 2), (0.0, 4.0)).tolist()
        [[0.0, 0.5]]
    """
    low, high = cam_range
    scaled = (cam.astype(np.float64) - low) / (high - low)
    # Cells far outside would be infinite in float32, and give NaN where their weight is 0.
    inner = scaled.clip(-1e30, 1e30).astype(np.float32)
    return _enlarged(inner, placement, "bilinear", (0.0, 1.0))


def cam_range(cam: Array, placement: Placement) -> tuple[float, float] | None:
    """Finds the smallest and largest value of the enlarged CAM inside the crop box.

    Args:
        cam: float32 [h, w] over the whole input.
        placement: of the input in the image.

    Returns:
        Both; None where the CAM isn't finite.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> cam_range(np.array([[1.0, 3.0]], np.float32), place(Preprocessing(1, 2), 1, 2))
        (1.0, 3.0)
    """
    if not np.isfinite(cam).all():
        return None
    return _extremes(cam.astype(np.float64), placement, "bilinear")


def _normalised(
    cam: Array, placement: Placement, interpolation: Interpolation
) -> tuple[Array, tuple[float, float] | None] | None:
    """Scales a CAM so that the enlarged one runs from 0 to 1.

    Returns:
        The cells, float32 [h, w], and what the enlarged values must be cut to, if they must;
        None for a CAM that is constant or not finite.
    """
    if not np.isfinite(cam).all():
        return None
    low, high = _extremes(cam.astype(np.float64), placement, interpolation)
    extent = high - low
    flat = max(FLAT * max(abs(low), abs(high)), float(np.finfo(np.float32).tiny))
    if not flat < extent < np.finfo(np.float32).max:
        return None
    scaled = (cam - low) / extent
    # Cells may lie outside 0 to 1 where no pixel does: far outside in an image of a few
    # pixels, whose rounding errors then have to be cut off.
    bounds = (0.0, 1.0) if np.abs(scaled).max() > _NEAR else None
    return (_MARGIN + scaled * (1 - 2 * _MARGIN)).astype(np.float32), bounds


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
