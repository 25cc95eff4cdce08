"""Opening a TensorRT engine, and every check that it is the right one.

An engine is compared with its sidecar, with this machine and with the model that it was built
from before TensorRT sees its bytes. TensorRT-RTX is then asked whether it can run it.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError, UsageError
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import Sidecar, dotted, here, read_sidecar
from sigcam.core.verify import engine_bytes
from sigcam.kernels.calls import DeviceInfo
from sigcam.runtime.backends.tensorrt.package import (
    DISTRIBUTIONS,
    TensorRTPackage,
    choose,
    unsupported,
)
from sigcam.runtime.backends.tensorrt.runtime_cache import RuntimeCache, cache_file

_LOG = logging.getLogger(__name__)

_PROFILE = 0  # the number of the only optimization profile that engines of ours have

_BY_DEFAULT = (8, 0)
"""The compute capability from which on TensorRT-RTX builds an engine if none is named.

Of those that it supports at all: 9.0 and 10.x aren't among them. NVIDIA, "CPU-Only AOT and
TensorRT-RTX Engines".
"""

_ADVICE = {
    "OLD_CUDA_DRIVER": "update NVIDIA's driver",
    "OLD_CUDA_RUNTIME": "update CUDA's runtime library",
    "INSUFFICIENT_GPU_MEMORY": "free memory of the GPU, or build it with a smaller --max-batch",
    "CUDA_ERROR": "look at what nvidia-smi says of the GPU",
}
"""What helps where the engine isn't to blame, by TensorRT-RTX's names of the reasons."""


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine.

    Attributes:
        name: name of the artifact's tensor.
        dtype: type of its values in the engine's memory.
        shape: its sizes, with None for a dynamic one.
        is_input: whether it is an input rather than an output.
        low, high: smallest and largest shape of an input; empty for an output.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    is_input: bool
    low: tuple[int, ...] = ()
    high: tuple[int, ...] = ()


class Engine:
    """A deserialised engine and what its sidecar says; it serves any number of contexts.

    Attributes:
        sidecar: what the engine is.
        package: the TensorRT that runs it.
        tensors: inputs and outputs, in the engine's order.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        package: TensorRTPackage,
        log: Any,
        runtime: Any,
        native: Any,
        cache: RuntimeCache | None = None,
    ) -> None:
        self.sidecar, self.package = sidecar, package
        self._log, self._runtime, self._native, self._cache = log, runtime, native, cache
        # No generator: its closure would outlive the clearing of frames in `open`.
        self.tensors = tuple(map(self._tensor, range(native.num_io_tensors)))
        self._lock = threading.Lock()
        self._no_capture: str | None = None

    @classmethod
    def open(cls, path: Path, gpu: DeviceInfo, cache: Path | None = None) -> Engine:
        """Checks an engine against its sidecar and this machine, and loads it.

        Args:
            path: the .engine file.
            gpu: the GPU whose context is current.
            cache: folder for the kernels that TensorRT-RTX compiles; None for the user's.

        Raises:
            UsageError: a cache for an engine of the package tensorrt, which compiles nothing.
            ArtifactError: a file is missing or isn't the one that was written; or the engine
                was built for another TensorRT, platform or GPU; or from another model.
            BackendUnavailableError: its TensorRT package isn't installed.
            BackendError: TensorRT can't load it.
        """
        sidecar = read_sidecar(path)
        package = choose(sidecar.package)
        check_fit(path, sidecar, package, gpu)
        if cache is not None and not package.is_rtx:
            raise UsageError(
                f"a cache has no effect on {path}, whose kernels were compiled by tensorrt when it "
                "was built; leave it out"
            )
        check_source(path, sidecar)
        data = engine_bytes(path, sidecar)
        log = package.logger()
        log.take_errors()  # those of earlier work aren't about this engine
        runtime = native = engine = None
        try:
            with log.warnings():
                runtime = package.module.Runtime(log)
                # Such an engine holds code for the processor, which TensorRT runs only if it may;
                # the file is the one that its sidecar was written for.
                if sidecar.version_compatible:
                    runtime.engine_host_code_allowed = True
                _check_header(path, package, runtime, data, sidecar, log)
                native = runtime.deserialize_cuda_engine(data)
            if native is None:
                raise BackendError(
                    f"{package.name} {package.version} can't load {path}: {log.take_errors()}; "
                    f"build it again here with `{sidecar.command(path)}`"
                )
            kept = RuntimeCache(cache_file(sidecar, gpu, cache)) if package.is_rtx else None
            engine = cls(sidecar, package, log, runtime, native, kept)
            engine._check_shapes(path)
            return engine
        except BaseException as exc:
            # The traceback's frames would keep them until the context that they belong to is gone.
            engine = native = runtime = None
            traceback.clear_frames(exc.__traceback__)
            raise

    @property
    def no_capture(self) -> str | None:
        """Returns why runs can't be captured into CUDA graphs; None as long as they can."""
        return self._no_capture

    def refuse_capture(self, reason: str) -> None:
        """Remembers, and logs once, why runs of this engine can't be captured."""
        with self._lock:
            if self._no_capture is None:
                self._no_capture = reason
                _LOG.warning("the engine runs without CUDA graphs: %s", reason)

    @property
    def memory(self) -> int:
        """Returns the bytes of device memory that a context needs for intermediate values."""
        return int(self._native.device_memory_size_v2)

    def context(self, memory: int, *, settled: bool) -> Any:
        """Makes an execution context, for one thread at a time.

        Args:
            memory: address of `self.memory` bytes on the device for its intermediate values.
                Contexts whose work is on one stream, one after the other, may share it.
            settled: whether its shapes stay as they are. TensorRT-RTX then compiles the
                kernels for them at once. Otherwise it begins with general ones and replaces
                them later, which a captured graph would never see.

        Raises:
            BackendError: TensorRT can't make one, for lack of memory for example.
        """
        by_us = self.package.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if self.package.is_rtx:
            config = self._native.create_runtime_config()
            config.set_execution_context_allocation_strategy(by_us)
            if settled:
                strategies = self.package.module.DynamicShapesKernelSpecializationStrategy
                config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
            if self._cache is not None:
                with self._lock:
                    self._cache.use(config)
            made = self._native.create_execution_context(config)
        else:
            made = self._native.create_execution_context(by_us)
        if made is None:
            raise BackendError(f"TensorRT can't make an execution context: {self.take_errors()}")
        made.set_device_memory(memory, self.memory)
        return made

    def close(self) -> None:
        """Keeps what was compiled, and frees the engine; all contexts must be closed before."""
        if self._cache is not None:
            self._cache.save()
            self._cache = None
        self._native = self._runtime = None

    def take_errors(self) -> str:
        """Returns TensorRT's errors in this thread as one line, and forgets them."""
        return str(self._log.take_errors())

    def check_sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Refuses shapes of inputs outside of the range that the engine was built for.

        Raises:
            UsageError: a shape outside; says the range, and how to get a larger one.
        """
        for tensor in self.tensors:
            if not tensor.is_input:
                continue
            shape = shapes[tensor.name]
            for axis, (low, size, high) in enumerate(
                zip(tensor.low, shape, tensor.high, strict=True)
            ):
                if not low <= size <= high:
                    raise UsageError(_outside(tensor.name, axis, low, size, high))

    def _tensor(self, index: int) -> Tensor:
        """Describes the engine's input or output of this number."""
        native, modes = self._native, self.package.module.TensorIOMode
        name = native.get_tensor_name(index)
        kind = self.package.type_of(native.get_tensor_dtype(name))
        if kind is None:
            raise ArtifactError(
                f"the engine's {name} is {native.get_tensor_dtype(name)}, which NumPy lacks; "
                "export the model again"
            )
        shape = tuple(int(size) for size in native.get_tensor_shape(name))
        dynamic = tuple(None if size < 0 else size for size in shape)
        if native.get_tensor_mode(name) != modes.INPUT:
            return Tensor(name, np.dtype(kind), dynamic, False)
        low, _, high = (
            tuple(int(size) for size in one)
            for one in native.get_tensor_profile_shape(name, _PROFILE)
        )
        return Tensor(name, np.dtype(kind), dynamic, True, low, high)

    def _check_shapes(self, path: Path) -> None:
        """Refuses an engine that takes other shapes than its sidecar says."""
        found = {t.name: (t.low, t.high) for t in self.tensors if t.is_input}
        wanted = {name: (three[0], three[2]) for name, three in self.sidecar.shapes.items()}
        if found != wanted:
            raise ArtifactError(
                f"{path} takes {found}, its sidecar says {wanted}; build it again with "
                f"`{self.sidecar.command(path)}`"
            )


def check_fit(engine: Path, sidecar: Sidecar, package: TensorRTPackage, gpu: DeviceInfo) -> None:
    """Refuses an engine that can't run with this TensorRT on this GPU.

    An engine runs with the very version of TensorRT that built it, if it wasn't built to be
    compatible with later ones. One of the package tensorrt is for one model of GPU, if it wasn't
    built for more: its kernels were chosen for that model's multiprocessors, caches and memory,
    and TensorRT itself says that elsewhere an engine is likely to be slower or even to fail,
    though it would load it.

    Args:
        engine: the engine's file, for messages.
        sidecar: what is known of it.
        package: the TensorRT package at hand.
        gpu: the GPU that the engine is to run on.

    Raises:
        ArtifactError: the package, its version, the platform or the GPU isn't what the engine
            was built for.

    Example:
        sidecar = read_sidecar(engine)
        check_fit(engine, sidecar, choose(sidecar.package), calls.device(0))
    """
    command = sidecar.command(engine)
    if gpu.ordinal and not package.is_rtx:
        command += f" --device {gpu.ordinal}"
    again = f"build it again here with `{command}`"
    if not _runs(package, sidecar):
        raise ArtifactError(
            f"{engine} was built by {sidecar.package} {sidecar.version}, and runs with no other "
            f"version; installed is {package.name} {package.version}; install "
            f"{DISTRIBUTIONS[sidecar.package]}=={sidecar.version} or {again}"
        )
    if not package.is_rtx and sidecar.platform != here():
        raise ArtifactError(f"{engine} was built on {sidecar.platform}, this is {here()}; {again}")
    mine = dotted(gpu.capability)
    if package.is_rtx and mine not in package.capabilities:
        raise ArtifactError(
            f"{engine} can't run on {gpu.name}: {unsupported(package, (mine,))}; there, run "
            f"`sigcam build-engine {sidecar.source} --package tensorrt`"
        )
    if sidecar.capabilities and sidecar.hardware != "ampere":
        fits, wanted = mine in sidecar.capabilities, ", ".join(sidecar.capabilities)
    else:
        fits, wanted = gpu.capability >= _BY_DEFAULT, "8.0 and later"
    if not fits:
        named = f" --capability {mine}" if package.is_rtx else ""
        raise ArtifactError(
            f"{engine} was built for compute capability {wanted}, this GPU has {mine}; run "
            f"`{command}{named}`" + ("" if named else " here")
        )
    if sidecar.hardware == "gpu" and sidecar.gpu is not None and sidecar.gpu != gpu.name:
        raise ArtifactError(
            f"{engine} was built on {sidecar.gpu}, this GPU is {gpu.name}, and an engine of "
            f"TensorRT is for one model of GPU, if it isn't built with --hardware; {again}"
        )


def _runs(package: TensorRTPackage, sidecar: Sidecar) -> bool:
    """Returns whether this version of a package runs an engine of another one."""
    if package.name != sidecar.package:
        return False
    if not sidecar.version_compatible:
        return package.version == sidecar.version
    mine, theirs = (
        [int(part) for part in text.split(".") if part.isdecimal()]
        for text in (package.version, sidecar.version)
    )
    return mine[:1] == theirs[:1] and mine >= theirs


def check_source(engine: Path, sidecar: Sidecar) -> None:
    """Refuses an engine whose model beside it was exported anew since; there need be none.

    Raises:
        ArtifactError: the .onnx file beside it is another one, or can't be read.

    Example:
        check_source(Path("model.engine"), read_sidecar("model.engine"))
    """
    model = engine.with_name(sidecar.source)
    if model.is_file() and ModelFile(model).contents_sha256() != sidecar.source_sha256:
        raise ArtifactError(
            f"{engine} was built from another {model.name} than the one beside it now; run "
            f"`{sidecar.command(engine)}`, or move the engine elsewhere"
        )


def _check_header(
    path: Path, package: TensorRTPackage, runtime: Any, data: bytes, sidecar: Sidecar, log: Any
) -> None:
    """Asks TensorRT-RTX whether an engine can run here; TensorRT can't be asked."""
    if not package.is_rtx:
        return
    module = package.module
    validity, reasons = runtime.get_engine_validity(data[: runtime.engine_header_size])
    if validity == module.EngineValidity.SUBOPTIMAL:
        _LOG.warning(
            "%s says that %s may be slower here than where it was meant for", package.name, path
        )
    if validity != module.EngineValidity.INVALID:
        return
    members = module.EngineInvalidityDiagnostics.__members__
    named = [name for name, value in members.items() if int(reasons) & int(value)]
    again = f"build it again here with `{sidecar.command(path)}`"
    advice = dict.fromkeys(_ADVICE.get(name, again) for name in named) or [again]
    elsewhere = bool(named) and _ADVICE.keys() >= set(named)
    raise (BackendError if elsewhere else ArtifactError)(
        f"{package.name} {package.version} says that {path} can't run here "
        f"({', '.join(named) or log.take_errors()}); {'; '.join(advice)}"
    )


def _outside(name: str, axis: int, low: int, size: int, high: int) -> str:
    """Returns the message about a size of an input that the engine wasn't built for."""
    if name == "class_ids" and axis == 1:
        return (
            f"this engine makes CAMs of {low} to {high} classes for each image, got {size}; ask "
            "for as many, or build it again with another --classes"
        )
    if axis == 0:
        advice = (
            f"pass batch_size={high} at most when loading it, or build it again with --max-batch "
            f"{size}"
            if size > high
            else f"build it again with --min-batch {size}"
        )
        return f"this engine takes {low} to {high} images in one run, got {size}; {advice}"
    return f"{name} must have {low} to {high} along axis {axis}, got {size}"
