"""Building: from an artifact to a TensorRT engine and its sidecar."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sigcam.convert.tensorrt.float16 import to_half
from sigcam.convert.tensorrt.monitor import make_monitor, run_stoppable
from sigcam.convert.tensorrt.options import DEFAULT_CLASSES, BuildOptions, Range
from sigcam.convert.tensorrt.timing_cache import TimingCache
from sigcam.core.annotations import checked
from sigcam.core.artifact import is_engine
from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.files import check_writable
from sigcam.core.inputs import inputs_kept
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import (
    Sidecar,
    dotted,
    here,
    sidecar_path,
    write_pair,
)
from sigcam.core.versions import versions_of
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.runtime.backends.tensorrt.package import TensorRTPackage, choose

if TYPE_CHECKING:
    from sigcam.kernels.driver import Context

Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
"""The smallest, the usual and the largest shape of each input, by name."""

_TURING = "7.5"


@checked
def build_engine(
    model: str | Path,
    out: str | Path | None = None,
    options: BuildOptions | None = None,
    *,
    progress: bool = False,
) -> Path:
    """Builds the engine of an artifact, and writes it with its sidecar.

    Args:
        model: the .onnx file that `sigcam export` wrote.
        out: the engine's file, whose name ends in .engine; MODEL.engine beside the model, or
            MODEL.rtx.engine of TensorRT-RTX, when None. The sidecar's name is the engine's
            with ".json" after it.
        options: how the engine is built; `BuildOptions()` when None.
        progress: whether a bar is drawn on standard error.

    Returns:
        The engine's path.

    Raises:
        UsageError: options that the model or the package can't follow.
        BackendUnavailableError: TensorRT isn't installed, or the package builds on a GPU
            only and there is none.
        ArtifactError: the model isn't an artifact or not what was written, it changed meanwhile,
            or TensorRT can't parse it.
        BackendError: TensorRT can't build it.
        StorageError: a file can't be written.
        KeyboardInterrupt: Ctrl-C; nothing is written.

    Example:
        options = BuildOptions(batches=Range(1, 4, 16), precision="float16")
        engine = build_engine("model.onnx", options=options)  # model.engine and model.engine.json
    """
    model, options = Path(model), options or BuildOptions()
    if is_engine(model):
        raise UsageError(
            f"{model} is an engine already; pass the .onnx file that an engine shall be built of"
        )
    with inputs_kept(model):
        return _checked(model, None if out is None else Path(out), options, progress)


def artifact_of(model: Path, what: str) -> ModelFile:
    """Returns the file of an artifact, its digests compared.

    Args:
        model: the .onnx file.
        what: what is done with it, for the error: "an engine is built of".

    Raises:
        UsageError: it is a head graph.
        ArtifactError: it isn't an artifact, or damaged.
    """
    file = ModelFile(model)
    if file.spec.kind != "artifact":
        raise UsageError(f"{model} is a head graph; {what} the artifact itself")
    file.verify()
    return file


def engine_of(model: Path, out: Path | None, package: TensorRTPackage) -> Path:
    """Returns where a model's engine goes; its sidecar lies beside it.

    Raises:
        UsageError: the name isn't that of an engine, or one of the two is an input.
        StorageError: one of the two can't be written.
    """
    target = out if out is not None else model.with_suffix(package.suffix)
    if not is_engine(target):
        raise UsageError(f"an engine's name must end in .engine, got {target.name}")
    check_writable(target)
    check_writable(sidecar_path(target))
    return target


def _checked(model: Path, out: Path | None, options: BuildOptions, progress: bool) -> Path:
    """Checks what can be checked before the work, and builds."""
    file = artifact_of(model, "an engine is built of")
    package = choose(options.package)
    target = engine_of(model, out, package)
    if options.timing_cache is not None:
        check_writable(options.timing_cache)
    if package.is_rtx or options.capabilities:
        return _built(package, model, file, target, options, None, progress=progress)
    with _gpu_here(package, options.device) as context:
        return _built(package, model, file, target, options, context, progress=progress)


def _built(
    package: TensorRTPackage,
    model: Path,
    file: ModelFile,
    target: Path,
    options: BuildOptions,
    context: Context | None,
    *,
    progress: bool,
) -> Path:
    """Builds and writes an engine, on the GPU of a context where the package needs one."""
    gpu = None if context is None else context.device
    source_sha256 = file.contents_sha256()
    converters = ("onnx", "onnxruntime") if options.precision == "float16" else ()
    build = Build(package, model, options, context)
    with memoryview(build.run(progress=progress)) as data:
        file.check_unchanged()
        sidecar = Sidecar(
            spec=file.spec,
            sha256=hashlib.sha256(data).hexdigest(),
            size=data.nbytes,
            package=package.name,
            version=package.version,
            platform=here(),
            capabilities=options.capabilities if gpu is None else (dotted(gpu.capability),),
            gpu=None if gpu is None else gpu.name,
            shapes=build.shapes,
            precision=options.precision,
            tf32=options.tf32,
            source=model.name,
            source_sha256=source_sha256,
            hardware=options.hardware,
            version_compatible=options.version_compatible,
            versions=versions_of("sigcam", *converters),
        )
        write_pair(target, data, sidecar)
    if build.timings is not None:
        build.timings.save()
    return target


class Build:
    """One build: the parsed network and how it will be compiled.

    Args:
        package: the TensorRT that builds.
        model: the artifact's file.
        options: how the engine is built.
        context: that of the GPU to build on, which is current in this thread; None where the
            package needs no GPU.

    Attributes:
        shapes: the smallest, the usual and the largest shape of each input, by name.
        timings: the timing cache, if one is wanted.

    Raises:
        UsageError, ArtifactError, BackendError: as `build_engine` does.
    """

    def __init__(
        self,
        package: TensorRTPackage,
        model: Path,
        options: BuildOptions,
        context: Context | None = None,
    ) -> None:
        self._package, self._model, self._options = package, model, options
        self._context = context
        self._log = package.logger()
        self._log.take_errors()  # those of earlier work aren't about this build
        self._builder = package.module.Builder(self._log)
        self._network = self._builder.create_network(package.network_flags)
        self._config = self._builder.create_builder_config()
        package.set_capabilities(self._config, options.capabilities)
        self.timings = (
            None
            if options.timing_cache is None
            else TimingCache(options.timing_cache, package, self._config)
        )
        self._parse()
        self._check_quantisation()
        self.shapes = self._add_profile()
        self._configure()

    def run(self, *, progress: bool) -> Any:
        """Compiles the network, and returns the engine as a buffer of bytes.

        Args:
            progress: whether a bar is drawn on standard error.

        Raises:
            BackendError: TensorRT can't build it.
            KeyboardInterrupt: Ctrl-C.
        """
        self._monitor = monitor = make_monitor(self._package.module, show=progress)
        self._config.progress_monitor = monitor  # the configuration doesn't keep it alive
        try:
            engine = run_stoppable(self._compiled, monitor.stop)
        finally:
            monitor.close()
        if engine is None:
            raise BackendError(
                f"{self._package.name} {self._package.version} can't build {self._model}: "
                f"{self._log.take_errors()}{self._advice()}"
            )
        return engine

    def _compiled(self) -> Any:
        """Compiles the network in this thread, on the GPU to build on."""
        with self._context or nullcontext():  # a context is current in one thread only
            return self._builder.build_serialized_network(self._network, self._config)

    def _parse(self) -> None:
        """Parses the model's file, or its conversion to float16."""
        # Kept: the network's weights lie in the parser's memory until the engine is built.
        self._parser = parser = self._package.module.OnnxParser(self._network, self._log)
        if self._options.precision == "float16":
            turing = self._package.is_rtx and _TURING in self._options.capabilities
            self._converted = to_half(self._model, all_products=turing)
            parsed = parser.parse(self._converted)
        else:
            # By its path, because weights may lie in a file beside it.
            parsed = parser.parse_from_file(str(self._model))
        if not parsed:
            problems = [_described(parser.get_error(i)) for i in range(parser.num_errors)]
            raise ArtifactError(
                f"{self._package.name} {self._package.version} can't parse {self._model}: "
                f"{'; '.join(problems) or self._log.take_errors()}; export it again, or use "
                "another version of TensorRT"
            )

    def _check_quantisation(self) -> None:
        """Refuses a quantised graph for another precision than int8, and the reverse."""
        kinds = (self._package.module.LayerType.QUANTIZE, self._package.module.LayerType.DEQUANTIZE)
        layers = (self._network.get_layer(i) for i in range(self._network.num_layers))
        quantised = any(layer.type in kinds for layer in layers)
        if quantised and self._options.precision != "int8":
            raise UsageError(
                f"{self._model} is a quantised graph, so its engine computes in int8; say that "
                "this is meant with --int8"
            )
        if not quantised and self._options.precision == "int8":
            raise UsageError(
                f"{self._model} holds no QuantizeLinear nodes, from which alone TensorRT takes "
                "int8; quantise the artifact first with `sigcam quantize --activations int8`, or "
                "use --fp16"
            )

    def _add_profile(self) -> Shapes:
        """Tells the builder the inputs' shapes, and returns them."""
        profile = self._builder.create_optimization_profile()
        shapes: Shapes = {}
        named = self._options.classes
        for index in range(self._network.num_inputs):
            tensor = self._network.get_input(index)
            axes = [self._options.batches]
            if tensor.name == "class_ids":
                axes.append(named or DEFAULT_CLASSES)
                named = None
            shapes[tensor.name] = _three_shapes(tensor.name, tuple(tensor.shape), axes)
            profile.set_shape(tensor.name, *shapes[tensor.name])
        if named is not None:
            raise UsageError(
                f"classes belongs to artifacts that take class_ids; {self._model} was exported "
                "without `--classes input`"
            )
        if self._config.add_optimization_profile(profile) < 0:
            raise BackendError(
                f"{self._package.name} {self._package.version} refuses the sizes {shapes}: "
                f"{self._log.take_errors()}"
            )
        return shapes

    def _configure(self) -> None:
        """Sets the builder's flags and limits."""
        flags, config = self._package.module.BuilderFlag, self._config
        self._make_compatible()
        if self._options.tf32:
            config.set_flag(flags.TF32)
        else:
            config.clear_flag(flags.TF32)  # TensorRT sets it by itself
        if self._package.is_rtx:
            # Without it the engine allocates while it runs, which can't be captured into a
            # CUDA graph (release notes of TensorRT-RTX 1.2).
            config.set_flag(flags.REQUIRE_USER_ALLOCATION)
        if self._options.workspace is not None:
            pool = self._package.module.MemoryPoolType.WORKSPACE
            config.set_memory_pool_limit(pool, self._options.workspace)
            kept = config.get_memory_pool_limit(pool)
            if kept != self._options.workspace:
                raise UsageError(
                    f"{self._package.name} doesn't take a workspace of {self._options.workspace} "
                    f"bytes and stays with {kept}: {self._log.take_errors()}"
                )

    def _make_compatible(self) -> None:
        """Lets the engine run elsewhere than on this model of GPU with this version."""
        options = self._options
        if self._package.is_rtx and (options.version_compatible or options.hardware != "gpu"):
            raise UsageError(
                "hardware and version_compatible are for the package 'tensorrt'; 'tensorrt_rtx' "
                "builds for all GPUs of the compute capabilities that are named (--capability)"
            )
        if options.version_compatible:
            self._config.set_flag(self._package.module.BuilderFlag.VERSION_COMPATIBLE)
        if options.hardware != "gpu":
            levels = self._package.module.HardwareCompatibilityLevel
            self._config.hardware_compatibility_level = (
                levels.AMPERE_PLUS
                if options.hardware == "ampere"
                else levels.SAME_COMPUTE_CAPABILITY
            )

    def _advice(self) -> str:
        """Returns what to do about a failure whose reason is known; else nothing."""
        turing = self._package.is_rtx and _TURING in self._options.capabilities
        if turing and self._options.precision == "float32":
            return (
                f"; TensorRT-RTX multiplies no float32 matrices on compute capability {_TURING}: "
                "add --fp16"
            )
        return ""


def _three_shapes(
    name: str, shape: tuple[int, ...], axes: list[Range]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Returns the smallest, the usual and the largest shape of an input.

    Args:
        name: the input's name, for messages.
        shape: the input's shape in the graph, with -1 for dynamic sizes.
        axes: what the dynamic sizes may be, in their order.
    """
    dynamic = [position for position, size in enumerate(shape) if size < 0]
    if dynamic != list(range(len(axes))):
        raise ArtifactError(
            f"{name} must have {len(axes)} dynamic sizes before its fixed ones, got "
            f"{list(shape)}; export the model again"
        )
    fixed = shape[len(axes) :]
    return (
        (*(axis.low for axis in axes), *fixed),
        (*(axis.usual for axis in axes), *fixed),
        (*(axis.high for axis in axes), *fixed),
    )


def _described(error: Any) -> str:
    """Returns one of the parser's errors as text, with the node that it is about."""
    node = f"node {error.node_name() or error.node()} ({error.node_operator() or 'no operator'})"
    return f"{node}: {error.desc()}"


@contextmanager
def _gpu_here(package: TensorRTPackage, device: int) -> Iterator[Context]:
    """Makes the GPU that the package builds on, and for, current in this thread."""
    from sigcam.kernels import driver

    try:
        driver.available()
        context = driver.retain_primary_context(device)
    except CudaUnavailableError as exc:
        raise BackendUnavailableError(
            f"{package.name} builds an engine on the GPU that it is for: {exc}; build it on a "
            "machine with that GPU, or with `--package tensorrt_rtx`, which needs no GPU to build"
        ) from exc
    try:
        with context:
            yield context
    finally:
        context.close()
