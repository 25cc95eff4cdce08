"""The little of the CUDA driver that sigcam needs, in whatever context is current.

Only `retain_primary_context` makes a context, the one that torch, CuPy and the CUDA runtime
share. What owns a handle closes it once: by `close`, or when it is collected, in the context
that it was made in. Streams are given as `Stream` or as the handle's number; 0 is the legacy
default stream.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy.typing as npt

from sigcam.kernels.calls import (
    DeviceInfo,
    available,
    bindings,
    call,
    check,
    current_device,
    device,
    devices,
    driver_version,
    handle_of,
)
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.graph import Graph, is_capturing
from sigcam.kernels.memory import DeviceBuffer, Owned, PinnedBuffer, StreamBuffer
from sigcam.kernels.pool import MemoryPool, allocate

__all__ = [
    "Context", "CudaUnavailableError", "DeviceBuffer", "DeviceInfo", "Event", "Graph",
    "KernelError", "MemoryPool", "Module", "PinnedBuffer", "Stream", "StreamBuffer", "allocate",
    "available", "check", "check_stream", "copy_on_device", "copy_to_device", "copy_to_host",
    "current_device", "device", "devices", "driver_version",
    "handle_of", "is_capturing", "launch", "memset", "pointer_device", "retain_primary_context",
    "synchronize", "wait_for",
]  # fmt: skip


_DEFAULT_STREAMS = 2
"""The largest number of a default stream: 0 and 1 the legacy one, 2 that of each thread."""


class Context:
    """A device's primary context: `with` makes it current in this thread, as often as needed.

    `close` gives it back; nothing made in it may be used afterwards.
    """

    def __init__(self, ordinal: int) -> None:
        self.device = device(ordinal)
        self._ordinal = call("cuDeviceGet", ordinal)
        self._handle = call("cuDevicePrimaryCtxRetain", self._ordinal)
        self._closed = False

    def __enter__(self) -> Context:  # noqa: PYI034 (Self needs Python 3.11)
        call("cuCtxPushCurrent", self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        call("cuCtxPopCurrent")

    def close(self) -> None:
        """Releases the primary context; a second call does nothing."""
        if not self._closed:
            self._closed = True
            call("cuDevicePrimaryCtxRelease", self._ordinal)


def retain_primary_context(ordinal: int = 0) -> Context:
    """Retains the primary context of a device, until it is closed.

    Raises:
        CudaUnavailableError: CUDA can't be used here, or there is no such device.

    Example:
        context = retain_primary_context(0)
        with context:
            stream, buffer = Stream(), DeviceBuffer(4096)
    """
    return Context(ordinal)


@contextmanager
def within(context: Any) -> Iterator[None]:
    """Makes a context, as `cuCtxGetCurrent` gives it, current in this thread for a while.

    Example:
        with within(buffer.context):
            buffer.close()
    """
    call("cuCtxPushCurrent", context)
    try:
        yield
    finally:
        call("cuCtxPopCurrent")


class Stream(Owned):
    """A new stream, which doesn't wait for the legacy default stream.

    Attributes:
        handle: the stream's number.
    """

    def __init__(self) -> None:
        flags = int(bindings().CUstream_flags.CU_STREAM_NON_BLOCKING)
        self.handle = int(call("cuStreamCreate", flags))
        super().__init__("cuStreamDestroy", self.handle)

    def __cuda_stream__(self) -> tuple[int, int]:
        """Returns (version, handle), as NVIDIA's protocol for streams wants it."""
        return 0, self.handle

    def synchronize(self) -> None:
        """Waits until all work on the stream is done."""
        synchronize(self)


class Event(Owned):
    """A point in a stream's work.

    Args:
        timing: whether `milliseconds_since` works; events without are cheaper.
    """

    def __init__(self, *, timing: bool = False) -> None:
        flags = bindings().CUevent_flags
        kind = flags.CU_EVENT_DEFAULT if timing else flags.CU_EVENT_DISABLE_TIMING
        self.handle = int(call("cuEventCreate", int(kind)))
        super().__init__("cuEventDestroy", self.handle)

    def record(self, stream: Stream | int) -> None:
        """Sets the point after all work that is on the stream now."""
        call("cuEventRecord", self.handle, handle_of(stream))

    def hold_back(self, stream: Stream | int) -> None:
        """Lets later work on `stream` begin only after the point."""
        call("cuStreamWaitEvent", handle_of(stream), self.handle, 0)

    def synchronize(self) -> None:
        """Waits for the point."""
        call("cuEventSynchronize", self.handle)

    def milliseconds_since(self, earlier: Event) -> float:
        """Returns the time since an earlier point; both were reached, and made with `timing`."""
        return float(call("cuEventElapsedTime", earlier.handle, self.handle))


class Module(Owned):
    """Compiled kernels, loaded into the current context.

    Args:
        image: a cubin, a fat binary, or PTX that ends in a zero byte.
    """

    def __init__(self, image: bytes) -> None:
        self.handle = int(call("cuModuleLoadData", image))
        super().__init__("cuModuleUnload", self.handle)

    def function(self, name: str) -> int:
        """Returns the handle of a kernel by its name."""
        return int(call("cuModuleGetFunction", self.handle, name.encode()))


def copy_to_device(
    address: int, source: npt.NDArray[Any] | int, size: int, stream: Stream | int
) -> None:
    """Enqueues a copy from the host, whose memory must stay until it is done.

    From memory that isn't page-locked the driver may copy before this returns.

    Args:
        address: where the copy goes, on the device.
        source: a C-contiguous array, or an address in host memory.
        size: bytes to copy.
        stream: the stream whose work the copy follows.

    Example:
        values = np.arange(4, dtype=np.float32)
        buffer = DeviceBuffer(values.nbytes)
        copy_to_device(buffer.address, values, values.nbytes, stream)
    """
    call("cuMemcpyHtoDAsync", address, _host_address(source, size), size, handle_of(stream))


def copy_to_host(
    target: npt.NDArray[Any] | int, address: int, size: int, stream: Stream | int
) -> None:
    """Enqueues a copy to the host, which is there once the stream has been synchronised.

    Args:
        target: a C-contiguous array, or an address in host memory.
        address: what to copy, on the device.
        size: bytes to copy.
        stream: the stream whose work the copy follows.

    Example:
        values = np.empty(4, np.float32)
        copy_to_host(values, buffer.address, values.nbytes, stream)
        synchronize(stream)  # only now are they there
    """
    call("cuMemcpyDtoHAsync", _host_address(target, size), address, size, handle_of(stream))


def copy_on_device(target: int, source: int, size: int, stream: Stream | int) -> None:
    """Enqueues a copy between places that the device sees: its memory, and page-locked memory.

    Args:
        target: address to copy to.
        source: address to copy from.
        size: bytes to copy.
        stream: the stream whose work the copy follows.

    Example:
        copy_on_device(mine.address, theirs.address, theirs.size, stream)
    """
    call("cuMemcpyAsync", target, source, size, handle_of(stream))


def memset(address: int, value: int, size: int, stream: Stream | int) -> None:
    """Enqueues the setting of `size` bytes to `value`, 0 to 255.

    Example:
        memset(buffer.address, 0, buffer.size, stream)
    """
    call("cuMemsetD8Async", address, value, size, handle_of(stream))


def launch(
    function: int,
    grid: tuple[int, int, int],
    block: int,
    shared: int,
    stream: Stream | int,
    argument: ctypes.Structure,
) -> None:
    """Enqueues a kernel of one argument, which is copied before this returns.

    Args:
        function: the kernel's handle, as `Module.function` returns it.
        grid: blocks along x, y, z.
        block: threads of a block.
        shared: bytes of dynamic shared memory of a block.
        stream: the stream whose work the kernel follows.
        argument: the structure that the kernel takes.

    Example:
        kernel = plan.combine
        function = Module(cubin).function(kernel.kernel)
        launch(function, kernel.grid, kernel.block, kernel.shared, stream, argument)
    """
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(argument))
    call(
        "cuLaunchKernel", function, *grid, block, 1, 1, shared, handle_of(stream),
        ctypes.addressof(pointers), 0,
    )  # fmt: skip


def wait_for(stream: Stream | int, other: Stream | int) -> None:
    """Lets later work on `stream` begin after the work that is on `other` now.

    Example:
        copy_to_device(buffer.address, values, values.nbytes, copying)
        wait_for(computing, copying)  # kernels that follow on `computing` see the copy
    """
    event = Event()
    event.record(other)
    event.hold_back(stream)
    event.close()  # the driver keeps it until it is reached


def check_stream(stream: Stream | int) -> None:
    """Refuses a stream that was made in another context than the one that is current.

    Default streams belong to whatever context is current.

    Raises:
        KernelError: it was; says what to do.

    Example:
        with retain_primary_context(0):
            check_stream(Stream())
    """
    handle = handle_of(stream)
    if handle <= _DEFAULT_STREAMS:
        return
    theirs, ours = call("cuStreamGetCtx", handle), call("cuCtxGetCurrent")
    if int(theirs) != int(ours):
        raise KernelError(
            f"the stream {handle:#x} was made in another CUDA context than the one that is current "
            "in this thread, on another GPU maybe; make the stream's context current (torch: `with "
            "torch.cuda.device(n)`; CuPy: `with cupy.cuda.Device(n)`; PyCUDA: `context.push()`) "
            "and load the kernels there, or pass a stream of this context"
        )


def synchronize(stream: Stream | int) -> None:
    """Waits until all work on a stream is done."""
    call("cuStreamSynchronize", handle_of(stream))


def pointer_device(address: int) -> int:
    """Returns the number of the device that an address belongs to.

    Raises:
        KernelError: it isn't an address that CUDA knows.

    Example:
        pointer_device(buffer.address)  # 0
    """
    kind = bindings().CUpointer_attribute.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
    return int(call("cuPointerGetAttribute", kind, address))


def _host_address(memory: npt.NDArray[Any] | int, size: int) -> int:
    if isinstance(memory, int):
        return memory
    if not memory.flags.c_contiguous or memory.nbytes < size:
        raise ValueError(
            f"the array must be C-contiguous and hold {size} bytes, got {memory.nbytes} bytes, "
            f"{'contiguous' if memory.flags.c_contiguous else 'with gaps'}"
        )
    return int(memory.ctypes.data)
