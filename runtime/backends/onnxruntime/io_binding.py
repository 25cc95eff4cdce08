"""ONNX Runtime on a device: I/O binding, and heatmaps made where the outputs are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sigcam.core.errors import BackendError
from sigcam.core.types import Array
from sigcam.kernels.errors import KernelError
from sigcam.runtime.backends.base import DeviceHeatmaps, HeatmapRequest
from sigcam.runtime.backends.cuda.ranges import named
from sigcam.runtime.backends.cuda.source import DeviceTensor, Source, source_of
from sigcam.runtime.backends.onnxruntime.common import OrtBase, dtype_of, run_error

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine

_MOST_HELD = 8
"""Runs on the device that may be under way before one more waits for them."""


class Collectable(Protocol):
    """Heatmaps that are being made."""

    def collect(self) -> DeviceHeatmaps:
        """Returns the heatmaps, once the stream has been synchronised."""
        ...


class DeviceStream(Protocol):
    """What is done around ONNX Runtime's own work, on the stream that it runs on.

    On a GPU this is `CudaStream`.

    Attributes:
        device, ordinal: ONNX Runtime's name of the kind of device, and the device's number.
        handle: number of the stream's handle.
    """

    device: str
    ordinal: int
    handle: int

    def current(self) -> AbstractContextManager[None]:
        """Lets this thread use the device inside the block."""
        ...

    def stage(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """Enqueues the copies of the inputs to the device; returns their addresses there."""
        ...

    def fetch(self, outputs: Mapping[str, DeviceTensor]) -> dict[str, Array]:
        """Enqueues the copies of outputs; returns views that a synchronisation fills."""
        ...

    def enqueue_heatmaps(self, source: Source, request: HeatmapRequest) -> Collectable:
        """Enqueues the making of heatmaps."""
        ...

    def kernels(self) -> ClampCombine:
        """Returns the kernels, which are loaded now if they weren't."""
        ...

    def follow(self, stream: int) -> None:
        """Lets later work here begin after what is on a stream of the caller's now."""
        ...

    def lead(self, stream: int, outputs: Mapping[str, DeviceTensor]) -> dict[str, DeviceTensor]:
        """Lets later work on the caller's stream begin after what is here, and read the outputs."""
        ...

    def synchronize(self) -> None:
        """Waits for everything that was enqueued, ONNX Runtime's work included."""
        ...

    def close(self) -> None:
        """Frees what the stream holds."""
        ...


class BoundBackend(OrtBase):
    """A session whose inputs and outputs are bound to a device.

    The session runs on a stream that it was given. Copies of the inputs, the network, the
    heatmaps and the copies back follow each other on it without waiting in between: ONNX Runtime
    is told not to synchronise after its run (`disable_synchronize_execution_providers`,
    microsoft/onnxruntime pull request 14088), and the one wait is for the stream at the end.
    All outputs stay on the device, and go to page-locked memory of our own from there: ONNX
    Runtime would copy them to memory that isn't page-locked, for which the host has to wait.
    ONNX Runtime has one stream for a session, so calls from several threads take turns.
    """

    makes_heatmaps = True
    explains_on_device = True

    def __init__(self, session: Any, stream: DeviceStream, run_options: Any) -> None:
        """Takes over a session and its stream.

        Args:
            session: session of ONNX Runtime that runs on `stream`.
            stream: the stream, with what is done on it around the session's work.
            run_options: an empty `onnxruntime.RunOptions`.
        """
        super().__init__(session)
        self._stream = stream
        self._lock = threading.Lock()
        self._held: list[object] = []
        """What runs that nobody waited for still use."""
        self._run_options = run_options
        run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    @property
    def stream(self) -> int:
        """Returns the handle of the stream that all work is on."""
        return self._stream.handle

    def close(self) -> None:
        """Frees the backend's memory, after the call that is running in it."""
        with self._lock:
            if self._session is not None:
                if self._held:
                    with suppress(BackendError, KernelError), self._stream.current():
                        self._settle()
                super().close()  # the session uses the stream until it is gone
                self._stream.close()

    def device_context(self) -> AbstractContextManager[None]:
        """Makes the GPU's context current inside the block."""
        self._opened()
        return self._stream.current()

    def device_kernels(self) -> ClampCombine:
        """Returns the kernels, loaded at the first time."""
        with self._lock:
            self._opened()
            return self._stream.kernels()

    @contextmanager
    def device_run(
        self, image: DeviceTensor, class_ids: Array | None, names: Sequence[str], stream: int
    ) -> Iterator[dict[str, DeviceTensor]]:
        """Runs the session behind what is on `stream`; see `DeviceRunner`."""
        shapes = {"image": image.shape}
        if class_ids is not None:
            shapes["class_ids"] = class_ids.shape
        self._check_sizes(shapes)
        with self._running(settled=len(self._held) >= _MOST_HELD):
            self._stream.follow(stream)
            host = {} if class_ids is None else {"class_ids": class_ids}
            with named("network"):
                values = self._run_bound(host, {"image": image}, names)
            self._held.append((host, values))
            outputs = {name: _output(value, name) for name, value in values.items()}
            yield self._stream.lead(stream, outputs)
            self._stream.follow(stream)

    def _check_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuses inputs of sizes that the session isn't for; there are none here.

        Raises:
            UsageError: it isn't for them; says what to do.
        """

    def _settle(self) -> None:
        """Waits for runs that nobody waited for."""
        if self._held:
            self._stream.synchronize()
            self._held.clear()

    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        with self._running():
            values = self._run(feeds, wanted)
            return self._fetched(values, wanted)

    def _infer_heatmaps(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], request: HeatmapRequest
    ) -> tuple[dict[str, Array], DeviceHeatmaps]:
        with self._running():
            values = self._run(feeds, list(dict.fromkeys((*wanted, *request.made_of))))
            made_of = {name: _output(values[name], name) for name in request.made_of}
            source = source_of(made_of, len(request.placements))
            with named("heatmaps"):
                pending = self._stream.enqueue_heatmaps(source, request)
            outputs = self._fetched(values, wanted)
            with named("results"):
                return outputs, pending.collect()

    def _fetched(self, values: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Array]:
        """Copies outputs to the host, waits for everything, and returns arrays of the caller's."""
        views = self._stream.fetch({name: _output(values[name], name) for name in wanted})
        with named("wait"):
            self._stream.synchronize()
        return {name: view.copy() for name, view in views.items()}

    @contextmanager
    def _running(self, *, settled: bool = True) -> Iterator[None]:
        """Keeps other callers out, and lets this thread use the device inside the block.

        Args:
            settled: whether runs that nobody waited for are waited for first.
        """
        with self._lock:
            self._opened()
            with self._stream.current(), named(self.name):
                try:
                    if settled:
                        self._settle()
                    yield
                except BaseException:
                    # Copies that are still under way would write to memory that is freed now.
                    # After an error of CUDA's this fails too, but the first error is raised.
                    with suppress(BackendError, KernelError):
                        self._stream.synchronize()
                    raise

    def _run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Any]:
        """Enqueues a run; returns its outputs, which are on the device when the stream is there."""
        stream = self._stream
        # Whole numbers are bound where they are, on the CPU: ONNX Runtime may give what reads
        # them to the CPU too, and would copy them back without waiting for our stream.
        staged = {name: array for name, array in feeds.items() if array.dtype != np.int64}
        with named("inputs"):
            addresses = stream.stage(staged)
        device = {
            name: DeviceTensor(addresses[name], array.dtype, array.shape)
            for name, array in staged.items()
        }
        host = {name: feeds[name] for name in feeds.keys() - staged.keys()}
        with named("network"):
            return self._run_bound(host, device, names)

    def _run_bound(
        self, host: Mapping[str, Array], device: Mapping[str, DeviceTensor], names: Sequence[str]
    ) -> dict[str, Any]:
        """Enqueues a run on inputs that lie on the host and on the device."""
        session, stream = self._opened(), self._stream
        place = (stream.device, stream.ordinal)
        try:
            binding = session.io_binding()
            for name, array in host.items():
                binding.bind_cpu_input(name, array)
            for name, one in device.items():
                binding.bind_input(name, *place, one.dtype, one.shape, one.address)
            for name in names:
                binding.bind_output(name, *place)
            session.run_with_iobinding(binding, self._run_options)
            outputs = binding.get_outputs()
        except Exception as exc:  # ONNX Runtime's errors share no narrower base
            raise run_error(exc) from exc
        return dict(zip(names, outputs, strict=True))


def _output(value: Any, name: str) -> DeviceTensor:
    """Returns where an OrtValue lies."""
    dtype = dtype_of(value.data_type(), name)
    return DeviceTensor(value.data_ptr(), dtype, tuple(value.shape()))
