"""A pool of device memory of our own, from which memory is taken in the order of a stream.

The device's default pool gives all of its free memory back to the driver whenever a stream or an
event is waited for (its release threshold is 0), so that each allocation after a wait is as slow
as the first. A pool of our own keeps some, and changes nothing for others in the process who use
the default one.
"""

from __future__ import annotations

from sigcam.kernels.calls import HasHandle, bindings, call
from sigcam.kernels.memory import DeviceBuffer, Owned, StreamBuffer

KEPT = 1 << 28
"""Bytes that a pool keeps: the heatmaps of 5 classes at 12 megapixels, or 13 at 4K, in float32."""


class MemoryPool(Owned):
    """A pool of one device's memory; buffers keep the pool that they come from.

    Args:
        ordinal: number of the GPU.
        kept: bytes that stay with the pool when they are free; what is beyond goes back to the
            driver at the next wait. 0 keeps nothing.

    Attributes:
        handle: number of the pool's handle.
        kept: as given.

    Raises:
        ValueError: a negative number of bytes.
        KernelError: the GPU has no such pools, or a CUDA call failed.

    Example:
        pool = MemoryPool(0)
        buffer = StreamBuffer(4096, stream, pool)
    """

    def __init__(self, ordinal: int, kept: int = KEPT) -> None:
        if kept < 0:
            raise ValueError(f"kept must be at least 0 bytes, got {kept}")
        cuda = bindings()
        wish = cuda.CUmemPoolProps()
        wish.allocType = cuda.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
        wish.handleTypes = cuda.CUmemAllocationHandleType.CU_MEM_HANDLE_TYPE_NONE
        wish.location.type = cuda.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
        wish.location.id = ordinal
        self.kept = kept
        self.handle = int(call("cuMemPoolCreate", wish))
        super().__init__("cuMemPoolDestroy", self.handle)
        threshold = cuda.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
        call("cuMemPoolSetAttribute", self.handle, threshold, cuda.cuuint64_t(kept))


def allocate(
    size: int, stream: HasHandle | int, pool: MemoryPool | None, keep: object = None
) -> StreamBuffer | DeviceBuffer:
    """Takes device memory in the order of a stream, where the GPU can.

    Args:
        size: bytes; at least one is taken.
        stream: the stream whose later work uses the memory.
        pool: where it comes from; None on GPUs without pools, whose freeing waits for the device.
        keep: the object that owns the stream, where `stream` is only its number.

    Raises:
        KernelError: a CUDA call failed, memory that is used up included.

    Example:
        pool = MemoryPool(0) if device(0).pools else None
        buffer = allocate(4096, stream, pool)
    """
    size = max(1, size)
    return DeviceBuffer(size) if pool is None else StreamBuffer(size, stream, pool, keep)
