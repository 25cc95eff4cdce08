"""The backend "ort-cuda": ONNX Runtime on an NVIDIA GPU, with its CUDA provider."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections import Counter
from typing import Any, ClassVar

from sigcam.core.errors import BackendError, BackendUnavailableError
from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.cuda.stream import CudaStream
from sigcam.runtime.backends.onnxruntime.common import (
    Provider,
    import_onnxruntime,
    open_session,
    session_options,
)
from sigcam.runtime.backends.onnxruntime.io_binding import BoundBackend, DeviceStream
from sigcam.runtime.backends.onnxruntime.libraries import FOR_CUDA_12, why_not

_CPU = "CPUExecutionProvider"

_OLDEST = (1, 24)
"""The oldest ONNX Runtime that will do: from it on, sessions tell which provider runs which node.

Seen in 1.24.1; 1.23.2 doesn't have it.
"""

INDEX_ARITHMETIC = frozenset([
    "Add", "And", "ArgMax", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal",
    "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range",
    "ReduceProd", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile", "TopK",
    "Transpose", "Unsqueeze", "Where",
])  # fmt: skip
"""Operators that may run on the CPU.

ONNX Runtime itself puts the arithmetic of shapes and indices there, because its results are
needed there. The GPU providers have these operators in all float forms, so that none of the
network's own work is among them on the CPU.
"""


class OrtCudaBackend(BoundBackend):
    """ONNX Runtime with its CUDA provider.

    It computes in full float32 (no TF32), which the parity report is for.

    Attributes:
        nodes: number of the graph's nodes that each provider runs, by its name.
    """

    name = "ort-cuda"
    understands = frozenset({"threads", "spinning", "device", "conv_search"})
    provider: ClassVar[str] = "CUDAExecutionProvider"
    extra: ClassVar[str] = "gpu"
    """The extra of sigcam that installs what it runs on."""

    def __init__(self, session: Any, stream: DeviceStream, run_options: Any) -> None:
        super().__init__(session, stream, run_options)
        self.nodes = dict(Counter(provider for provider, _ in assigned_nodes(session)))

    @classmethod
    def _open(cls, model: ModelFile, options: BackendOptions) -> OrtCudaBackend:
        """Loads a model onto a GPU.

        Raises:
            BackendUnavailableError: ONNX Runtime, its build for the GPU, a library, the
                driver or the GPU is missing; says which.
            ArtifactError: ONNX Runtime refuses the file.
            BackendError: a part of the network would run on the CPU.
        """
        ort = import_onnxruntime(cls.name, cls.extra)
        if cls.provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"the backend {cls.name!r} needs ONNX Runtime's {cls.provider}, which the "
                f"installed build {ort.__version__} does not have; it has "
                f"{', '.join(ort.get_available_providers())}. Remove the package onnxruntime, "
                f'whose files are in the same place, then `pip install "sigcam[{cls.extra}]"`'
            )
        _refuse_old(ort, cls.name)
        try:
            stream = CudaStream(options.device)
            try:
                return cls._open_on(stream, ort, model, options)
            except BaseException as exc:
                # The traceback's frames hold the session, which must be gone before its stream.
                traceback.clear_frames(exc.__traceback__)
                with contextlib.suppress(BackendError):  # the first error is raised
                    stream.close()
                raise
        except BackendUnavailableError as exc:
            raise BackendUnavailableError(
                f"the backend {cls.name!r} can't run here: {exc}. ONNX Runtime {ort.__version__} "
                f"has {', '.join(ort.get_available_providers())}; the backend 'ort' runs the "
                "model on the CPU"
            ) from exc

    @classmethod
    def _open_on(
        cls, stream: CudaStream, ort: Any, model: ModelFile, options: BackendOptions
    ) -> OrtCudaBackend:
        """Opens the model on a stream, and refuses one of which the CPU would run a part."""
        cls._load_libraries(ort)
        backend = cls._loaded(stream, ort, model, options)
        is_artifact = "image" in {info.name for info in backend.inputs}  # no head graph
        if is_artifact and options.heatmaps.made_of(info.name for info in backend.outputs):
            stream.load_kernels()
        return backend

    @classmethod
    def _load_libraries(cls, ort: Any) -> None:
        """Loads the libraries that the provider needs, where they lie in Python's packages."""
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it doesn't find
            ort.preload_dlls()  # from NVIDIA's wheels, where these are installed

    @classmethod
    def _loaded(
        cls, stream: DeviceStream, ort: Any, model: ModelFile, options: BackendOptions
    ) -> OrtCudaBackend:
        """Opens the model in a session on the stream."""
        providers = [cuda_provider(options, stream.handle)]
        return cls(cls._opened_with(ort, model, options, providers), stream, ort.RunOptions())

    @classmethod
    def _opened_with(
        cls, ort: Any, model: ModelFile, options: BackendOptions, providers: list[Provider]
    ) -> Any:
        """Opens a session with the GPU's providers, the preferred one first.

        Raises:
            BackendUnavailableError: a provider that failed to start; says why.
            BackendError: a part of the network would run on the CPU.
            ArtifactError: ONNX Runtime refuses the file.
        """
        settings = session_options(ort, options)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            session = open_session(ort, model, settings, [*providers, _CPU])
        except BackendUnavailableError as exc:
            raise BackendUnavailableError(f"{exc} ({why_not(ort, cls.provider)})") from exc
        if cls.provider not in session.get_providers():
            raise BackendUnavailableError(
                f"the {cls.provider} failed to start, and the model would have run with "
                f"{', '.join(session.get_providers())}: {why_not(ort, cls.provider)}"
            )
        refuse_cpu(session, cls.name)
        return session


def cuda_provider(options: BackendOptions, stream: int) -> Provider:
    """Returns the CUDA provider with its options.

    Args:
        options: what is asked of the backend.
        stream: handle of the stream that it runs on.

    Example:
        >>> name, settings = cuda_provider(BackendOptions(device=1), stream=0)
        >>> name, settings["device_id"], settings["cudnn_conv_algo_search"]
        ('CUDAExecutionProvider', '1', 'HEURISTIC')
    """
    settings = {
        "device_id": str(options.device),
        "user_compute_stream": str(stream),
        "use_tf32": "0",
        # ONNX Runtime's own choice is EXHAUSTIVE, anew for each batch size.
        "cudnn_conv_algo_search": options.conv_search.upper(),
    }
    return "CUDAExecutionProvider", settings


def assigned_nodes(session: Any) -> list[tuple[str, str]]:
    """Lists provider and operator of each node of a session that was made to record them.

    Example:
        assigned_nodes(session)  # [("CUDAExecutionProvider", "Conv"), ...]
    """
    return [
        (subgraph.ep_name, node.op_type)
        for subgraph in session.get_provider_graph_assignment_info()
        for node in subgraph.get_nodes()
    ]


def refuse_cpu(session: Any, backend: str) -> None:
    """Refuses a session that runs more than index arithmetic on the CPU.

    ONNX Runtime gives nodes that a provider can't run to the next one, and to the CPU at the
    end, and says nothing. (Its option `session.disable_cpu_ep_fallback` refuses the index
    arithmetic too, which it puts there itself.)

    Raises:
        BackendError: the session does; names the operators.

    Example:
        >>> from types import SimpleNamespace
        >>> node = SimpleNamespace(op_type="Conv")
        >>> part = SimpleNamespace(ep_name="CUDAExecutionProvider", get_nodes=lambda: [node])
        >>> session = SimpleNamespace(get_provider_graph_assignment_info=lambda: [part])
        >>> refuse_cpu(session, "ort-cuda")
    """
    nodes = assigned_nodes(session)
    work = Counter(kind for provider, kind in nodes if provider == _CPU)
    stray = {kind: count for kind, count in work.items() if kind not in INDEX_ARITHMETIC}
    if stray:
        named = ", ".join(f"{count} x {kind}" for kind, count in sorted(stray.items()))
        raise BackendError(
            f"ONNX Runtime would run a part of the network on the CPU, not on the GPU: {named}; "
            f"upgrade onnxruntime-gpu, or load the model with another backend than {backend!r}"
        )


def _refuse_old(ort: Any, backend: str) -> None:
    """Refuses an ONNX Runtime whose sessions can't tell which provider runs which node."""
    found = tuple(int(part) for part in ort.__version__.split(".")[:2] if part.isdecimal())
    if found < _OLDEST:
        oldest = ".".join(map(str, _OLDEST))
        raise BackendUnavailableError(
            f"the backend {backend!r} needs ONNX Runtime {oldest} or later, which tells what runs "
            f"on the GPU; installed is {ort.__version__}; upgrade it: pip install "
            f'"onnxruntime-gpu>=1.27" for a driver of CUDA 13, {FOR_CUDA_12}'
        )
