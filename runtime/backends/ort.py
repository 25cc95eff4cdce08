"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.runtime.backends.base import Array, Backend, BackendOptions, TensorInfo
from sigcam.runtime.errors import ArtifactError, BackendError, BackendUnavailableError

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(float)": np.dtype(np.float32),
    "tensor(int64)": np.dtype(np.int64),
}
_FATAL_ONLY = 4  # ONNX Runtime's log severity; its errors reach us as exceptions anyway


class OrtBackend(Backend):
    """ONNX Runtime with its CPU provider. One session serves several threads at once."""

    name = "ort"

    def __init__(self, session: Any) -> None:
        self._session = session
        self.inputs = tuple(_tensor_info(value) for value in session.get_inputs())
        self.outputs = tuple(_tensor_info(value) for value in session.get_outputs())

    @classmethod
    def open(cls, path: Path, options: BackendOptions) -> OrtBackend:
        """Loads the artifact at `path`.

        Raises:
            BackendUnavailableError: ONNX Runtime isn't installed.
            ArtifactError: ONNX Runtime refuses the file.
        """
        try:
            import onnxruntime as ort
        except ImportError as exc:
            raise BackendUnavailableError(
                "the backend 'ort' needs ONNX Runtime, which isn't installed; "
                'install it with `pip install "sigcam[cpu]"`'
            ) from exc
        settings = ort.SessionOptions()
        settings.log_severity_level = _FATAL_ONLY
        if options.threads is not None:
            settings.intra_op_num_threads = options.threads
        settings.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if options.spinning else "0"
        )
        try:
            session = ort.InferenceSession(
                str(path), sess_options=settings, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:  # ONNX Runtime's errors share no narrower base
            raise ArtifactError(
                f"ONNX Runtime {ort.__version__} refuses {path}: {exc}; export the model again "
                "or upgrade onnxruntime"
            ) from exc
        return cls(session)

    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        session = self._session
        if session is None:
            raise BackendError("the backend is closed; load the model again")
        # The whole graph runs whatever is wanted: RunOptions.only_execute_path_to_fetches
        # works in training builds only (microsoft/onnxruntime issue 16013; seen in 1.31).
        try:
            values = session.run(list(wanted), dict(feeds))
        except Exception as exc:  # as above
            raise BackendError(f"ONNX Runtime failed while running the model: {exc}") from exc
        return dict(zip(wanted, values, strict=True))

    def close(self) -> None:
        """Frees the engine's memory, as soon as the calls still running in it are done."""
        self._session = None


def _tensor_info(value: Any) -> TensorInfo:
    if value.type not in _DTYPES:
        raise ArtifactError(
            f"{value.name} is {value.type}, not one of {', '.join(_DTYPES)}; export the model again"
        )
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return TensorInfo(value.name, _DTYPES[value.type], shape)
