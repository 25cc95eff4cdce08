"""The pixels that a model takes: how many channels, and bytes or values as they are.

Whatever an image is read from, `converted` brings it into the model's form or refuses it: an
image of another number of channels is only changed where everybody expects the same (grey and
colour), and values are never scaled by a guess.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import cast

import cv2
import numpy as np

from sigcam.core.errors import ImageArgumentError, ImageError, ImageWarning
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array


@dataclass(frozen=True)
class PixelFormat:
    """What an image is read to, [H, W, channels].

    Attributes:
        channels: number of channels; 3 are R, G, B and 4 may be R, G, B, A.
        as_bytes: uint8, of which 16-bit values become the upper 8 bits; if not, float32 with the
            values as they are, whatever their range.

    Example:
        >>> PixelFormat(6, as_bytes=False).dtype
        dtype('float32')
    """

    channels: int = 3
    as_bytes: bool = True

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float32]:
        """Returns the type of the values that are read."""
        return np.dtype(np.uint8) if self.as_bytes else np.dtype(np.float32)

    @property
    def wanted(self) -> str:
        """Returns in words what arrays are taken."""
        types = (
            "uint8 or uint16" if self.as_bytes else "float32 (or another type wider than 8 bits)"
        )
        if self.channels == 3:
            return f"{types}, [H, W], [H, W, 1], [H, W, 3] RGB or [H, W, 4] RGBA"
        if self.channels == 1:
            return f"{types}, [H, W], [H, W, 1], or in colour [H, W, 3] RGB or [H, W, 4] RGBA"
        return f"{types}, [H, W, {self.channels}]"


_DARK = 4095

RGB = PixelFormat()
"""What photographs are read to: uint8 [H, W, 3] RGB."""


def pixel_format(preprocessing: Preprocessing) -> PixelFormat:
    """Returns what images are read to for a model.

    Example:
        >>> pixel_format(Preprocessing(mean=(0.5,), std=(0.25,)))
        PixelFormat(channels=1, as_bytes=True)
    """
    return PixelFormat(preprocessing.channels, preprocessing.takes_bytes)


def converted(array: Array, format: PixelFormat, name: str = "") -> Array:  # noqa: A002
    """Brings an array into the form that a model takes.

    - For 1 channel, RGB and RGBA become grey: 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601),
      rounded for bytes. Alpha is dropped first.
    - For 3 channels, grey is repeated, and of four channels (RGBA) the last is dropped.
    - Any other number must be the model's.
    - Bytes: uint8 stays, uint16 becomes its upper 8 bits (an ImageWarning tells where all
      values are below 4096, 12 bits as a rule). Values as they are: any type of whole or
      floating numbers but uint8, as 8-bit data for a model of another range is a mistake.

    Args:
        array: [H, W] or [H, W, channels] of any type.
        format: what the model takes.
        name: what errors call the image; empty for an array.

    Returns:
        uint8 or float32 [H, W, channels], C-contiguous. An array that is so already is returned
        itself, not a copy.

    Raises:
        ImageError: another shape or type, or a value that isn't finite.

    Example:
        >>> grey = np.array([[0, 65535]], np.uint16)
        >>> converted(grey, RGB).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
        >>> converted(grey, PixelFormat(1, as_bytes=False)).tolist()
        [[[0.0], [65535.0]]]
    """
    is_image = array.ndim == 3 and array.size and array.shape[2] == format.channels
    if is_image and array.dtype == format.dtype == np.uint8:
        return np.ascontiguousarray(array)  # the usual one, without the texts below
    _check_shape(array, format, name)
    values = _values(array, format, name)
    if values.ndim == 2:
        values = values[:, :, None]
    return np.ascontiguousarray(_channels(values, format.channels))


def _refuse(array: Array, format: PixelFormat, name: str, advice: str) -> ImageError:  # noqa: A002
    got = f"{array.dtype} {list(array.shape)}"
    if name:
        return ImageError(f"{name} holds {got}; this model takes {format.wanted}{advice}")
    what = "one image is" if array.ndim == 4 else "an image is"
    return ImageArgumentError(f"{what} {format.wanted}, got {got}{advice}")


def _check_shape(array: Array, format: PixelFormat, name: str) -> None:  # noqa: A002
    if array.ndim == 4:
        raise _refuse(array, format, name, "; pass several as a list of arrays")
    if array.ndim not in (2, 3):
        raise _refuse(array, format, name, "")
    if array.size == 0:
        what = f"{name} must have" if name else "an image has"
        kind = ImageError if name else ImageArgumentError
        raise kind(f"{what} at least one pixel, got {array.dtype} {list(array.shape)}")
    found = 1 if array.ndim == 2 else array.shape[2]
    taken = {1: (1, 3, 4), 3: (1, 3, 4)}.get(format.channels, (format.channels,))
    if found in taken:
        return
    first = array.shape[0] if array.ndim == 3 else 0
    if first == format.channels or (format.channels in (1, 3) and first in (1, 3, 4)):
        advice = "; channels come last: pass array.transpose(1, 2, 0)"
    elif format.channels in (1, 3):
        advice = ""
    else:
        advice = (
            f"; give an image of {format.channels} channels, or a model that was trained for "
            f"{found} (as many numbers in its mean and std)"
        )
    raise _refuse(array, format, name, advice)


def _values(array: Array, format: PixelFormat, name: str) -> Array:  # noqa: A002
    """Returns the array with the type that is taken."""
    if format.as_bytes:
        if array.dtype == np.uint8:
            return array
        if array.dtype == np.uint16:
            return upper_bits(array, name)
        advice = "; scale it to 0..255 as uint8, or give the model a scale of its own (--scale)"
        raise _refuse(array, format, name, advice)
    if array.dtype == np.uint8 or not (
        np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)
    ):
        raise _refuse(array, format, name, "; give values in the range that the model was made for")
    values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        what = name or "the image"
        raise (ImageError if name else ImageArgumentError)(
            f"{what} has values that are not finite (NaN or infinite); replace them, for example "
            "by the mean of the channel"
        )
    return values


def upper_bits(array: Array, name: str) -> Array:
    """Makes bytes of 16-bit values.

    Where the upper 4 bits of all of them are empty, they are a camera's 12 bits as a rule, and an
    ImageWarning tells of it.

    Args:
        array: uint16 of any shape.
        name: what the warning calls the image; empty for an array.

    Example:
        >>> upper_bits(np.array([0, 65535], np.uint16), "").tolist()
        [0, 255]
    """
    most = int(array.max())
    if 0 < most <= _DARK:
        warnings.warn(
            f"{name or 'the image'} has values of 16 bits up to {most} of 65535, which is nearly "
            f"black; if white is 4095, multiply them by 16, or state the range in the file (sBIT, "
            "MaxSampleValue)",
            ImageWarning,
            stacklevel=2,
        )
    return (array >> 8).astype(np.uint8)


def _channels(values: Array, wanted: int) -> Array:
    """Brings [H, W, n] to the number of channels; `_check_shape` allowed it."""
    found = values.shape[2]
    if found == wanted:
        return values
    if found == 1:
        return np.broadcast_to(values, (*values.shape[:2], wanted))
    colour = values[:, :, :3]
    if wanted == 3:
        return colour
    grey = cv2.cvtColor(np.ascontiguousarray(colour), cv2.COLOR_RGB2GRAY)
    return cast("Array", grey[:, :, None])


def shown(image: Array) -> Array:
    """Returns an image as it is shown, uint8 [H, W, 3] RGB.

    One or two channels: the first one in grey. Three and more: the first three as red, green and
    blue. Values that aren't bytes are shown from the smallest to the largest of these channels.

    Args:
        image: uint8 or float32 [H, W, n], as it was read for a model.

    Example:
        >>> shown(np.array([[[-1.0], [3.0]]], np.float32)).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
        >>> shown(np.array([[[1, 2, 3, 4, 5, 6]]], np.uint8)).tolist()
        [[[1, 2, 3]]]
    """
    if image.shape[2] < 3:
        image = np.broadcast_to(image[:, :, :1], (*image.shape[:2], 3))
    elif image.shape[2] > 3:
        image = image[:, :, :3]
    if image.dtype == np.uint8:
        return np.ascontiguousarray(image)
    low, high = float(image.min()), float(image.max())
    scaled = (image.astype(np.float64) - low) * (255 / (high - low) if high > low else 0.0)
    return np.ascontiguousarray(scaled.round().astype(np.uint8))
