"""The backend "ort": ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sigcam.core.model_file import ModelFile
from sigcam.core.types import Array
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.onnxruntime.common import (
    OrtBase,
    import_onnxruntime,
    open_session,
    run_error,
    session_options,
)


class OrtBackend(OrtBase):
    """ONNX Runtime with its CPU provider. One session serves several threads at once."""

    name = "ort"
    callers_compute = True

    @classmethod
    def _open(cls, model: ModelFile, options: BackendOptions) -> OrtBackend:
        """Loads a model.

        Raises:
            BackendUnavailableError: ONNX Runtime isn't installed.
            ArtifactError: ONNX Runtime refuses the file.
        """
        ort = import_onnxruntime(cls.name, "cpu")
        settings = session_options(ort, options)
        return cls(open_session(ort, model, settings, ["CPUExecutionProvider"]))

    def _infer(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        session = self._opened()
        # The whole graph runs whatever is wanted: RunOptions.only_execute_path_to_fetches
        # works in training builds only (microsoft/onnxruntime issue 16013; seen in 1.31).
        try:
            values = session.run(list(wanted), dict(feeds))
        except Exception as exc:  # ONNX Runtime's errors share no narrower base
            raise run_error(exc) from exc
        return dict(zip(wanted, values, strict=True))
