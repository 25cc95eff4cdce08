"""The protocol's datatypes and their bytes: little-endian, row by row, without padding."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sigcam.core.types import Array
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import Elements

__all__ = [
    "DATATYPES",
    "MOST_AXES",
    "bytes_of",
    "datatype_of",
    "elements_of",
    "join_bytes",
    "shaped",
    "size_of",
    "split_bytes",
]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
"""The datatypes of numbers; BYTES is the one beside them."""

MOST_AXES = 32
"""NumPy's most."""

_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_LENGTH = struct.Struct("<I")


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Returns the protocol's name of a type.

    Example:
        >>> datatype_of(np.dtype(np.float32))
        'FP32'
    """
    return _NAMES[dtype.newbyteorder("<")]


def split_bytes(data: memoryview, count: int, name: str) -> list[bytes]:
    r"""Takes the elements of a BYTES tensor apart: each is its length in 4 bytes, then itself.

    Args:
        data: of the tensor.
        count: of its elements, by its shape.
        name: the tensor's, for messages.

    Raises:
        RequestError: the lengths don't fit the data, or there are more or fewer elements.

    Example:
        >>> split_bytes(memoryview(b"\x02\0\0\0ab\0\0\0\0"), 2, "image")
        [b'ab', b'']
    """
    found: list[bytes] = []
    place = 0
    while place < len(data) and len(found) < count:
        if place + 4 > len(data):
            raise RequestError(
                f"incomplete string length indicator for inference input '{name}', expecting 4 "
                f"bytes but only {len(data) - place} bytes available"
            )
        (length,) = _LENGTH.unpack_from(data, place)
        place += 4
        if length > len(data) - place:
            raise RequestError(
                f"incomplete string data for inference input '{name}', expecting string of "
                f"length {length} but only {len(data) - place} bytes available"
            )
        found.append(bytes(data[place : place + length]))
        place += length
    if len(found) != count or place != len(data):
        more = "" if place == len(data) else f" and {len(data) - place} bytes more"
        raise RequestError(
            f"unexpected number of string elements {len(found)}{more} for inference input "
            f"'{name}', expecting {count}"
        )
    return found


def join_bytes(elements: Iterable[bytes]) -> bytes:
    r"""Puts the elements of a BYTES tensor together; undoes `split_bytes`.

    Example:
        >>> join_bytes([b"ab", b""])
        b'\x02\x00\x00\x00ab\x00\x00\x00\x00'
    """
    return b"".join(part for one in elements for part in (_LENGTH.pack(len(one)), one))


def size_of(datatype: str, shape: Sequence[int]) -> int | None:
    """Returns the bytes of a tensor; None for BYTES, whose shape doesn't say.

    Example:
        >>> size_of("FP32", (2, 3)), size_of("BYTES", (1,))
        (24, None)
    """
    if datatype == "BYTES":
        return None
    return DATATYPES[datatype].itemsize * math.prod(shape)


def elements_of(data: memoryview, name: str, datatype: str, shape: tuple[int, ...]) -> Elements:
    r"""Reads the bytes of a tensor; undoes `bytes_of` and `join_bytes`.

    Args:
        data: all of the tensor, and nothing else.
        name: the tensor's, for messages.
        datatype: a key of `DATATYPES`, or "BYTES".
        shape: sizes, none negative.

    Returns:
        An array that is a view of `data`, or the elements of BYTES.

    Raises:
        RequestError: more or fewer bytes than the shape wants.

    Example:
        >>> elements_of(memoryview(b"\x01\0\0\x01"), "image", "UINT16", (2,)).tolist()
        [1, 256]
    """
    wanted = size_of(datatype, shape)
    if wanted is None:
        return split_bytes(data, math.prod(shape), name)
    if wanted != len(data):
        raise RequestError(
            f"unexpected total byte size {len(data)} for input '{name}', expecting {wanted}"
        )
    return shaped(np.frombuffer(data, DATATYPES[datatype]), shape, name)


def shaped(array: Array, shape: tuple[int, ...], name: str) -> Array:
    """Gives a tensor of numbers its shape.

    Args:
        array: as many numbers as the shape says.
        shape: sizes.
        name: the tensor's, for messages.

    Raises:
        RequestError: an axis of 0 beside axes that are longer than NumPy allows.

    Example:
        >>> shaped(np.arange(4), (2, 2), "image").tolist()
        [[0, 1], [2, 3]]
    """
    try:
        return array.reshape(shape)
    except ValueError as exc:
        raise RequestError(f"shape {list(shape)} of input '{name}' is too large") from exc


def bytes_of(array: Array) -> bytes:
    r"""Returns the bytes of numbers as the protocol wants them.

    Example:
        >>> bytes_of(np.array([1, 256], ">u2"))
        b'\x01\x00\x00\x01'
    """
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
