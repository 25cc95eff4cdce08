"""DLPack capsules, read and written: the C structures of DLPack 1.0 and of those before it.

A capsule named "dltensor" holds a `DLManagedTensor`, one named "dltensor_versioned" a
`DLManagedTensorVersioned`. Whoever takes the tensor over renames the capsule ("used_...")
and calls the deleter once; a capsule that nobody took calls it itself when it is collected.
Capsules that are given away are made by NumPy.
https://dmlc.github.io/dlpack/latest/c_api.html and .../python_spec.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

CPU, CUDA = 1, 2
"""The device types of DLPack that are known here."""

VERSION = (1, 0)
_READ_ONLY = 1
# NumPy's kinds, by DLPack's type codes.
_KINDS = {0: "i", 1: "u", 2: "f", 6: "b"}


class _Device(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int32), ("id", ctypes.c_int32))


class _Type(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _Type),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", _Deleter))


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", _Deleter),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_LEGACY, _VERSIONED = b"dltensor", b"dltensor_versioned"
_STRUCTURES: dict[bytes, type[_Managed | _Versioned]] = {
    _LEGACY: _Managed,
    _VERSIONED: _Versioned,
}
_USED = {name: b"used_" + name for name in _STRUCTURES}


def _python(name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
    # A function of its own, so that the argument types aren't changed for others.
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_is_valid = _python("PyCapsule_IsValid", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
_pointer = _python("PyCapsule_GetPointer", ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
_rename = _python("PyCapsule_SetName", ctypes.c_int, ctypes.py_object, ctypes.c_char_p)


@dataclass(frozen=True)
class Taken:
    """A tensor that was taken over from a capsule.

    Attributes:
        address: where its first element lies.
        shape: sizes of the array, which is C-contiguous.
        dtype: type of its elements.
        device: type and number of the device in DLPack's terms.
        read_only: whether it must not be written.
        release: gives the tensor back; it must be called once.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: tuple[int, int]
    read_only: bool
    release: Callable[[], None]


def take(capsule: object) -> Taken:
    """Takes the tensor of a capsule over.

    Raises:
        TypeError: it isn't a DLPack capsule, or was taken before.
        ValueError: a version, type or layout that isn't supported; the capsule keeps the
            tensor.

    Example:
        >>> found = take(np.zeros((2, 3), np.int32).__dlpack__())
        >>> found.shape, found.dtype, found.device
        ((2, 3), dtype('int32'), (1, 0))
        >>> found.release()
    """
    name = next((name for name in _STRUCTURES if _is_valid(capsule, name)), None)
    if name is None:
        raise TypeError(
            f"a DLPack capsule that nobody has taken yet is wanted, got {capsule!r}; call "
            "__dlpack__ again for another one"
        )
    address = _pointer(capsule, name)
    managed = _STRUCTURES[name].from_address(address)
    read_only = False
    if isinstance(managed, _Versioned):
        if managed.major != VERSION[0]:
            raise ValueError(
                f"DLPack {VERSION[0]}.x is supported, got a capsule of "
                f"{managed.major}.{managed.minor}"
            )
        read_only = bool(managed.flags & _READ_ONLY)
    tensor = managed.tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    dtype = _dtype(tensor.dtype)
    strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None
    check_contiguous(shape, strides)
    _rename(capsule, _USED[name])

    def release() -> None:
        if managed.deleter:
            managed.deleter(address)

    return Taken(
        address=(tensor.data or 0) + tensor.byte_offset,
        shape=shape,
        dtype=dtype,
        device=(tensor.device.type, tensor.device.id),
        read_only=read_only,
        release=release,
    )


def give(
    address: int,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    device: tuple[int, int],
    owner: object,
    *,
    versioned: bool,
) -> object:
    """Returns a capsule of a C-contiguous array.

    Args:
        address: where its first element lies.
        shape: sizes of the array.
        dtype: type of its elements.
        device: type and number of the device in DLPack's terms.
        owner: what is kept until the taker calls the deleter, or the capsule is collected
            untaken.
        versioned: whether the capsule is one of DLPack 1.0, or one as before it.

    Example:
        >>> owner = np.arange(3, dtype=np.float32)
        >>> capsule = give(
        ...     owner.ctypes.data, (3,), owner.dtype, (CPU, 0), owner, versioned=True
        ... )
        >>> found = take(capsule)
        >>> found.shape, found.dtype, found.device
        ((3,), dtype('float32'), (1, 0))
        >>> found.release()
    """
    # NumPy makes the capsule and owns it, in C: a destructor in Python would be called while
    # the exception of a taker that refuses the capsule is set, and lose it. NumPy looks at
    # the address no more than we do; only the device has to be put right.
    array = np.asarray(_Lent(address, shape, dtype, owner))
    try:
        capsule = array.__dlpack__(max_version=VERSION) if versioned else array.__dlpack__()
    except TypeError:  # NumPy 2.0 has no versioned capsules; the taker asked for one at most
        capsule, versioned = array.__dlpack__(), False
    name = _VERSIONED if versioned else _LEGACY
    _STRUCTURES[name].from_address(_pointer(capsule, name)).tensor.device = _Device(*device)
    return capsule


class _Lent:
    """Memory in the form that `numpy.asarray` takes without a copy."""

    def __init__(
        self, address: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object
    ) -> None:
        self._owner = owner
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": dtype.str,
            "version": 3,
        }


def check_contiguous(shape: tuple[int, ...], strides: tuple[float, ...] | None) -> None:
    """Refuses an array with gaps or in another order.

    Args:
        shape: sizes of the array.
        strides: steps along each axis, in elements; None for a C-contiguous array.

    Raises:
        ValueError: the array isn't C-contiguous.

    Example:
        >>> check_contiguous((2, 3), (3, 1))
    """
    if strides is None or 0 in shape:
        return
    wanted = _strides(shape)
    if any(
        size > 1 and step != want for size, step, want in zip(shape, strides, wanted, strict=True)
    ):
        raise ValueError(
            f"the array must be C-contiguous: shape {list(shape)} with strides {list(wanted)} "
            f"elements, got {list(strides)}; make a contiguous copy"
        )


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.append(steps[-1] * size)
    return tuple(reversed(steps))[: len(shape)] if shape else ()


def _dtype(kind: _Type) -> np.dtype[Any]:
    if kind.lanes != 1 or kind.bits % 8 or kind.code not in _KINDS:
        raise ValueError(
            "the elements must be integers, floats or booleans of whole bytes, got DLPack type "
            f"code {kind.code}, {kind.bits} bits, {kind.lanes} lanes"
        )
    return np.dtype(f"{_KINDS[kind.code]}{kind.bits // 8}")
