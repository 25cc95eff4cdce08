"""A stream on a GPU, and the memory for what is done around a backend's own work."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from sigcam.core.types import Array
from sigcam.kernels import driver
from sigcam.runtime.backends.base import HeatmapRequest
from sigcam.runtime.backends.cuda.heatmaps import (
    HeatmapMaker,
    Pending,
    kernel_errors,
)
from sigcam.runtime.backends.cuda.source import DeviceTensor, Source

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine


class CudaStream:
    """A stream on which inputs go to the device and heatmaps are made, for one caller at a time.

    It uses the device's primary context, as the CUDA runtime does, which ONNX Runtime is
    built on.

    Attributes:
        device: ONNX Runtime's name of the kind of device.
        ordinal: number of the GPU.
        handle: number of the stream's handle.
    """

    device = "cuda"

    def __init__(self, ordinal: int) -> None:
        """Opens a stream.

        Raises:
            BackendUnavailableError: the driver, its Python package or the GPU is missing.
            BackendError: a CUDA call failed.
        """
        self.ordinal = ordinal
        self._inputs: dict[str, tuple[driver.PinnedBuffer, driver.DeviceBuffer | None]] = {}
        self._outputs: dict[str, driver.PinnedBuffer] = {}
        self._heatmaps: HeatmapMaker | None = None
        self._kernels: ClampCombine | None = None
        with kernel_errors():
            driver.available()
            self._context = driver.retain_primary_context(ordinal)
            try:
                with self._context:
                    self._stream = driver.Stream()
            except BaseException:
                self._context.close()
                raise
        self.handle = self._stream.handle

    def load_kernels(self) -> None:
        """Compiles the heatmap kernels, or takes them from their cache.

        Raises:
            BackendUnavailableError: the compiler's package is missing, or the GPU is too old.
            BackendError: the compilation failed.
        """
        from sigcam.kernels.clamp_combine import ClampCombine

        with self.current():
            kernels = self._kernels = ClampCombine()
            self._heatmaps = HeatmapMaker(kernels, shared=self._context.device.integrated)

    def kernels(self) -> ClampCombine:
        """Returns the kernels, which are loaded now if they weren't.

        Raises:
            BackendUnavailableError, BackendError: as `load_kernels`.
        """
        if self._kernels is None:
            self.load_kernels()
        assert self._kernels is not None  # noqa: S101 (it was loaded)
        return self._kernels

    def follow(self, stream: int) -> None:
        """Lets later work here begin after what is on a stream of the caller's now."""
        driver.wait_for(self._stream, stream)

    def lead(self, stream: int, outputs: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        """Lets later work on a stream of the caller's begin after what is on this one now.

        Returns:
            The outputs, where that work can read them.
        """
        driver.wait_for(stream, self._stream)
        return dict(outputs)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the GPU's context current in this thread, and raises CUDA's errors as ours."""
        with kernel_errors(), self._context:
            yield

    def stage(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Enqueues the copies of arrays to the device, through pinned memory.

        Returns:
            The addresses on the device; the next call writes to them again.
        """
        addresses = {}
        for name, array in feeds.items():
            pinned, device = self._room(name, array.nbytes)
            pinned.view(array.dtype, array.shape)[...] = array
            if device is None:  # the GPU reads it where it is
                addresses[name] = pinned.address
                continue
            driver.copy_to_device(device.address, pinned.address, array.nbytes, self._stream)
            addresses[name] = device.address
        return addresses

    def fetch(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, Array]:
        """Enqueues the copies of outputs to page-locked memory.

        Copies to other memory would wait for the network on the host, and the heatmap kernels
        could be enqueued only after that.

        Args:
            outputs: where each output lies, by name.

        Returns:
            Views of that memory, which are filled once the stream was synchronised; the next call
            writes to it again.
        """
        views = {}
        for name, one in outputs.items():
            size = one.nbytes
            kept = self._outputs.get(name)
            if kept is None or kept.size < size:
                if kept is not None:
                    kept.close()
                    del self._outputs[name]
                grown = size + size // 2 if kept else size
                kept = self._outputs[name] = driver.PinnedBuffer(max(1, grown))
            if size:
                driver.copy_to_host(kept.address, one.address, size, self._stream)
            views[name] = kept.view(one.dtype, one.shape)
        return views

    def enqueue_heatmaps(self, source: Source, request: HeatmapRequest) -> Pending:
        """Enqueues the heatmaps of what the backend left on the device; see `HeatmapMaker`.

        Raises:
            UsageError: the heatmaps are more than the request's limit.
            BackendUnavailableError, BackendError: as `load_kernels`, or a CUDA call failed.
        """
        self.kernels()
        assert self._heatmaps is not None  # noqa: S101 (it comes with the kernels)
        return self._heatmaps.enqueue(source, request, self.handle)

    def synchronize(self) -> None:
        """Waits until everything on the stream is done."""
        self._stream.synchronize()

    def close(self) -> None:
        """Frees stream and memory; what the backend has on the stream must be gone before."""
        # A part that can't be closed doesn't keep the others open; the last in is the first out.
        with kernel_errors(), ExitStack() as last:
            last.callback(self._context.close)
            with self._context, ExitStack() as rest:
                rest.callback(self._stream.close)
                for pair in self._inputs.values():
                    for one in filter(None, pair):
                        rest.callback(one.close)
                for buffer in self._outputs.values():
                    rest.callback(buffer.close)
                self._inputs, self._outputs = {}, {}
                if self._heatmaps is not None:
                    rest.callback(self._heatmaps.close)
                # The kernels are unloaded while there is a context.
                self._heatmaps = self._kernels = None

    def _room(self, name: str, size: int) -> tuple[driver.PinnedBuffer, driver.DeviceBuffer | None]:
        """Returns memory of at least `size` bytes for an input, on the host and on the device.

        On the host alone, where CPU and GPU share their memory.
        """
        kept = self._inputs.get(name)
        if kept is None or kept[0].size < size:
            for buffer in filter(None, self._inputs.pop(name, ())):
                buffer.close()
            grown = max(size + size // 2 if kept else size, np.dtype(np.int64).itemsize)
            shared = self._context.device.integrated
            device = None if shared else driver.DeviceBuffer(grown)
            self._inputs[name] = driver.PinnedBuffer(grown), device
        return self._inputs[name]
