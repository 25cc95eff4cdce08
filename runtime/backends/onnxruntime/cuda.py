"""The backend "ort-cuda": ONNX Runtime on an NVIDIA GPU, with its CUDA provider."""

from __future__ import annotations

import contextlib
import ctypes
import sys
import traceback
from collections import Counter
from pathlib import Path
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
from sigcam.runtime.backends.onnxruntime.io_binding import ON_DEVICE, BoundBackend, DeviceStream

_CPU = "CPUExecutionProvider"

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
    understands = frozenset({"threads", "spinning", "device"})
    provider: ClassVar[str] = "CUDAExecutionProvider"

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
        ort = import_onnxruntime(cls.name, "gpu")
        if cls.provider not in ort.get_available_providers():
            raise BackendUnavailableError(
                f"the backend {cls.name!r} needs ONNX Runtime's {cls.provider}, which the "
                f"installed build {ort.__version__} does not have; it has "
                f"{', '.join(ort.get_available_providers())}. Remove the package onnxruntime, "
                'whose files are in the same place, then `pip install "sigcam[gpu]"`'
            )
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
        with contextlib.redirect_stdout(sys.stderr):  # it prints what it doesn't find
            ort.preload_dlls()  # from NVIDIA's wheels, where these are installed
        settings = session_options(ort, options)
        settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        providers = [*cls._providers(ort, model, options, stream.handle), _CPU]
        try:
            session = open_session(ort, model, settings, providers)
        except BackendUnavailableError as exc:
            raise BackendUnavailableError(f"{exc} ({_why_not(ort, cls.provider)})") from exc
        if cls.provider not in session.get_providers():
            raise BackendUnavailableError(
                f"the {cls.provider} failed to start, and the model would have run with "
                f"{', '.join(session.get_providers())}: {_why_not(ort, cls.provider)}"
            )
        refuse_cpu(session, cls.name)
        if {info.name for info in session.get_outputs()}.issuperset(ON_DEVICE):
            stream.load_kernels()
        return cls(session, stream, ort.RunOptions())

    @classmethod
    def _providers(
        cls,
        ort: Any,  # noqa: ARG003 (for the subclass)
        model: ModelFile,  # noqa: ARG003
        options: BackendOptions,
        stream: int,
    ) -> list[Provider]:
        """Returns the GPU's providers with their options, the preferred one first."""
        return [cuda_provider(options, stream)]


def cuda_provider(options: BackendOptions, stream: int) -> Provider:
    """Returns the CUDA provider with its options.

    Args:
        options: what is asked of the backend.
        stream: handle of the stream that it runs on.

    Example:
        >>> name, settings = cuda_provider(BackendOptions(device=1), stream=0)
        >>> name, settings["device_id"]
        ('CUDAExecutionProvider', '1')
    """
    return (
        "CUDAExecutionProvider",
        {"device_id": str(options.device), "user_compute_stream": str(stream), "use_tf32": "0"},
    )


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


def _why_not(ort: Any, provider: str) -> str:
    """Returns what keeps a provider's library from loading, as the system's loader says it.

    ONNX Runtime prints the reason to standard error and raises nothing.
    """
    short = provider.removesuffix("ExecutionProvider").lower()
    needs = f"it was built for CUDA {getattr(ort, 'cuda_version', '') or 'of some version'}"
    advice = (
        'install the matching CUDA and cuDNN libraries (`pip install "onnxruntime-gpu[cuda,cudnn]"`'
        " brings them as wheels)"
    )
    found = list((Path(ort.__file__).parent / "capi").glob(f"*onnxruntime_providers_{short}.*"))
    if not found:
        return f"{needs}, and has no library for {short}; {advice}"
    try:
        ctypes.CDLL(str(found[0]))
    except OSError as exc:
        return f"{exc}; {needs}; {advice}"
    return f"its library loads, but the provider failed to start (see standard error); {needs}"
