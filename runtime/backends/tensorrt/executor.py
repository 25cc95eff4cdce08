"""Running an engine for one caller: an execution context with its memory, or a CUDA graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sigcam.core.errors import BackendError
from sigcam.core.types import Array
from sigcam.kernels import driver
from sigcam.kernels.errors import KernelError
from sigcam.runtime.backends.base import DeviceHeatmaps, HeatmapRequest
from sigcam.runtime.backends.cuda.heatmaps import HeatmapMaker, Pending
from sigcam.runtime.backends.cuda.ranges import named
from sigcam.runtime.backends.cuda.source import DeviceTensor, source_of
from sigcam.runtime.backends.tensorrt.engine import Engine, Tensor

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Shapes of inputs by their names."""

Results = tuple[dict[str, Array], DeviceHeatmaps | None]


@dataclass(frozen=True, eq=False)
class Call:
    """One call of an engine.

    Attributes:
        feeds: every input by name, C-contiguous, within the engine's sizes.
        wanted: names of the outputs to copy to the host.
        request: the heatmaps to make; None for none.
    """

    feeds: Mapping[str, Array]
    wanted: tuple[str, ...]
    request: HeatmapRequest | None

    @cached_property
    def shapes(self) -> Shapes:
        """Returns the inputs' shapes by name."""
        return tuple((name, array.shape) for name, array in self.feeds.items())

    @property
    def key(self) -> tuple[Any, ...]:
        """Returns what is equal for calls whose engine and copies are the very same work.

        Where the images lie isn't in it: heatmaps are made beside the graph.
        """
        return self.shapes, self.wanted


class _Room:
    """Memory of one tensor: on the device, and page-locked on the host where it is copied.

    Args:
        shared: whether CPU and GPU share their memory. Page-locked memory then serves both.
    """

    def __init__(self, *, shared: bool) -> None:
        self.shared = shared
        self.device: driver.DeviceBuffer | None = None
        self.host: driver.PinnedBuffer | None = None

    def on_device(self, size: int) -> int:
        """Returns the address of at least `size` bytes on the device."""
        if self.shared:
            return self.on_host(size).address
        if self.device is None or self.device.size < size:
            if self.device is not None:
                self.device.close()
                self.device = None
            self.device = driver.DeviceBuffer(size)
        return self.device.address

    def on_host(self, size: int) -> driver.PinnedBuffer:
        """Returns at least `size` bytes of page-locked memory."""
        if self.host is None or self.host.size < size:
            if self.host is not None:
                self.host.close()
                self.host = None
            self.host = driver.PinnedBuffer(size)
        return self.host

    def close(self) -> None:
        with ExitStack() as stack:
            for buffer in (self.device, self.host):
                if buffer is not None:
                    stack.callback(buffer.close)


class Executor:
    """An execution context and its memory; one caller at a time.

    Memory is kept and grows. An executor that captures a graph serves that graph's calls alone:
    its addresses are in the graph, and TensorRT keeps state for the shapes in the context,
    so NVIDIA's advice is one context for each captured graph.

    Args:
        engine: the engine to run.
        stream: the stream that all work is enqueued on.
        heatmaps: makes heatmaps on that stream; None where the engine has nothing for it.
        memory: address of the memory for the engine's intermediate values; see `Engine.context`.
        shared: whether CPU and GPU share their memory, so that nothing is copied.
        settled: whether all calls will have the same shapes; see `Engine.context`.
    """

    def __init__(
        self,
        engine: Engine,
        stream: driver.Stream,
        heatmaps: HeatmapMaker | None,
        memory: int,
        *,
        shared: bool = False,
        settled: bool = False,
    ) -> None:
        self._engine, self._stream = engine, stream
        self._context = engine.context(memory, settled=settled)
        self._heatmaps = heatmaps
        self._shared = shared
        self._rooms = {tensor.name: _Room(shared=shared) for tensor in engine.tensors}
        self._tensors = {tensor.name: tensor for tensor in engine.tensors}
        self._sizes: dict[str, tuple[int, ...]] = {}
        self._bound: Shapes | None = None
        self._graph: driver.Graph | None = None
        self._unsettled = False

    def enqueue(
        self, feeds: Mapping[str, DeviceTensor], names: Sequence[str]
    ) -> dict[str, DeviceTensor]:
        """Enqueues the engine, or its graph, on inputs that lie on the device; waits for nothing.

        Unless the shapes are others than those of the last call: that is waited for.

        Args:
            feeds: every input by name.
            names: of the outputs.

        Returns:
            The outputs, in memory that the next call writes to.

        Raises:
            BackendError: TensorRT refuses the shapes or fails.
            KernelError: a CUDA call failed.
        """
        shapes = tuple((name, one.shape) for name, one in feeds.items())
        if self._bound != shapes:
            self.settle()
        self._bind(shapes)
        self._unsettled = True
        for name, one in feeds.items():
            tensor = self._tensors[name]
            if tensor.dtype != one.dtype:
                raise BackendError(
                    f"the engine takes {name} as {tensor.dtype}, and {one.dtype} was made on the "
                    "device; build it again with `sigcam build-engine`"
                )
            size = self._bytes(tensor)
            target = self._rooms[name].on_device(size)
            driver.copy_on_device(target, one.address, size, self._stream)
        if self._graph is not None:
            self._graph.launch(self._stream)
        else:
            self._run_engine()
        return {name: self._on_device(name) for name in names}

    def settle(self) -> None:
        """Waits for what `enqueue` left under way."""
        if self._unsettled:
            self._stream.synchronize()
            self._unsettled = False

    def run(self, call: Call) -> Results:
        """Enqueues the call's work, waits for it, and copies the results out.

        Raises:
            BackendError: TensorRT refuses the shapes or fails.
            KernelError: a CUDA call failed.
        """
        with named("inputs"):
            self.settle()
            self._bind(call.shapes)
            self._fill(call)
            self._enqueue_copies_in(call)
        with named("network"):
            self._run_engine()
            self._enqueue_copies_out(call)
        return self._finished(call)

    def capture(self, call: Call | None) -> str | None:
        """Captures the copies and the engine of a call that `run` has just done into a CUDA graph.

        The heatmap kernels stay outside: their work depends on where each image lies, and a graph
        of theirs would fit no other folder of photos. A run comes first because TensorRT brings
        its state up to date with new shapes in the first one, which a graph can't hold.

        Args:
            call: the call; None captures the engine alone, after `enqueue`. What is still under
                way on the stream then is no part of the graph, nor is what the stream waits for.

        Returns:
            None, or why TensorRT or CUDA can't capture it; the executor must then be closed.
        """
        if self._engine.package.is_rtx and not self._context.is_stream_capturable(
            self._stream.handle
        ):
            return "TensorRT-RTX says that its work can't be captured for these shapes"
        refused = False
        try:
            with driver.Graph.capture(self._stream) as graph:
                if call is not None:
                    self._enqueue_copies_in(call)
                refused = not self._execute()
                if refused:
                    raise KernelError("the engine was not captured")
                if call is not None:
                    self._enqueue_copies_out(call)
        except (BackendError, KernelError) as exc:
            if refused:
                return f"TensorRT can't be captured: {self._engine.take_errors()}"
            return f"CUDA can't capture it: {exc}"
        self._graph = graph
        return None

    def replay(self, call: Call) -> Results:
        """Runs a call of the same key as the captured one, by launching the graph.

        Raises:
            BackendError: nothing was captured.
            KernelError: a CUDA call failed.
        """
        if self._graph is None:
            raise BackendError("this executor holds no CUDA graph")
        with named("inputs"):
            self._fill(call)
        with named("network (graph)"):
            self._graph.launch(self._stream)
        return self._finished(call)

    def close(self) -> None:
        """Frees everything, once the work on the stream that uses it is done."""
        with ExitStack() as stack:  # all of it, even if one fails; in the reverse order
            for room in self._rooms.values():
                stack.callback(room.close)
            stack.callback(self._drop_context)
            if self._graph is not None:
                stack.callback(self._graph.close)
                self._graph = None
            with suppress(KernelError):  # after a failed call, which is the error to tell
                self._stream.synchronize()

    def _drop_context(self) -> None:
        self._context = None  # TensorRT frees it with its last reference

    def _bind(self, shapes: Shapes) -> None:
        """Sets shapes and addresses of all tensors, if they aren't those of the last call."""
        if self._bound == shapes:
            return
        self._bound = None
        for name, shape in shapes:
            self._accepted(self._context.set_input_shape(name, shape), f"the shape of {name}")
            self._sizes[name] = shape
        try:
            missing = self._context.infer_shapes()
        except RuntimeError as exc:
            raise BackendError(f"TensorRT can't infer the outputs' shapes: {exc}") from exc
        if missing:
            raise BackendError(
                f"TensorRT can't work out the outputs' shapes, because these inputs are not fully "
                f"known: {', '.join(missing)}; export the model and build the engine again"
            )
        for name, tensor in self._tensors.items():
            if not tensor.is_input:
                self._sizes[name] = self._output_shape(name)
            address = self._rooms[name].on_device(self._bytes(tensor))
            self._accepted(
                self._context.set_tensor_address(name, address), f"the address of {name}"
            )
        self._bound = shapes

    def _output_shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an output for the inputs' shapes."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise BackendError(
                f"TensorRT can't tell the size of {name} before it runs, only {list(shape)}: it "
                "depends on the image's content, and no memory can be set aside for it; export "
                "the model again with `sigcam export`"
            )
        return shape

    def _accepted(self, accepted: bool, what: str) -> None:
        """Raises TensorRT's reason where it didn't accept what it was given."""
        if not accepted:
            raise BackendError(f"TensorRT refuses {what}: {self._engine.take_errors()}")

    def _bytes(self, tensor: Tensor) -> int:
        """Returns the bytes of a tensor at its present shape, at least 1."""
        count = int(np.prod(self._sizes[tensor.name], dtype=np.int64))
        return max(1, count * tensor.dtype.itemsize)

    def _host_view(self, name: str) -> Array:
        """Returns a tensor's page-locked memory as an array, which the next call overwrites."""
        tensor = self._tensors[name]
        host = self._rooms[name].on_host(self._bytes(tensor))
        return host.view(tensor.dtype, self._sizes[name])

    def _fill(self, call: Call) -> None:
        """Copies the feeds to page-locked memory."""
        for name, array in call.feeds.items():
            np.copyto(self._host_view(name), array)

    def _enqueue_copies_in(self, call: Call) -> None:
        for name in () if self._shared else call.feeds:
            size = self._bytes(self._tensors[name])
            room = self._rooms[name]
            driver.copy_to_device(
                room.on_device(size), room.on_host(size).address, size, self._stream
            )

    def _execute(self) -> bool:
        """Enqueues the engine; returns whether TensorRT did."""
        return bool(self._context.execute_async_v3(self._stream.handle))

    def _run_engine(self) -> None:
        if not self._execute():
            reason = self._engine.take_errors()
            raise BackendError(f"TensorRT failed while running the engine: {reason}")

    def _finished(self, call: Call) -> Results:
        """Enqueues the heatmaps behind the engine, waits for all, and copies the results out."""
        with named("heatmaps"):
            pending = self._enqueue_heatmaps(call)
        with named("wait"):
            self._stream.synchronize()
        with named("results"):
            return self._collected(call, pending)

    def _enqueue_heatmaps(self, call: Call) -> Pending | None:
        """Enqueues the heatmaps, where they are asked for."""
        request = call.request
        if request is None or self._heatmaps is None:
            return None
        made_of = {name: self._on_device(name) for name in request.made_of}
        source = source_of(made_of, len(request.placements))
        return self._heatmaps.enqueue(source, request, self._stream.handle)

    def _enqueue_copies_out(self, call: Call) -> None:
        for name in () if self._shared else call.wanted:
            size = self._bytes(self._tensors[name])
            room = self._rooms[name]
            driver.copy_to_host(
                room.on_host(size).address, room.on_device(size), size, self._stream
            )

    def _on_device(self, name: str) -> DeviceTensor:
        """Returns where an output lies, until the next call."""
        tensor = self._tensors[name]
        address = self._rooms[name].on_device(self._bytes(tensor))
        return DeviceTensor(address, tensor.dtype, self._sizes[name])

    def _collected(self, call: Call, pending: Pending | None) -> Results:
        """Copies the results out of memory that the next call overwrites; floats as float32."""
        outputs = {}
        for name in call.wanted:
            view = self._host_view(name)
            kind = np.dtype(np.float32) if view.dtype == np.float16 else view.dtype
            outputs[name] = view.astype(kind, copy=True)
        return outputs, None if pending is None else pending.collect()
