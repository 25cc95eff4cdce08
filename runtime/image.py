"""Reading pictures: a path, encoded bytes or an array becomes upright RGB bytes."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sigcam.runtime.encoded import Encoded, read_encoded
from sigcam.runtime.errors import ImageError, UsageError

Array = npt.NDArray[Any]
PictureLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Array"

DEFAULT_MAX_PIXELS = 178_956_970
"""The most pixels that are decoded unless the caller says otherwise: 512 MiB as RGB."""

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"))
"""How the names of such files end; what counts as a picture in a folder."""


def read_image(source: PictureLike, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Array:
    """Reads a picture.

    Args:
        source: the path of a file; the bytes of one; or an array: uint8 or uint16,
            [H, W], [H, W, 1], [H, W, 3] RGB or [H, W, 4] RGBA. Files are JPEG, PNG, WebP,
            GIF (the first frame), BMP or TIFF of any colour type. Alpha is dropped, 16 bits
            become the upper 8, and EXIF orientation is honoured.
        max_pixels: files with more pixels are refused by their header, before they are
            decoded; None for no limit. Arrays are decoded already and not limited.

    Returns:
        uint8 [H, W, 3] RGB, upright, C-contiguous. An array that is so already is
        returned itself, not a copy.

    Raises:
        ImageError: a file that is missing, unreadable, empty, truncated, too large or not a
            picture; an array of another shape or dtype.
        UsageError: `source` is none of the above.
    """
    if isinstance(source, np.ndarray):
        return from_array(source)
    return open_image(source, max_pixels).decode()


def open_image(source: PictureLike, max_pixels: int | None = DEFAULT_MAX_PIXELS) -> Encoded:
    """Reads a picture's file and checks it, without decoding it.

    Args:
        source: path or bytes, as for `read_image`.
        max_pixels: as for `read_image`.

    Raises:
        ImageError, UsageError: as `read_image`, but for damage that only decoding finds.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        name = f"the picture given as {len(data)} bytes"
        return read_encoded(io.BytesIO(data), name, max_pixels)
    if not isinstance(source, (str, os.PathLike)):
        raise UsageError(
            f"a picture is a path, bytes or an array, got {type(source).__name__}; "
            "pass several pictures as a list, or use Session.stream"
        )
    path = Path(source)
    try:
        if path.is_dir():
            raise ImageError(f"{path} is a folder, not a picture; pass the files in it")
        if not path.is_file():
            raise ImageError(f"there is no picture file {path}; check the path")
        with path.open("rb") as stream:
            return read_encoded(stream, str(path), max_pixels)
    except OSError as exc:
        reason = exc.strerror or exc
        raise ImageError(f"cannot read {path}: {reason}; check the path") from exc


def from_array(array: Array) -> Array:
    """The picture of an array, as `read_image` gives it; ImageError of another shape or dtype."""
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        return np.ascontiguousarray(array)  # the usual one, without the texts below
    wanted = "uint8 or uint16, [H, W], [H, W, 1], [H, W, 3] RGB or [H, W, 4] RGBA"
    got = f"{array.dtype} {list(array.shape)}"
    if array.ndim == 4:
        raise ImageError(f"one picture is {wanted}, got {got}; pass several as a list of arrays")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"a picture is {wanted}, got {got}")
    if array.size == 0:
        raise ImageError(f"a picture has at least one pixel, got {got}")
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"a picture is {wanted}, got {got}; scale it to 0..255 as uint8")
    if array.ndim == 2 or array.shape[2] == 1:
        array = np.broadcast_to(array.reshape(*array.shape[:2], 1), (*array.shape[:2], 3))
    elif array.shape[2] == 4:
        array = array[:, :, :3]
    return np.ascontiguousarray(array)
