"""The head graph: the second file, which makes heatmaps of further classes without the backbone."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from sigcam.core.artifact import HOW_TO_EXPORT, check_belongs, head_path
from sigcam.core.errors import ArtifactError, UsageError
from sigcam.core.model_file import ModelFile, ModelSource
from sigcam.core.processes import OwnProcess, no_pickle
from sigcam.core.types import Array
from sigcam.runtime.backends.base import Backend


class HeadGraph:
    """The head graph of one artifact, opened when it is first needed.

    Its file is held open until then, so that it is the one that was checked when the artifact was
    loaded, whatever has its name by then. Several threads may use it at once.
    """

    def __init__(
        self, head_input: str, file: ModelFile, opener: Callable[[ModelFile], Backend]
    ) -> None:
        """Holds the file; a graph with weights in another file beside it is opened at once.

        Args:
            head_input: the artifact's output that the graph takes.
            file: the head graph's file, checked.
            opener: opens a file in the session's backend.

        Raises:
            ArtifactError: the file can't be read, or isn't a usable head graph.
        """
        self._head_input = head_input
        self._file = file
        self._opener = opener
        self._backend: Backend | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._own = OwnProcess("the head graph")
        if file.has_external_data:
            self._backend = _checked(opener(file), head_input)
        else:
            file.hold()

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
            UsageError: the session is closed, or this process was forked from the one that
                loaded it.
            ArtifactError: the file isn't a usable head graph, or was overwritten.
            BackendError: the backend failed.
        """
        backend = self._opened()
        present = {info.name for info in backend.outputs}
        names = [name for name in wanted if name != "evidence_logits" or name in present]
        if not names:
            return {}
        return backend.infer({self._head_input: values, "class_ids": class_ids}, names)

    def close(self) -> None:
        """Frees the backend; the graph can't be used afterwards.

        In a process that was forked from the one that loaded it, nothing is freed.
        """
        if os.getpid() != self._own.pid:
            return
        with self._lock:
            self._closed = True
            self._file.release()
            if self._backend is not None:
                self._backend.close()

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled or copied.

        Raises:
            UsageError: always.
        """
        no_pickle("a HeadGraph")

    def _opened(self) -> Backend:
        if os.getpid() != self._own.pid:  # before the lock, which may have been held at the fork
            self._own.refuse()
        with self._lock:
            if self._closed:
                raise UsageError("the session is closed; load the model again")
            if self._backend is None:
                self._backend = _checked(self._opener(self._file.in_memory()), self._head_input)
                self._file.release()
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
    model: ModelFile, given: ModelSource | None = None, *, verify: bool = True
) -> ModelFile | None:
    """Finds the head graph of an artifact, and checks that it belongs to it.

    Args:
        model: the artifact's file.
        given: the head graph; None for the file beside the artifact that has its name
            (`model.head.onnx` for `model.onnx`), if it exists.
        verify: whether it is compared with its digest.

    Raises:
        ArtifactError: the file is no head graph, that of another artifact, or not what was
            written.
        UsageError: `given` for an artifact that was exported without a head graph.

    Example:
        file = find_head_graph(ModelFile("model.onnx"))
    """
    if model.spec.head_input is None:
        if given is None:
            return None
        raise UsageError(f"{model.name} was exported without a head graph; {HOW_TO_EXPORT}")
    if given is None:
        beside = None if model.path is None else head_path(model.path)
        if beside is None or not beside.is_file():
            return None
        given = beside
    file = ModelFile(given, "the head graph's bytes")
    check_belongs(file.spec, model.spec, file.name)
    if verify:
        file.verify()
    return file
