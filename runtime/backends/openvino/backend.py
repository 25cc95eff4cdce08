"""The backend "openvino": OpenVINO on the CPU, by its own interface."""

from __future__ import annotations

import io
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError, BackendUnavailableError
from sigcam.core.model_file import ModelFile
from sigcam.core.processes import keep_in_children, on_fork
from sigcam.core.types import Array
from sigcam.runtime.backends.base import Backend, BackendOptions, Precision, TensorInfo
from sigcam.runtime.backends.openvino.cache import ModelCache, one_line
from sigcam.runtime.backends.openvino.requests import Requests
from sigcam.runtime.backends.openvino.weights import separate_weights

DTYPES: dict[str, np.dtype[Any]] = {
    "u8": np.dtype(np.uint8),
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "i64": np.dtype(np.int64),
}
"""OpenVINO's names of the types that artifacts have."""

_TYPES: dict[Precision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}
"""OpenVINO's names of the types that it may compute in."""


class OpenVinoBackend(Backend):
    """A model compiled by OpenVINO for this processor, for several callers at once.

    The option `threads` counts the threads of the compiled model: in the mode "latency" a call
    has all of them, in "throughput" they are divided among the calls that run at once.

    Attributes:
        from_cache: whether the compiled model came from the cache.
    """

    name = "openvino"
    understands = frozenset({"threads", "precision", "mode", "cache"})

    def __init__(self, compiled: Any, memory: Array | None = None) -> None:
        self.from_cache = memory is not None
        self.inputs = tuple(_info(port, port.node.get_friendly_name()) for port in compiled.inputs)
        self.outputs = tuple(_info(port, output_name(port)) for port in compiled.outputs)
        self._order = {info.name: index for index, info in enumerate(self.outputs)}
        self._requests: Requests | None = Requests(compiled, memory)
        _shared.alive.add(self._requests)

    @classmethod
    def _open(cls, model: ModelFile, options: BackendOptions) -> OpenVinoBackend:
        """Loads a model.

        Raises:
            BackendUnavailableError: OpenVINO isn't installed, or the processor has no
                instructions for the precision.
            ArtifactError: OpenVINO refuses the file.
            StorageError: the compiled model can't be written to the cache.
        """
        ov, read_onnx = _import_openvino()
        _refuse_stale()
        core = _core(ov)
        offered = _offered(core)
        if options.precision != "fp32" and options.precision not in offered:
            raise BackendUnavailableError(
                f"OpenVINO says that this processor "
                f"({core.get_property('CPU', 'FULL_DEVICE_NAME')}) has no instructions for "
                f"{options.precision}; it offers {', '.join(offered)}. Load the model with "
                "precision='fp32'"
            )
        config = _config(options, core)
        _shared.compiled += 1
        single = options.batch_size == 1

        def compile_model() -> Any:
            try:
                graph = read_onnx(model)
                if single:
                    _fix_batch(graph)
                separate_weights(graph)
                return core.compile_model(graph, "CPU", config)
            except ArtifactError:  # a file that can't be read
                raise
            except Exception as exc:  # OpenVINO's errors share no narrower base
                raise ArtifactError(
                    f"OpenVINO {ov.__version__} refuses {model.name}: {one_line(exc)}; export the "
                    "model again or upgrade openvino"
                ) from exc

        if options.cache is None:
            compiled, memory = compile_model(), None
        else:
            cache = ModelCache(options.cache, core, ov.__version__)
            variant = "one image" if single else "any batch"
            compiled, memory = cache.load(model, config, variant, compile_model)
        _check_precision(compiled, options.precision)
        return cls(compiled, memory)

    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        requests = self._requests
        if requests is None:
            raise BackendError("the backend is closed; load the model again")
        arrays = [feeds[info.name] for info in self.inputs]
        try:
            values = requests.run(arrays, [self._order[name] for name in wanted])
        except RuntimeError as exc:
            raise BackendError(f"OpenVINO failed while running the model: {one_line(exc)}") from exc
        return dict(zip(wanted, values, strict=True))

    def close(self) -> None:
        """Frees the backend's memory, as soon as the calls still running in it are done."""
        self._requests = None


class _Shared:
    """What a process has once: the Core, if one was made, and what was compiled by it.

    Attributes:
        lock: held while the Core is made.
        core: the Core; None before it is needed.
        compiled: number of models whose compiling was begun.
        alive: those that are still there.
        stale: whether the process that this one was forked from had freed a model. OpenVINO
            keeps the threads of a freed model for the next one; here they are missing, and
            compiling would wait for them for ever.
    """

    def __init__(self, stale: bool = False) -> None:
        self.lock = threading.Lock()
        self.core: Any = None
        self.compiled = 0
        self.alive: weakref.WeakSet[Requests] = weakref.WeakSet()
        self.stale = stale


_shared = _Shared()


def _start_again() -> None:
    """Gives a forked process a Core of its own: the threads of the other one aren't there."""
    global _shared
    _shared = _Shared(_shared.stale or _shared.compiled > len(_shared.alive))


on_fork(_start_again)


def _core(ov: Any) -> Any:
    """Returns the process's one Core, which is made once and never freed.

    OpenVINO's CPU plugin, which belongs to a Core, gives the thread that loads it a stack for
    signal handlers, and puts the stack before it back when it ends. If two Cores end in the
    order in which they began, the second one puts back the stack of the first, which is gone:
    the next signal, Ctrl-C for one, then ends the process by a segmentation fault (seen in
    2026.4).
    """
    with _shared.lock:
        if _shared.core is None:
            _shared.core = ov.Core()
            keep_in_children(_shared)
        return _shared.core


def _refuse_stale() -> None:
    """Refuses a forked process in which OpenVINO would wait for threads that aren't there.

    Raises:
        BackendUnavailableError: a model was freed before the fork.
    """
    if _shared.stale:
        raise BackendUnavailableError(
            "OpenVINO can't be used in this process: a model was closed before the fork, and "
            "OpenVINO waits for that model's threads, which aren't here. Load no OpenVINO model "
            "before the fork, or keep it open until after it; or start processes with 'spawn', or "
            "take the backend 'ort' (docs/serving.md)"
        )


def _import_openvino() -> tuple[Any, Any]:
    """Returns the package openvino, and a function that reads a model's file.

    Raises:
        BackendUnavailableError: the package isn't installed, or was built without ONNX.
    """
    try:
        import openvino
        from openvino.frontend import FrontEndManager
    except ImportError as exc:
        raise BackendUnavailableError(
            "the backend 'openvino' needs OpenVINO, which isn't installed; "
            'install it with `pip install "sigcam[openvino]"`'
        ) from exc
    try:
        # By name: Core.read_model tries the readers of all formats on a file that none takes,
        # and one of them writes to standard error.
        reader = FrontEndManager().load_by_framework("onnx")
    except RuntimeError as exc:
        raise BackendUnavailableError(
            f"OpenVINO {openvino.__version__} can't read ONNX files here: {one_line(exc)}; install "
            "the package from the package index again"
        ) from exc

    def read(model: ModelFile) -> Any:
        _ = model.has_external_data  # refuses what is missing, which OpenVINO says in its own way
        if model.path is None:
            return reader.convert(reader.load(io.BytesIO(model.graph())))
        # Read, not mapped: whoever overwrites the file would change weights that are in use.
        return reader.convert(reader.load(str(model.path), enable_mmap=False))

    return openvino, read


def _offered(core: Any) -> list[str]:
    """Lists the precisions that OpenVINO says the processor has instructions for."""
    ours = {"FP32": "fp32", "FP16": "fp16", "BF16": "bf16"}
    try:
        found = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as exc:
        raise BackendUnavailableError(
            f"OpenVINO can't use the processor: {one_line(exc)}; install the package from the "
            "package index again"
        ) from exc
    return [ours[name] for name in found if name in ours]


def _config(options: BackendOptions, core: Any) -> dict[str, str]:
    """Returns the properties that a model is compiled with."""
    config = {
        "PERFORMANCE_HINT": options.mode.upper(),
        # By itself OpenVINO takes bfloat16 where the processor has it (AMX, AVX512-BF16), and
        # float16 on Arm.
        "INFERENCE_PRECISION_HINT": _TYPES[options.precision],
    }
    if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in core.get_property("CPU", "SUPPORTED_PROPERTIES"):
        # The inputs of layers with 8-bit weights would be quantised too, at run time.
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
    threads = options.allowed_threads
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = str(threads)
        # Whoever gives a number divides the machine among several models or processes, each
        # of which would bind its threads to the same first cores.
        config["ENABLE_CPU_PINNING"] = "NO"
    return config


def _fix_batch(model: Any) -> None:
    """Makes a network take one image at a time; a head graph stays as it is.

    Sizes that are known when the model is compiled needn't be worked out in every run: 0.8 ms
    less of 12.9 for EfficientNet-Lite0. (A range of sizes, 1 to 8, saved nothing.)
    """
    names = [value.node.get_friendly_name() for value in model.inputs]
    if "image" in names:
        shapes = {value: [1, *list(value.partial_shape)[1:]] for value in model.inputs}
        model.reshape(shapes)


def _check_precision(compiled: Any, precision: Precision) -> None:
    """Refuses a model that was compiled for another type than the one asked for."""
    found = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if found != _TYPES[precision]:
        raise BackendError(
            f"OpenVINO was asked to compute in {precision} and computes in {found}; load the "
            "model with another precision or another backend"
        )


def output_name(port: Any) -> str:
    """Returns an output's name in the ONNX file.

    The port may have several names: a tensor keeps those of the operators that were optimised
    away. OpenVINO's ONNX reader calls its Result "<name>/sink_port_0".

    Raises:
        ArtifactError: OpenVINO named the Result in another way.

    Example:
        >>> from types import SimpleNamespace
        >>> node = SimpleNamespace(get_friendly_name=lambda: "logits/sink_port_0")
        >>> output_name(SimpleNamespace(node=node, names={"logits", "gemm_output"}))
        'logits'
    """
    name: str = port.node.get_friendly_name().rpartition("/sink_port")[0]
    if name not in port.names:
        raise ArtifactError(
            f"cannot tell which output of the model {sorted(port.names)} is; load it with "
            "another backend than 'openvino'"
        )
    return name


def _info(port: Any, name: str) -> TensorInfo:
    kind = port.element_type.get_type_name()
    if kind not in DTYPES:
        raise ArtifactError(
            f"{name} is {kind}, not one of {', '.join(DTYPES)}; export the model again"
        )
    shape = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return TensorInfo(name, DTYPES[kind], shape)
