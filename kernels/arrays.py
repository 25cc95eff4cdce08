"""Arrays on the device: those of other libraries taken in, our own handed out.

`taken` accepts arrays of torch, CuPy and PyCUDA, by `__dlpack__` where they have it (its
producer does the waiting between streams) and by `__cuda_array_interface__` otherwise.
`DeviceArray` speaks both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.kernels import dlpack, driver
from sigcam.kernels.dlpack import CUDA, check_contiguous

LEGACY, PER_THREAD = 1, 2
"""Numbers of the default streams in both protocols, where 0 is not allowed."""


@dataclass(frozen=True)
class View:
    """A C-contiguous array on the device that belongs to someone else.

    Attributes:
        address: of its first element.
        shape, dtype: as NumPy's.
        read_only: whether it must not be written.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read_only: bool


@contextmanager
def taken(
    array: Any, name: str, stream: int, ordinal: int, device_type: int = CUDA
) -> Iterator[View]:
    """Gives access to an array of another library, on `stream` and inside the block.

    Work on the stream begins after what its owner has enqueued to make it. After the block
    the owner may use the memory again, in the order that its own stream gives; whoever works
    on several streams keeps the array until `stream` is through with it.

    Args:
        array: has `__dlpack__` or `__cuda_array_interface__`.
        name: what messages call it.
        stream: the handle of the stream on which it will be used.
        ordinal: the device on which it must lie.
        device_type: DLPack's number of the kind of device that it must lie on.

    Raises:
        TypeError: it speaks neither protocol.
        ValueError: it lies elsewhere, or isn't C-contiguous.

    Example:
        >>> from sigcam.kernels.dlpack import CPU
        >>> array = np.zeros((2, 3), np.float32)
        >>> with taken(array, "features", stream=0, ordinal=0, device_type=CPU) as view:
        ...     view.shape, view.dtype, view.address == array.ctypes.data
        ((2, 3), dtype('float32'), True)
    """
    if hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__"):
        _check_device(name, tuple(map(int, array.__dlpack_device__())), (device_type, ordinal))
        capsule = _capsule(array, stream if device_type == CUDA else None)
        try:
            found = dlpack.take(capsule)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from exc
        try:
            yield View(found.address, found.shape, found.dtype, found.read_only)
        finally:
            found.release()
    elif hasattr(array, "__cuda_array_interface__"):
        yield _from_interface(array.__cuda_array_interface__, name, stream, ordinal)
    else:
        raise TypeError(
            f"{name} must be an array on the GPU with __dlpack__ or __cuda_array_interface__ "
            f"(torch, CuPy, PyCUDA's GPUArray), got {type(array).__name__}"
        )


def stream_handle(stream: Any) -> int:
    """Returns the number of a stream of any library; None is the legacy default stream, 0.

    It knows numbers, NVIDIA's protocol `__cuda_stream__`, and the attributes of torch
    (`cuda_stream`), PyCUDA (`handle`) and CuPy (`ptr`).

    Raises:
        TypeError: the stream is none of these.

    Example:
        >>> stream_handle(None), stream_handle(7)
        (0, 7)
    """
    if stream is None:
        return 0
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "handle", "ptr"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    if isinstance(stream, int):
        return stream
    raise TypeError(
        "stream must be a number, a stream with __cuda_stream__, or one of torch, PyCUDA or "
        f"CuPy, got {type(stream).__name__}"
    )


class DeviceArray:
    """An array that sigcam made on the device: C-contiguous, and it owns its memory.

    Arrays that were made together may lie in one piece of memory, which the last one gives back.

    It speaks `__dlpack__` and `__cuda_array_interface__`, so torch.from_dlpack,
    cupy.from_dlpack and the like share its memory without a copy. They make their stream wait
    for the one that it was made on. Its memory goes back in the order of that stream: before
    the last reference is dropped, work on another stream must be done, or that stream be
    waited for.

    Attributes:
        address: of its first element.
        shape, dtype: as NumPy's.
        stream: the handle of the stream that it was made on.
        device: the number of its device.
    """

    def __init__(
        self,
        buffer: driver.DeviceBuffer | driver.StreamBuffer,
        shape: tuple[int, ...],
        dtype: npt.DTypeLike,
        stream: int,
        device: int,
        offset: int = 0,
    ) -> None:
        self._buffer = buffer
        self.shape, self.dtype = shape, np.dtype(dtype)
        self.address, self.stream, self.device = buffer.address + offset, stream, device

    def part(self, start: int, shape: tuple[int, ...]) -> DeviceArray:
        """Returns elements of this array, from number `start` on, as an array that shares them."""
        offset = self.address - self._buffer.address + start * self.dtype.itemsize
        return DeviceArray(self._buffer, shape, self.dtype, self.stream, self.device, offset)

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """Returns version 3 of the protocol, by which the taker waits for `stream`."""
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "stream": self.stream or LEGACY,
            "version": 3,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        """Returns a capsule, after making the taker's `stream` wait for this array's.

        Raises:
            BufferError: a copy, or another device, is asked for.
            ValueError: stream 0, which the protocol doesn't allow.
        """
        own = self.__dlpack_device__()
        if copy or (dl_device is not None and tuple(map(int, dl_device)) != own):
            raise BufferError("the array can only be shared where it lies, not copied")
        if stream == 0:
            raise ValueError("stream 0 is ambiguous in DLPack: 1 is the default stream's number")
        taker = LEGACY if stream is None else stream
        if taker != -1 and taker != (self.stream or LEGACY):
            # A taker needn't have made this array's context current.
            with driver.within(self._buffer.context):
                driver.wait_for(taker, self.stream)
        versioned = max_version is not None and max_version[0] >= dlpack.VERSION[0]
        return dlpack.give(
            self.address, self.shape, self.dtype, own, self._buffer, versioned=versioned
        )

    def to_host(self) -> npt.NDArray[Any]:
        """Returns a copy in host memory; waits for `stream`."""
        host = np.empty(self.shape, self.dtype)
        with driver.within(self._buffer.context):
            driver.copy_to_host(host, self.address, self.nbytes, self.stream)
            driver.synchronize(self.stream)
        return host


def _capsule(array: Any, stream: int | None) -> object:
    number = None if stream is None else stream or LEGACY
    try:
        return array.__dlpack__(stream=number, max_version=dlpack.VERSION)
    except TypeError:  # made before DLPack 1.0, without that argument
        return array.__dlpack__(stream=number)


def _check_device(name: str, found: tuple[int, ...], wanted: tuple[int, int]) -> None:
    if found[0] != wanted[0]:
        raise ValueError(
            f"{name} must lie in the GPU's memory (DLPack device type {wanted[0]}), got type "
            f"{found[0]}; move it to the GPU first"
        )
    if found != wanted:
        raise ValueError(
            f"{name} must lie on GPU {wanted[1]}, whose context is current, got GPU {found[1]}"
        )


def _from_interface(about: dict[str, Any], name: str, stream: int, ordinal: int) -> View:
    shape, dtype = tuple(about["shape"]), np.dtype(about["typestr"])
    address, read_only = about["data"]
    if about.get("mask") is not None:
        raise ValueError(f"{name} must not have a mask")
    if dtype.byteorder == ">":
        raise ValueError(f"{name} must be little-endian, got {dtype.str}")
    strides = about.get("strides")
    if strides is not None:
        steps = tuple(step / dtype.itemsize for step in strides)
        try:
            check_contiguous(shape, steps)
        except ValueError as exc:
            raise ValueError(f"{name}: {exc}") from exc
    if address:
        _check_device(name, (CUDA, driver.pointer_device(address)), (CUDA, ordinal))
    theirs = about.get("stream")
    if theirs == 0:
        raise ValueError(f"{name} names the stream 0, which __cuda_array_interface__ forbids")
    if theirs is not None and theirs != (stream or LEGACY):
        driver.wait_for(stream, theirs)
    return View(address, shape, dtype, bool(read_only))
