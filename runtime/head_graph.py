"""The head graph: the second file, which makes heatmaps of further classes without the backbone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sigcam.core.artifact import HOW_TO_EXPORT, check_belongs, head_path
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.runtime.backends.base import Backend


class HeadGraph:
    """The head graph of one artifact, opened when it is first needed.

    Several threads may use it at once.
    """

    def __init__(self, head_input: str, opener: Callable[[], Backend]) -> None:
        self._head_input = head_input
        self._opener = opener
        self._backend: Backend | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def head_input(self) -> str:
        """Names the artifact's output that the graph takes: "features" or "head_input"."""
        return self._head_input

    def run(self, values: Array, class_ids: Array, wanted: Sequence[str]) -> dict[str, Array]:
        """Runs the graph once.

        Args:
            values: float32 [B, ...], rows of the artifact's output `head_input`.
            class_ids: int64 [B, K], 0 <= id < C.
            wanted: of the outputs `scores` [B, K], `evidence_logits` [B, K], `cam_weights`
                [B, K, N] or [B, K, N, h, w] and `cams` [B, K, h, w]; `evidence_logits` is
                left out where there is no sigmoid branch.

        Raises:
            UsageError: the session is closed.
            ArtifactError: the file isn't a usable head graph.
            BackendError: the backend failed.
        """
        backend = self._opened()
        present = {info.name for info in backend.outputs}
        names = [name for name in wanted if name != "evidence_logits" or name in present]
        if not names:
            return {}
        return backend.infer({self._head_input: values, "class_ids": class_ids}, names)

    def close(self) -> None:
        """Frees the backend; the graph can't be used afterwards."""
        with self._lock:
            self._closed = True
            if self._backend is not None:
                self._backend.close()

    def _opened(self) -> Backend:
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed; load the model again")
            if self._backend is None:
                self._backend = _checked(self._opener(), self._head_input)
            return self._backend


def _checked(backend: Backend, head_input: str) -> Backend:
    inputs = {info.name for info in backend.inputs}
    outputs = {info.name for info in backend.outputs}
    needed, given = {head_input, "class_ids"}, {"scores", "cams"}
    if inputs != needed or not outputs >= given:
        backend.close()
        raise ArtifactError(
            f"the head graph should take {sorted(needed)} and give {sorted(given)}, but takes "
            f"{sorted(inputs)} and gives {sorted(outputs)}; {HOW_TO_EXPORT} again"
        )
    return backend


def find_head_graph(
    path: Path, given: str | Path | None, spec: Spec, opener: Callable[[Path], Backend]
) -> HeadGraph | None:
    """Finds the head graph of the artifact at `path`, checks its spec and doesn't open it yet.

    Args:
        path: the artifact's file.
        given: the head graph's file; None for the one beside the artifact that has its name
            (`model.head.onnx` for `model.onnx`), if it exists.
        spec: the artifact's spec.
        opener: opens a file in the session's backend.

    Raises:
        ArtifactError: the file is no head graph, or that of another artifact.
        UsageError: `given` for an artifact that was exported without a head graph.

    Example:
        head = find_head_graph(
            Path("model.onnx"), None, spec, lambda file: open_backend(file, "ort", options)
        )
    """
    if spec.head_input is None:
        if given is None:
            return None
        raise UsageError(f"{path} was exported without a head graph; {HOW_TO_EXPORT}")
    file = head_path(path) if given is None else Path(given)
    if given is None and not file.is_file():
        return None
    check_belongs(file, spec)
    return HeadGraph(spec.head_input, lambda: opener(file))
