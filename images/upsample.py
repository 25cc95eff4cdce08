"""From a CAM to the heatmap: enlarged to the original image and normalised."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Literal, NamedTuple

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

_UNIT = (0.0, 1.0)

_FLOATS = 2**19
"""Pixels that are made as floats before they become bytes: two megabytes."""

_PRODUCT = 2**18
"""Multiplications in one product, at most. OpenBLAS starts threads for more; while a backend's
own threads spin, these wait for a core: 30 ms were seen on two cores instead of 0.1 ms."""


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
    _enlarge(cam, _factors(placement, cam.shape, interpolation), bounds, out)
    return out


class _Factors(NamedTuple):
    """What a CAM is multiplied with, from the right and then from the left.

    Attributes:
        columns: the columns of the image in the crop box.
        across: the cells' weights for each of them, float32 [columns, w].
        bands: for rows of the image, in order and few enough for one product: the rows, the
            cells that all of them lie between, and the weights of these, float32 [rows, cells].
    """

    columns: slice
    across: Array
    bands: tuple[tuple[slice, slice, Array], ...]


@lru_cache(maxsize=32)
def _factors(
    placement: Placement, cells: tuple[int, int], interpolation: Interpolation
) -> _Factors:
    """Finds the factors for CAMs [h, w] of `cells`.

    A band of a bilinear heatmap lies between two rows of cells. With all seven of a usual CAM
    its product takes twice the time.
    """
    x0, _, x1, _ = placement.crop_box
    bands = []
    for rows in _between_cells(placement.rows, cells[0]):
        weights = _matrix(placement.rows, cells[0], interpolation)[rows]
        used = np.flatnonzero(weights.any(axis=0))
        # For a single cell NumPy takes a loop of its own, which is slower than BLAS with two.
        low = min(int(used[0]), max(cells[0] - 2, 0))
        inner = slice(low, max(int(used[-1]) + 1, min(low + 2, cells[0])))
        most = max(2, _PRODUCT // ((inner.stop - low) * (x1 - x0)))
        for first in range(0, len(weights), most):
            part = np.ascontiguousarray(weights[first : first + most, inner])
            start = rows.start + first
            bands.append((slice(start, start + len(part)), inner, part))
    across = _matrix(placement.columns, cells[1], interpolation)[x0:x1]
    return _Factors(slice(x0, x1), across, tuple(bands))


def _between_cells(axis: Axis, cells: int) -> Iterator[slice]:
    """Yields the pixels in the crop box that lie between the same two cells, in order."""
    cell = np.floor(_cell_coordinate(axis, cells, np.arange(axis.low, axis.high)))
    edges = [0, *(np.flatnonzero(np.diff(cell)) + 1).tolist(), len(cell)]
    for first, last in itertools.pairwise(edges):
        yield slice(axis.low + first, axis.low + last)


def _enlarge(cam: Array, factors: _Factors, bounds: tuple[float, float] | None, out: Array) -> None:
    wide = _wide(cam, factors.across)
    for rows, cells, weights in factors.bands:
        part = out[rows, factors.columns]
        np.matmul(weights, wide[cells], out=part)
        if bounds is not None:
            np.clip(part, *bounds, out=part)


def _enlarge_to_bytes(cam: Array, factors: _Factors, floats: Array, out: Array) -> None:
    """Writes 255 times the enlarged CAM, rounded, and cut off at 0 and 255.

    Args:
        cam: float32 [h, w].
        factors: for it.
        floats: float32 [rows, columns] to work in, with room for the largest band. Made into
            bytes when they are full, while they are still in the processor's cache.
        out: uint8 [H, W].
    """
    wide = _wide(cam, factors.across)
    first = last = factors.bands[0][0].start

    def write() -> None:
        part = out[first:last, factors.columns]
        cv2.convertScaleAbs(floats[: last - first], dst=part, alpha=255)

    for rows, cells, weights in factors.bands:
        if rows.stop - first > len(floats):
            write()
            first = last
        np.matmul(weights, wide[cells], out=floats[rows.start - first : rows.stop - first])
        last = rows.stop
    write()


def _wide(cam: Array, across: Array) -> Array:
    """Enlarges the columns of a CAM, [h, W]; no product large enough for threads."""
    wide = np.empty((len(cam), len(across)), np.float32)
    block = max(2, _PRODUCT // cam.size)
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
    cells, valid, bounded = _normalised(cam[None], placement, interpolation)
    if not valid[0]:
        return np.zeros((placement.height, placement.width), np.float32), False
    return _enlarged(cells[0], placement, interpolation, _UNIT if bounded[0] else None), True


def write_heatmaps(cams: Array, placement: Placement, out: Array) -> list[bool]:
    """Writes the heatmaps of an image's CAMs into an array, as they are or as bytes.

    Args:
        cams: float32 [K, h, w] over the whole input.
        placement: of the input in the image.
        out: [K, H, W], whatever is in it. float32: for what `to_heatmap` makes. uint8: for 255
            times as much, rounded. May be a part of a larger array.

    Returns:
        For each whether it is valid; those that aren't are all zeros.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> out = np.empty((2, 1, 4), np.uint8)
        >>> cams = np.array([[[0.0, 2.0]], [[1.0, 1.0]]], np.float32)
        >>> write_heatmaps(cams, place(Preprocessing(1, 4, "stretch"), 1, 4), out)
        [True, False]
        >>> out.tolist()
        [[[0, 64, 191, 255]], [[0, 0, 0, 0]]]
    """
    cells, valid, bounded = _normalised(cams, placement, "bilinear")
    x0, y0, x1, y1 = placement.crop_box
    for outside in (out[:, :y0], out[:, y1:], out[:, y0:y1, :x0], out[:, y0:y1, x1:]):
        outside[:] = 0
    factors = _factors(placement, cams.shape[1:], "bilinear")
    floats: Array = np.empty((0, 0), np.float32)
    if out.dtype == np.uint8:
        most = max(_FLOATS // (x1 - x0), *(len(weights) for _, _, weights in factors.bands))
        floats = np.empty((min(most, y1 - y0), x1 - x0), np.float32)
    for cam, one, is_valid, is_bounded in zip(cells, out, valid, bounded, strict=True):
        if not is_valid:
            one[:] = 0
        elif out.dtype == np.uint8:
            _enlarge_to_bytes(cam, factors, floats, one)
        else:
            _enlarge(cam, factors, _UNIT if is_bounded else None, one)
    return [bool(one) for one in valid]


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
    return _enlarged(inner, placement, "bilinear", _UNIT)


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
    low, high = _extremes(cam[None], placement, "bilinear")
    return float(low[0]), float(high[0])


def _normalised(
    cams: Array, placement: Placement, interpolation: Interpolation
) -> tuple[Array, Array, Array]:
    """Scales CAMs so that each enlarged one runs from 0 to 1.

    Args:
        cams: float32 [K, h, w].
        placement: of the input in the image.
        interpolation: as for `spread`.

    Returns:
        The cells, float32 [K, h, w]; whether each is valid, bool [K]: neither constant nor not
        finite; and whether its enlarged values must be cut to 0 to 1, bool [K].
    """
    finite = np.asarray(np.isfinite(cams).all(axis=(1, 2)))
    cells = cams if finite.all() else np.where(finite[:, None, None], cams, np.float32(0))
    low, high = _extremes(cells, placement, interpolation)
    extent = high - low
    flat = FLAT * np.maximum(np.abs(low), np.abs(high))
    largest, tiny = np.finfo(np.float32).max, np.finfo(np.float32).tiny
    valid: Array = finite & (np.maximum(flat, tiny) < extent) & (extent < largest)
    extent = np.where(valid, extent, 1.0)
    scaled = (cells - _float32(low)) / _float32(extent)
    # Cells may lie outside 0 to 1 where no pixel does: far outside in an image of a few
    # pixels, whose rounding errors then have to be cut off.
    bounded: Array = np.abs(scaled).max(axis=(1, 2)) > _NEAR
    return _MARGIN + scaled * (1 - 2 * _MARGIN), valid, bounded


def _float32(values: Array) -> Array:
    return values.astype(np.float32)[:, None, None]


def _extremes(
    cams: Array, placement: Placement, interpolation: Interpolation
) -> tuple[Array, Array]:
    """Finds smallest and largest value, float64 [K], of enlarged CAMs inside the crop box."""
    rows = _candidates(placement.rows, cams.shape[1], interpolation)
    columns = _candidates(placement.columns, cams.shape[2], interpolation)
    values = (rows @ cams.astype(np.float64)) @ columns.T
    return values.min(axis=(1, 2)), values.max(axis=(1, 2))


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
