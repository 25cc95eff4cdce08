"""From an image to the network's input, and where that lies in the image.

The network's crop box is a rectangle of whole image pixels. Along one axis (rows or
columns) every step is affine: a whole-factor box average, a bilinear resize, a border.
An `Axis` holds the whole numbers of these steps, so that going back is exact.

Factors and starts are chosen so that a JPEG that is decoded at 1/2, 1/4 or 1/8 of its size
has pixels that are whole cells of the box average: `Placement.reduction` says which.

`read_input` decodes no more of a file than the input needs: a JPEG that is at least twice as
large as the input is decoded at 1/2, 1/4 or 1/8 of its size. At 1/8, 12 megapixels take 0.4 of
the time and 1/64 of the memory. Its pixels are the cells of the box average that `prepare` makes
of a whole image, but for the ringing of
a block's higher frequencies and for chroma, which isn't enlarged and averaged again. The
network's input differs by 0.2 levels of 255 on average on images with little detail in a
pixel, as large photographs are, and by 0.4 (at 1/8) to 0.7 levels (at 1/2) on small ones, where
one value in a hundred differs by more than 2 to 5. EfficientNet-Lite0's predictions agree to 98.4
to 99.6% and its CAMs correlate to 0.9998 (images enlarged to 540 to 2,100 pixels).
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.images.decode import (
    DEFAULT_MAX_PIXELS,
    ImageLike,
    open_image,
)
from sigcam.images.pixels import RGB, PixelFormat, converted, pixel_format
from sigcam.images.sources import plain_source

Source = Path | bytes

COARSEST = 8
"""A JPEG can be decoded at 1/8 of its size, one pixel for each block, and not smaller."""

_Number = TypeVar("_Number", float, Array)


@dataclass(frozen=True)
class Axis:
    """How one axis of the image lies in the input. Whole pixels throughout.

    Attributes:
        size: length of the image.
        low, high: the image pixels [low, high) that the network sees.
        factor: whole factor of the box average before the bilinear resize: 1, 2, 4 or a
            multiple of 8.
        first: first input pixel that shows the image; those before it are border.
        shown: number of input pixels that show the image.
        length: length of the input.
    """

    size: int
    low: int
    high: int
    factor: int
    first: int
    shown: int
    length: int

    @property
    def used(self) -> int:
        """Counts the image pixels that are read: a multiple of `factor`."""
        return (self.high - self.low) // self.factor * self.factor

    @property
    def start(self) -> int:
        """Returns the first image pixel that is read.

        What is left over for the factor lies at both ends of the crop box, as evenly as whole
        steps of `low` allow; together it is less than one input pixel.
        """
        step = math.gcd(COARSEST, self.factor)
        return self.low + (self.high - self.low - self.used) // 2 // step * step

    @property
    def filled(self) -> slice:
        """Returns the input pixels that show the image and not a border."""
        return slice(self.first, self.first + self.shown)

    def to_image(self, position: _Number) -> _Number:
        """Turns an input coordinate into an image coordinate; 0 is a first pixel's centre."""
        return (position + 0.5 - self.first) * (self.used / self.shown) + self.start - 0.5

    def to_input(self, position: _Number) -> _Number:
        """Turns an image coordinate into an input coordinate; undoes `to_image`."""
        return (position + 0.5 - self.start) * (self.shown / self.used) + self.first - 0.5


@dataclass(frozen=True)
class Placement:
    """Where the network's input lies in the original image.

    Attributes:
        rows, columns: the same for each axis.
    """

    rows: Axis
    columns: Axis

    @property
    def height(self) -> int:
        """Returns the height of the image in pixels."""
        return self.rows.size

    @property
    def width(self) -> int:
        """Returns the width of the image in pixels."""
        return self.columns.size

    @property
    def crop_box(self) -> tuple[int, int, int, int]:
        """Returns the part that the network sees: x0, y0, x1, y1; x1, y1 just outside."""
        return self.columns.low, self.rows.low, self.columns.high, self.rows.high

    @property
    def reduction(self) -> int:
        """Returns the largest of 1, 2, 4, 8 whose square cells make up what is averaged.

        An image shrunk so many times, cell by cell from its first row and column on, gives
        the same input as the whole one.
        """
        rows, columns = self.rows, self.columns
        return math.gcd(COARSEST, rows.factor, columns.factor, rows.start, columns.start)


def place(preprocessing: Preprocessing, height: int, width: int) -> Placement:
    """Finds where the input of `preprocessing` lies in an image of [height, width].

    The rule "crop" sees what torchvision's Resize and CenterCrop would leave, rounded to
    whole pixels of the image, or to whole cells of the box average where there is one:
    less than a pixel's difference at each edge, of the image or of the input. Where the cut
    would be larger than the resized image, which only happens to inputs that aren't square and
    which torchvision pads, the image is resized until it covers the input.

    Example:
        >>> place(Preprocessing(224, 224, "crop", 256), 480, 640).crop_box
        (110, 30, 530, 450)
        >>> place(Preprocessing(320, 640, "crop"), 500, 1000).crop_box
        (0, 0, 1000, 500)
    """
    if preprocessing.rule == "crop":
        resize = preprocessing.resize or min(preprocessing.height, preprocessing.width)
        scale = min(
            min(height, width) / resize,
            height / preprocessing.height,
            width / preprocessing.width,
        )
        return Placement(
            _cut(height, preprocessing.height, scale), _cut(width, preprocessing.width, scale)
        )
    rows, columns = preprocessing.height, preprocessing.width
    if preprocessing.rule == "letterbox":
        if height * columns >= width * rows:
            columns = max(1, round(width * rows / height))
        else:
            rows = max(1, round(height * columns / width))
    return Placement(
        _axis(height, 0, height, rows, preprocessing.height),
        _axis(width, 0, width, columns, preprocessing.width),
    )


def _cut(size: int, length: int, scale: float) -> Axis:
    kept = min(size, max(1, round(length * scale)))
    factor = _factor(kept, length)
    step = math.gcd(COARSEST, factor)
    kept = min(size, kept + factor // 2) // factor * factor
    low = min(round((size - kept) / (2 * step)), (size - kept) // step) * step
    return Axis(size, low, low + kept, factor, 0, length, length)


def _axis(size: int, low: int, high: int, shown: int, length: int) -> Axis:
    return Axis(size, low, high, _factor(high - low, shown), (length - shown) // 2, shown, length)


def _factor(seen: int, shown: int) -> int:
    """Chooses the factor that leaves `seen` pixels at least `shown`, and at most twice as many."""
    most = max(1, seen // shown)
    return most // COARSEST * COARSEST or 1 << (most.bit_length() - 1)


def prepare(
    image: Array, preprocessing: Preprocessing, out: Array | None = None
) -> tuple[Array, Placement]:
    """Makes the network's input from an image.

    Args:
        image: [H, W, n] with n = `preprocessing.channels`; uint8, or float32 where the model
            takes no bytes.
        preprocessing: of the model.
        out: where to write the input; a new array when None.

    Returns:
        The input: for the layouts "uint8_nhwc" and "float32_nhwc" pixels of the image's type
        [height, width, n], for "float32_nchw" float32 [n, height, width],
        (pixel / scale - mean) / std; and where it lies in the image.

    Example:
        >>> tensor, placement = prepare(np.zeros((480, 640, 3), np.uint8), Preprocessing())
        >>> tensor.shape, placement.crop_box
        ((224, 224, 3), (80, 0, 560, 480))
    """
    placement = place(preprocessing, *image.shape[:2])
    return input_of(image, placement, preprocessing, out=out), placement


def input_of(
    image: Array,
    placement: Placement,
    preprocessing: Preprocessing,
    *,
    reduction: int = 1,
    out: Array | None = None,
) -> Array:
    """Makes the network's input from an image, or from one that was shrunk before.

    Args:
        image: as for `prepare`, or [ceil(H / reduction), ceil(W / reduction), n].
        placement: of the input in the whole image.
        preprocessing: of the model.
        reduction: a divisor of `placement.reduction`.
        out: as for `prepare`.

    Returns:
        The input, as from `prepare`.

    Example:
        >>> preprocessing = Preprocessing(2, 2, "crop", 2)
        >>> image = np.full((4, 8, 3), [10, 20, 30], np.uint8)
        >>> input_of(image, place(preprocessing, 4, 8), preprocessing)[0].tolist()
        [[10, 20, 30], [10, 20, 30]]
    """
    is_raw = preprocessing.layout != "float32_nchw"
    shape = (preprocessing.height, preprocessing.width, preprocessing.channels)
    dtype = pixel_format(preprocessing).dtype
    canvas: Array = out if is_raw and out is not None else np.empty(shape, dtype)
    rows, columns = placement.rows, placement.columns
    if (rows.shown, columns.shown) != (rows.length, columns.length):
        canvas[:] = mean_colour(preprocessing)
    _shrink(image, placement, reduction, canvas[rows.filled, columns.filled])
    if is_raw:
        return canvas
    scale = np.array([1 / (preprocessing.scale * std) for std in preprocessing.std], np.float32)
    shift = np.array(
        [-mean / std for mean, std in zip(preprocessing.mean, preprocessing.std, strict=True)],
        np.float32,
    )
    planes = out if out is not None else np.empty((shape[2], *shape[:2]), np.float32)
    if not preprocessing.takes_bytes:
        # The mean first: values far from 0 would lose their digits in the product.
        centre = np.array(mean_colour(preprocessing), np.float32)
        np.subtract(canvas.transpose(2, 0, 1), centre[:, None, None], out=planes)
        planes *= scale[:, None, None]
        return planes
    np.multiply(canvas.transpose(2, 0, 1), scale[:, None, None], out=planes)
    planes += shift[:, None, None]
    return planes


def mean_colour(preprocessing: Preprocessing) -> list[float]:
    """Returns the pixel that is zero once it is normalised, one number per channel.

    Bytes are rounded, and a mean outside their range counts as its nearer end.

    Example:
        >>> mean_colour(Preprocessing())
        [124, 116, 104]
        >>> mean_colour(Preprocessing(mean=(-0.5, 2.0), std=(1, 1), scale=100))
        [-50.0, 200.0]
    """
    if not preprocessing.takes_bytes:
        return [preprocessing.scale * value for value in preprocessing.mean]
    return [round(255 * min(max(value, 0.0), 1.0)) for value in preprocessing.mean]


def _shrink(image: Array, placement: Placement, reduction: int, out: Array) -> None:
    """Writes the crop box into `out`, [shown, shown, n], at that size."""
    rows, columns = placement.rows, placement.columns
    top, height = rows.start // reduction, rows.used // reduction
    left, width = columns.start // reduction, columns.used // reduction
    part = image[top : top + height, left : left + width]
    size = (columns.used // columns.factor, rows.used // rows.factor)
    if size != (width, height):
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
        # OpenCV drops the axis of a single channel.
        part = part.reshape(*part.shape[:2], out.shape[2])
    if size != (columns.shown, rows.shown):
        cv2.resize(part, (columns.shown, rows.shown), dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        out[:] = part


class Original:
    """An image at its full size: at hand, or decoded when it is first asked for.

    Shared by the Explanations of an image, from any thread.
    """

    def __init__(
        self,
        image: Array | None,
        source: Source = b"",
        shape: tuple[int, ...] = (),
        stamp: tuple[int, int] | None = None,
        pixels: PixelFormat = RGB,
    ) -> None:
        """Keeps an image or where it comes from.

        Args:
            image: uint8 or float32 [H, W, n], upright; None to decode `source` later.
            source: absolute path or the bytes of a file, which was read before.
            shape: of the image.
            stamp: length and time of change of the file.
            pixels: what `source` is decoded to.
        """
        self._image = image
        self._source = source
        self._shape = shape
        self._stamp = stamp
        self._pixels = pixels
        self._lock = threading.Lock()

    @property
    def image(self) -> Array:
        """Returns the image as the model reads it, [H, W, n], upright; decodes it once.

        Raises:
            ImageError: its file is gone, or another one since it was read.
        """
        with self._lock:
            if self._image is None:
                self._image = self._decoded()
                self._source = b""
            return self._image

    def _decoded(self) -> Array:
        try:
            found = open_image(self._source, None)
        except ImageError as exc:
            raise ImageError(
                f"the image was explained, but can't be shown: {exc}; keep the file until then, "
                "or pass its bytes"
            ) from exc
        image = found.decode(self._pixels)
        # Looked at after reading: what was read is then the file of that time.
        if _stamp(self._source) != self._stamp or image.shape != self._shape:
            raise ImageError(
                f"{found.name} has changed since it was explained, so it can't be shown with "
                "that heatmap; explain it again"
            )
        return image

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that was read for the network.

    Attributes:
        tensor: the network's input, as `preprocessing.prepare` gives it.
        placement: where that lies in the image.
        original: the image.
    """

    tensor: Array
    placement: Placement
    original: Original


def read_input(
    source: ImageLike, preprocessing: Preprocessing, max_pixels: int | None = DEFAULT_MAX_PIXELS
) -> Prepared:
    """Reads an image and makes the network's input of it.

    Args:
        source: as for `read_image`.
        preprocessing: of the model.
        max_pixels: as for `read_image`.

    Raises:
        ImageError, UsageError: as `read_image`.

    Example:
        >>> read_input(np.zeros((60, 80, 3), np.uint8), Preprocessing(32, 32)).tensor.shape
        (32, 32, 3)
    """
    pixels = pixel_format(preprocessing)
    plain = plain_source(source)
    if isinstance(plain, np.ndarray):
        return _whole(converted(plain, pixels), preprocessing)
    path = plain.absolute() if isinstance(plain, Path) else None
    stamp = None if path is None else _stamp(path)
    found = open_image(plain, max_pixels)
    placement = place(preprocessing, found.height, found.width)
    reduction = found.coarsest(placement.reduction, pixels)
    if reduction == 1:
        return _whole(found.decode(pixels), preprocessing)
    image = found.decode_reduced(reduction, pixels)
    shape = (found.height, found.width, pixels.channels)
    if image.shape != (-(-shape[0] // reduction), -(-shape[1] // reduction), shape[2]):
        # The header isn't what the decoder goes by, so the pixels decide.
        return _whole(found.decode(pixels), preprocessing)
    tensor = input_of(image, placement, preprocessing, reduction=reduction)
    return Prepared(tensor, placement, Original(None, path or found.data, shape, stamp, pixels))


def _whole(image: Array, preprocessing: Preprocessing) -> Prepared:
    tensor, placement = prepare(image, preprocessing)
    return Prepared(tensor, placement, Original(image))


def _stamp(source: Source) -> tuple[int, int] | None:
    """Returns length and time of change of a file; None if there is none, or for bytes."""
    if isinstance(source, bytes):
        return None
    try:
        status = source.stat()
    except (OSError, ValueError):  # reading it says why
        return None
    return status.st_size, status.st_mtime_ns
