"""The backend "tensorrt": engines made by `sigcam build-engine`, heatmaps made on the GPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from sigcam.core.artifact import is_engine
from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.model_file import ModelFile
from sigcam.core.types import Array
from sigcam.kernels import driver
from sigcam.runtime.backends.base import (
    Backend,
    BackendOptions,
    DeviceHeatmaps,
    HeatmapOptions,
    HeatmapRequest,
    TensorInfo,
)
from sigcam.runtime.backends.cuda.heatmaps import kernel_errors
from sigcam.runtime.backends.cuda.ranges import named
from sigcam.runtime.backends.cuda.source import DeviceTensor
from sigcam.runtime.backends.tensorrt.engine import Engine, Tensor
from sigcam.runtime.backends.tensorrt.executor import Call
from sigcam.runtime.backends.tensorrt.pool import Pool, Worker

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine


class TensorRtBackend(Backend):
    """An engine on one GPU, for several callers at once.

    Calls of the same kind are captured into a CUDA graph: copies to the device, the engine and
    the copies back are then launched as one.
    """

    name = "tensorrt"
    explains_on_device = True
    understands = frozenset({"device", "cache"})

    def __init__(
        self, engine: Engine, context: driver.Context, kernel: ClampCombine | None
    ) -> None:
        self._engine = engine
        self._context = context
        self._kernel = kernel
        self.makes_heatmaps = kernel is not None
        device = context.device
        self._pool = Pool(
            lambda: Worker(self._engine, self._kernel, shared=device.integrated)
        )  # fmt: skip
        self._for_device = kernel
        self._lock = threading.Lock()
        self._closed = False
        self.inputs = tuple(_info(t) for t in engine.tensors if t.is_input)
        self.outputs = tuple(_info(t) for t in engine.tensors if not t.is_input)

    @classmethod
    def _open(cls, model: ModelFile, options: BackendOptions) -> TensorRtBackend:
        """Loads an engine onto a GPU.

        Raises:
            UsageError: a cache for an engine of the package tensorrt.
            BackendUnavailableError: TensorRT, the driver or the GPU is missing.
            ArtifactError: the file is no engine, or one that was built for something else;
                says how to build it.
            BackendError: TensorRT can't load it.
        """
        path = model.path
        if path is None:
            raise UsageError(
                "the backend 'tensorrt' runs engines, which come with a sidecar beside them; pass "
                "the path of the .engine file"
            )
        if not is_engine(path):
            raise ArtifactError(
                f"the backend 'tensorrt' runs engines, and {model.name} is none; build one with "
                f"`sigcam build-engine {model.name}` and load the file that it names"
            )
        try:
            with kernel_errors():
                driver.available()
                context = driver.retain_primary_context(options.device)
        except BackendUnavailableError as exc:
            raise BackendUnavailableError(
                f"the backend 'tensorrt' can't run here: {exc}; the backend 'ort' runs the "
                ".onnx file on the CPU"
            ) from exc
        try:
            with kernel_errors(), context:
                engine = Engine.open(path, context.device, options.cache)
                try:
                    return cls(engine, context, _kernel(engine, options.heatmaps))
                except BaseException:
                    engine.close()  # while there still is a context
                    raise
        except BaseException:
            with kernel_errors():
                context.close()
            raise

    @property
    def description(self) -> str:
        """Says what runs, where, and whether repeated calls are launched as CUDA graphs."""
        package, sidecar = self._engine.package, self._engine.sidecar
        refusal = self._engine.no_capture
        graphs = "with CUDA graphs" if refusal is None else f"without CUDA graphs ({refusal})"
        device = self._context.device
        return f"{package.name} {package.version}, {sidecar.precision}, on {device.name}, {graphs}"

    @contextmanager
    def device_context(self) -> Iterator[None]:
        """Makes the GPU's context current inside the block."""
        if self._closed:
            raise BackendError("the backend is closed; load the model again")
        with kernel_errors(), self._context:
            yield

    def device_kernels(self) -> ClampCombine:
        """Returns the kernels, loaded at the first time."""
        with self._lock:
            if self._for_device is None:
                self._for_device = _load_kernel()
            return self._for_device

    @contextmanager
    def device_run(
        self, image: DeviceTensor, class_ids: Array | None, names: Sequence[str], stream: int
    ) -> Iterator[dict[str, DeviceTensor]]:
        """Runs the engine behind what is on `stream`; see `DeviceRunner`."""
        sizes = {"image": image.shape}
        if class_ids is not None:
            sizes["class_ids"] = class_ids.shape
        self._engine.check_sizes(sizes)
        with (
            self._pool.worker() as worker,
            named("tensorrt"),
            worker.on_device(
                image, class_ids, names, stream, self.device_kernels().pool
            ) as outputs,
        ):
            yield outputs

    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        return self._run(Call(feeds, tuple(wanted), None))[0]

    def _infer_heatmaps(
        self, feeds: Mapping[str, Array], wanted: Sequence[str], request: HeatmapRequest
    ) -> tuple[dict[str, Array], DeviceHeatmaps]:
        outputs, heatmaps = self._run(Call(feeds, tuple(wanted), request))
        if heatmaps is None:
            raise BackendError(
                "this engine was loaded without the kernels that make heatmaps: it has nothing "
                'that they take, or was loaded with heatmaps="lazy"'
            )
        return outputs, heatmaps

    def _run(self, call: Call) -> tuple[dict[str, Array], DeviceHeatmaps | None]:
        if self._closed:
            raise BackendError("the backend is closed; load the model again")
        self._engine.check_sizes(dict(call.shapes))
        with kernel_errors(), self._context, self._pool.worker() as worker, named("tensorrt"):
            return worker.run(call)

    def close(self) -> None:
        """Frees everything on the GPU, once the calls still running are done."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        with kernel_errors(), self._context:
            self._pool.close()
            self._pool.wait()
            self._engine.close()
            self._kernel = self._for_device = None  # unloaded while there still is a context
        with kernel_errors():
            self._context.close()


def _info(tensor: Tensor) -> TensorInfo:
    # float16 stays inside: callers get the types that the artifact promises.
    kind = np.dtype(np.float32) if tensor.dtype == np.float16 else tensor.dtype
    return TensorInfo(tensor.name, kind, tensor.shape)


def _kernel(engine: Engine, options: HeatmapOptions) -> ClampCombine | None:
    """Loads the heatmap kernels where the engine has what they take; None otherwise.

    CAMs of float16, which plans of trtexec may have, they don't take: their heatmaps are made on
    the CPU.
    """
    kinds = {tensor.name: tensor.dtype for tensor in engine.tensors if not tensor.is_input}
    made_of = options.made_of(kinds)
    if not made_of or (made_of == ("cams",) and kinds["cams"] != np.float32):
        return None
    return _load_kernel()


def _load_kernel() -> ClampCombine:
    from sigcam.kernels.clamp_combine import ClampCombine

    return ClampCombine()
