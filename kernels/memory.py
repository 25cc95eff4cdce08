"""Memory of the device and page-locked memory of the host, and what owns a driver's handle."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.kernels.calls import HasHandle, bindings, call, handle_of
from sigcam.kernels.errors import KernelError


class Owned:
    """A handle that is destroyed once, in the context that it was made in.

    Args:
        destroy: name of the driver's function that destroys the handle.
        handle: the function's arguments.
        keep: what must live until the handle is destroyed.
    """

    def __init__(self, destroy: str, *handle: Any, keep: object = None) -> None:
        context = call("cuCtxGetCurrent")
        self.context = context
        self._destroy = (context, destroy, handle)
        self._collected = weakref.finalize(self, _destroy_quietly, *self._destroy, keep)
        # At exit, the context may be gone before this; the driver frees everything then.
        self._collected.atexit = False

    def close(self) -> None:
        """Destroys the handle; a second call does nothing."""
        kept = self._collected.detach()  # what must live until the handle is gone
        if kept is not None:
            _destroy(*self._destroy)
        del kept


def _destroy(context: Any, name: str, handle: tuple[Any, ...]) -> None:
    call("cuCtxPushCurrent", context)
    try:
        call(name, *handle)
    finally:
        call("cuCtxPopCurrent")


def _destroy_quietly(context: Any, name: str, handle: tuple[Any, ...], keep: object) -> None:
    del keep
    # Whoever drops the last reference can't handle an error, and a context that was
    # destroyed before has taken the handle with it.
    with suppress(KernelError):
        _destroy(context, name, handle)


class DeviceBuffer(Owned):
    """Device memory, aligned to at least 256 bytes; its contents are undefined.

    Attributes:
        address: where the memory begins, on the device.
        size: bytes of the memory.
    """

    def __init__(self, size: int) -> None:
        _check_size(size)
        self.size = size
        self.address = int(call("cuMemAlloc", size))
        super().__init__("cuMemFree", self.address)


class StreamBuffer(Owned):
    """Device memory that is allocated and freed in the order of a stream.

    Neither waits for the device. Work on other streams must have been ordered before the
    buffer is closed or collected, and the stream must still be there.

    Args:
        size: bytes of the memory.
        stream: the stream on which it is allocated and freed.
        pool: where the memory comes from and goes back to.
        keep: the object that owns the stream, where `stream` is only its number.
    """

    def __init__(
        self, size: int, stream: HasHandle | int, pool: HasHandle, keep: object = None
    ) -> None:
        _check_size(size)
        handle = handle_of(stream)
        self.size = size
        self.address = int(call("cuMemAllocFromPoolAsync", size, pool.handle, handle))
        super().__init__("cuMemFreeAsync", self.address, handle, keep=(stream, keep, pool))


class PinnedBuffer(Owned):
    """Page-locked host memory, which copies to and from the device don't stage.

    Attributes:
        address: where the memory begins, on the host.
        size: bytes of the memory.
    """

    def __init__(self, size: int) -> None:
        _check_size(size)
        self.size = size
        self.address = int(call("cuMemHostAlloc", size, bindings().CU_MEMHOSTALLOC_PORTABLE))
        super().__init__("cuMemFreeHost", self.address)

    def view(self, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        """Returns the beginning of the buffer as an array, which keeps the buffer alive.

        Raises:
            ValueError: the buffer is smaller than that.
        """
        kind = np.dtype(dtype)
        needed = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        if needed > self.size:
            raise ValueError(f"{needed} bytes don't fit a buffer of {self.size}")
        return np.asarray(_HostView(self, kind, shape))


class _HostView:
    """What NumPy makes a view from; it keeps this, and this keeps the buffer."""

    def __init__(self, buffer: PinnedBuffer, kind: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.buffer = buffer
        self.__array_interface__ = {
            "data": (buffer.address, False),
            "shape": shape,
            "typestr": kind.str,
            "version": 3,
        }


def _check_size(size: int) -> None:
    if size < 1:
        raise ValueError(f"a buffer must have at least 1 byte, got {size}")
