"""From a picture to the network's input, and from a grid back to the picture.

Along one axis of the picture (rows or columns) every step is affine: a whole-factor
box average, a bilinear resize, a cut or a border. An `Axis` holds the whole numbers of
these steps, so that the way back is exact: no size is rounded twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.runtime.errors import UsageError
from sigcam.runtime.spec import Geometry

Array = npt.NDArray[Any]
Interpolation = Literal["bilinear", "bicubic"]
_Number = TypeVar("_Number", float, Array)

_FLAT = 1e-5
"""A map whose range is below this part of its largest value is constant: float32
products of a constant grid differ by some 1e-7 from pixel to pixel."""

_MAX_WASTE = 8
"""From how many times the input's pixels on a resized picture isn't made whole."""


@dataclass(frozen=True)
class Axis:
    """How one axis of the picture lies in the input. Whole pixels throughout.

    Attributes:
        size: length of the picture.
        factor: whole factor of the box average before the bilinear resize.
        start: first picture pixel that is read. The pixels left over when `size` isn't
            a multiple of `factor` are shared between both ends; together they are less
            than one input pixel.
        resized: length after the resize.
        offset: index in the resized picture of input pixel 0; negative where a border
            is added.
        length: length of the input.
    """

    size: int
    factor: int
    start: int
    resized: int
    offset: int
    length: int

    @property
    def used(self) -> int:
        """Number of picture pixels that are read, from `start` on."""
        return self.size // self.factor * self.factor

    @property
    def filled(self) -> tuple[int, int]:
        """The input pixels [first, end) that show the picture and not a border."""
        return max(0, -self.offset), min(self.length, self.resized - self.offset)

    @property
    def window(self) -> tuple[int, int]:
        """The picture pixels [first, end) that the input shows, in whole or in part."""
        first, end = (index + self.offset for index in self.filled)
        low = 0 if first == 0 else self.start + first * self.used // self.resized
        high = self.start - (-end * self.used // self.resized)
        return low, self.size if end == self.resized else high

    def to_picture(self, position: _Number) -> _Number:
        """From an input coordinate to a picture coordinate; 0 is a first pixel's centre."""
        return (position + 0.5 + self.offset) * (self.used / self.resized) + self.start - 0.5

    def to_input(self, position: _Number) -> _Number:
        """From a picture coordinate to an input coordinate; undoes `to_picture`."""
        return (position + 0.5 - self.start) * (self.resized / self.used) - self.offset - 0.5


@dataclass(frozen=True)
class Placement:
    """Where the network's input lies in the original picture.

    Attributes:
        rows, columns: the same for each axis.
    """

    rows: Axis
    columns: Axis

    @property
    def height(self) -> int:
        """Height of the picture in pixels."""
        return self.rows.size

    @property
    def width(self) -> int:
        """Width of the picture in pixels."""
        return self.columns.size

    @property
    def window(self) -> tuple[int, int, int, int]:
        """The part of the picture that the network saw: x0, y0, x1, y1 in pixels, ends out."""
        (y0, y1), (x0, x1) = self.rows.window, self.columns.window
        return x0, y0, x1, y1


def place(geometry: Geometry, height: int, width: int) -> Placement:
    """Where the input of `geometry` lies in a picture of [height, width].

    The rule "crop" rounds as torchvision's Resize and CenterCrop do.
    """
    if geometry.rule == "crop":
        short = geometry.resize or min(geometry.height, geometry.width)
        rows = short if height <= width else int(short * height / width)
        columns = short if width <= height else int(short * width / height)
        top = round((rows - geometry.height) / 2)
        left = round((columns - geometry.width) / 2)
    elif geometry.rule == "stretch":
        rows, columns, top, left = geometry.height, geometry.width, 0, 0
    else:
        rows, columns = geometry.height, geometry.width
        if height * columns >= width * rows:
            columns = max(1, round(width * rows / height))
        else:
            rows = max(1, round(height * columns / width))
        top, left = -((geometry.height - rows) // 2), -((geometry.width - columns) // 2)
    return Placement(
        _axis(height, rows, top, geometry.height), _axis(width, columns, left, geometry.width)
    )


def _axis(size: int, resized: int, offset: int, length: int) -> Axis:
    factor = max(1, size // resized)
    return Axis(size, factor, size % factor // 2, resized, offset, length)


def prepare(image: Array, geometry: Geometry, out: Array | None = None) -> tuple[Array, Placement]:
    """Makes the network's input from a picture.

    Args:
        image: uint8 [H, W, 3] RGB.
        geometry: of the model.
        out: where to write the input; a new array when None.

    Returns:
        The input: for the layout "uint8_nhwc" uint8 [height, width, 3] RGB, for
        "float32_nchw" float32 [3, height, width], (pixel / 255 - mean) / std; and where
        it lies in the picture.
    """
    placement = place(geometry, *image.shape[:2])
    as_bytes = geometry.layout == "uint8_nhwc"
    shape = (geometry.height, geometry.width, 3)
    canvas = out if as_bytes and out is not None else np.empty(shape, np.uint8)
    (top, bottom), (left, right) = placement.rows.filled, placement.columns.filled
    if (top, bottom, left, right) != (0, geometry.height, 0, geometry.width):
        canvas[:] = [round(255 * min(max(value, 0.0), 1.0)) for value in geometry.mean]
    canvas[top:bottom, left:right] = _shrunk(image, placement)
    if as_bytes:
        return canvas, placement
    scale = np.array([1 / (255 * std) for std in geometry.std], np.float32)
    shift = np.array(
        [-mean / std for mean, std in zip(geometry.mean, geometry.std, strict=True)], np.float32
    )
    planes = out if out is not None else np.empty((3, *shape[:2]), np.float32)
    np.multiply(canvas.transpose(2, 0, 1), scale[:, None, None], out=planes)
    planes += shift[:, None, None]
    return planes, placement


def _shrunk(image: Array, placement: Placement) -> Array:
    """The part of the resized picture that the input keeps, uint8 [filled, filled, 3]."""
    rows, columns = placement.rows, placement.columns
    if rows.factor > 1 or columns.factor > 1:
        image = image[
            rows.start : rows.start + rows.used, columns.start : columns.start + columns.used
        ]
        size = (columns.used // columns.factor, rows.used // rows.factor)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    top, bottom = (index + rows.offset for index in rows.filled)
    left, right = (index + columns.offset for index in columns.filled)
    height, width = rows.resized, columns.resized
    if height * width > _MAX_WASTE * (bottom - top) * (right - left):
        # A strip: cut along its long side first, or the whole of it would be made
        # (1 x 20,000 pixels with a short side of 256 have a long side of 5,120,000).
        if height > width:
            image, height, top, bottom = _sampled(image, rows), bottom - top, 0, bottom - top
        else:
            turned = _sampled(image.transpose(1, 0, 2), columns)
            image = np.ascontiguousarray(turned.transpose(1, 0, 2))
            width, left, right = right - left, 0, right - left
    if image.shape[:2] != (height, width):
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    part: Array = image[top:bottom, left:right]
    return part if part.dtype == np.uint8 else np.rint(part).astype(np.uint8)


def _sampled(image: Array, axis: Axis) -> Array:
    """Linear interpolation along the first axis at the kept pixels only, float32."""
    kept = np.arange(*axis.filled) + axis.offset
    last = len(image) - 1
    at = ((kept + 0.5) * (len(image) / axis.resized) - 0.5).clip(0, last)
    below = at.astype(np.int64)
    part = (at - below).astype(np.float32)[:, None, None]
    low, high = (image[i].astype(np.float32) for i in (below, np.minimum(below + 1, last)))
    mixed: Array = low + (high - low) * part
    return mixed


def spread(grid: Array, placement: Placement, interpolation: Interpolation = "bilinear") -> Array:
    """Enlarges a grid to the original picture, in one step.

    Pixel centres, edge cells repeated outwards; "bicubic" uses a = -0.75. Separable, so
    it is two products with small matrices, which are kept for the next picture of the
    same size.

    Args:
        grid: float32 [h, w] over the whole input.
        placement: of the input in the picture.
        interpolation: "bilinear", or "bicubic" as in the protocol of Choe et al. (2020).

    Returns:
        float32 [H, W] in a new array; 0 outside the window.
    """
    down = _matrix(placement.rows, grid.shape[0], interpolation)
    across = _matrix(placement.columns, grid.shape[1], interpolation)
    return _product(down, np.ascontiguousarray(_product(across, grid.T).T))


def _product(left: Array, right: Array) -> Array:
    """Matrix product in one thread.

    OpenBLAS starts threads for products of more than 2^18 multiplications. While an
    engine's own threads spin, these wait for a core: 30 ms were seen on two cores instead
    of 0.1 ms. So the rows are done in blocks that stay below.
    """
    out = np.empty((left.shape[0], right.shape[1]), np.float32)
    block = max(2, 2**18 // right.size)
    for first in range(0, len(left), block):
        np.matmul(left[first : first + block], right, out=out[first : first + block])
    return out


def to_map(
    grid: Array, placement: Placement, interpolation: Interpolation = "bilinear"
) -> tuple[Array, bool]:
    """The map of a grid: enlarged to the picture, then min-max normalised.

    Args:
        grid: float32 [h, w] over the whole input.
        placement: of the input in the picture.
        interpolation: as for `spread`.

    Returns:
        The map, float32 [H, W] in a new array: 0 to 1 inside the window (minimum and
        maximum are taken there), 0 outside. And whether it is valid: a grid that is
        constant or not finite gives a map of zeros and False.
    """
    if not np.isfinite(grid).all():
        return np.zeros((placement.height, placement.width), np.float32), False
    full = spread(grid, placement, interpolation)
    x0, y0, x1, y1 = placement.window
    seen = full[y0:y1, x0:x1]
    # One pass over a picture-sized array, where NumPy's min and max take two.
    low, high = (np.float32(value) for value in cv2.minMaxLoc(seen)[:2])
    extent = high - low
    flat = max(_FLAT * max(abs(low), abs(high)), np.finfo(np.float32).tiny)
    if not flat < extent < np.inf:
        full[:] = 0
        return full, False
    seen -= low
    seen /= extent
    return full, True


@lru_cache(maxsize=32)
def _matrix(axis: Axis, cells: int, interpolation: Interpolation) -> Array:
    """Weights of the grid's cells for each pixel of an axis, float32 [size, cells].

    Rows inside the window sum to 1; rows outside are 0. Read-only, as it is shared.
    """
    if interpolation not in ("bilinear", "bicubic"):
        raise UsageError(f"interpolation must be 'bilinear' or 'bicubic', got {interpolation!r}")
    low, high = axis.window
    pixels = np.arange(low, high)
    at = (axis.to_input(pixels.astype(np.float64)) + 0.5) * (cells / axis.length) - 0.5
    base = np.floor(at)
    matrix = np.zeros((axis.size, cells), np.float32)
    for tap in (0, 1) if interpolation == "bilinear" else (-1, 0, 1, 2):
        cell = (base + tap).clip(0, cells - 1).astype(np.int64)
        np.add.at(matrix, (pixels, cell), _weight(at - (base + tap), interpolation))
    matrix.setflags(write=False)
    return matrix


def _weight(distance: Array, interpolation: Interpolation) -> Array:
    """The interpolation kernel; for bicubic that of Keys (1981), Eq. 4, with a = -0.75."""
    d = np.abs(distance)
    if interpolation == "bilinear":
        return np.asarray(1 - d)
    a = -0.75
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, far)
