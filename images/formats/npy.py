"""NumPy's own files (.npy) as images: [H, W] or [H, W, channels]; nothing is unpickled."""

from __future__ import annotations

import io
from typing import BinaryIO

import numpy as np

from sigcam.core.errors import ImageError
from sigcam.core.types import Array

MAGIC = b"\x93NUMPY"
"""How such a file begins."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def npy_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """Reads width and height from the header; the data aren't read.

    Args:
        stream: of the file, at its beginning.
        name: what errors call the file.

    Raises:
        ImageError: no header that can be read, or an array that is no image.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.zeros((4, 6, 5), np.uint16))
        >>> _ = file.seek(0)
        >>> npy_size(file, "field.npy")
        (6, 4)
    """
    try:
        shape, _, dtype = _HEADERS[np.lib.format.read_magic(stream)](stream)
    except Exception as exc:  # NumPy parses the header as Python, which raises many kinds
        raise ImageError(
            f"{name} is an NPY whose header can't be read: damaged or truncated; get it again"
        ) from exc
    if dtype.hasobject or dtype.names is not None or len(shape) not in (2, 3) or 0 in shape:
        raise ImageError(
            f"{name} must hold one image of numbers, [H, W] or [H, W, channels], it holds {dtype} "
            f"{list(shape)}; save each image in a file of its own"
        )
    return shape[1], shape[0]


def read_npy(data: bytes, name: str) -> Array:
    """Reads the array.

    Args:
        data: the file's bytes, whose header `npy_size` has seen.
        name: what errors call the file.

    Raises:
        ImageError: truncated.

    Example:
        >>> file = io.BytesIO()
        >>> np.save(file, np.arange(6.0).reshape(2, 3))
        >>> read_npy(file.getvalue(), "field.npy").tolist()
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as exc:
        raise ImageError(f"{name} is an NPY that can't be read ({exc}); get it again") from exc
    return array
