"""What the backends on ONNX Runtime share: opening a model, its tensors, its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError, BackendUnavailableError
from sigcam.core.model_file import ModelFile
from sigcam.runtime.backends.base import Backend, BackendOptions, TensorInfo

DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
}
"""ONNX Runtime's names of the types that artifacts have."""

_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors reach us as exceptions anyway

Provider = str | tuple[str, dict[str, str]]
"""An execution provider: its name, or name and options."""


class OrtBase(Backend):
    """A backend that holds a session of ONNX Runtime."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_tensor_info(value) for value in session.get_inputs())
        self.outputs = tuple(_tensor_info(value) for value in session.get_outputs())

    def _opened(self) -> Any:
        """Returns the session.

        Raises:
            BackendError: the backend is closed.
        """
        if self._session is None:
            raise BackendError("the backend is closed; load the model again")
        return self._session

    def close(self) -> None:
        """Frees the backend's memory, as soon as the calls still running in it are done."""
        self._session = None


def import_onnxruntime(backend: str, extra: str) -> Any:
    """Imports the package onnxruntime.

    Args:
        backend: name of the backend that needs it, for the message.
        extra: the extra of sigcam that installs it.

    Raises:
        BackendUnavailableError: it isn't installed.

    Example:
        >>> import_onnxruntime("ort", "cpu").__name__
        'onnxruntime'
    """
    try:
        import onnxruntime
    except ImportError as exc:
        raise BackendUnavailableError(
            f"the backend {backend!r} needs ONNX Runtime, which isn't installed; "
            f'install it with `pip install "sigcam[{extra}]"`'
        ) from exc
    return onnxruntime


def session_options(ort: Any, options: BackendOptions) -> Any:
    """Makes the settings of a session that don't depend on the provider.

    Example:
        >>> import onnxruntime
        >>> session_options(onnxruntime, BackendOptions(threads=2)).intra_op_num_threads
        2
    """
    settings = ort.SessionOptions()
    settings.log_severity_level = _FATAL_ONLY
    threads = options.allowed_threads
    if threads is not None:
        settings.intra_op_num_threads = threads
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.spinning else "0"
    )
    return settings


def open_session(ort: Any, model: ModelFile, settings: Any, providers: Sequence[Provider]) -> Any:
    """Opens a session with a model.

    ONNX Runtime would map weights that lie beside the graph, so it gets them as bytes, which it
    copies.

    Args:
        ort: the package onnxruntime.
        model: the model's file.
        settings: what `session_options` made, for this session alone.
        providers: execution providers, the preferred one first.

    Raises:
        ArtifactError: ONNX Runtime refuses the file.
        BackendUnavailableError: a provider's libraries can't be used.

    Example:
        ort = import_onnxruntime("ort", "cpu")
        settings = session_options(ort, BackendOptions(threads=2))
        model = ModelFile("model.onnx")
        session = open_session(ort, model, settings, ["CPUExecutionProvider"])
    """
    weights = model.external_data()
    if weights:
        settings.add_external_initializers_from_files_in_memory(
            list(weights), list(weights.values()), [len(data) for data in weights.values()]
        )
    source = model.graph() if model.path is None else str(model.path)
    try:
        # Without "enable_fallback", a provider that fails is replaced by another one and a
        # few lines are printed.
        return ort.InferenceSession(
            source, sess_options=settings, providers=list(providers), enable_fallback=0
        )
    except RuntimeError as exc:  # raised while a provider is set up; files have other types
        raise BackendUnavailableError(
            f"ONNX Runtime {ort.__version__} can't set up {_names(providers)}: {exc}"
        ) from exc
    except Exception as exc:  # ONNX Runtime's errors share no narrower base
        raise ArtifactError(
            f"ONNX Runtime {ort.__version__} refuses {model.name}: {exc}; export the model again "
            "or upgrade onnxruntime"
        ) from exc


def run_error(exc: Exception) -> BackendError:
    """Returns the error to raise when a run failed with `exc`.

    Example:
        >>> print(run_error(ValueError("a dimension doesn't fit")))
        ONNX Runtime failed while running the model: a dimension doesn't fit
    """
    return BackendError(f"ONNX Runtime failed while running the model: {exc}")


def dtype_of(kind: str, name: str) -> np.dtype[Any]:
    """Returns the NumPy dtype of a tensor.

    Args:
        kind: ONNX Runtime's name of the type.
        name: the tensor's name, for the message.

    Raises:
        ArtifactError: a type that artifacts don't have.

    Example:
        >>> dtype_of("tensor(float)", "logits")
        dtype('float32')
    """
    if kind not in DTYPES:
        raise ArtifactError(
            f"{name} is {kind}, not one of {', '.join(DTYPES)}; export the model again"
        )
    return DTYPES[kind]


def _tensor_info(value: Any) -> TensorInfo:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorInfo(value.name, dtype_of(value.type, value.name), shape)


def _names(providers: Sequence[Provider]) -> str:
    return ", ".join(one if isinstance(one, str) else one[0] for one in providers)
