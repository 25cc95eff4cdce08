"""The fidelity certificate: another precision against float32, on held-out pictures.

Both graphs run in the same engine, ONNX Runtime on the CPU, on the same inputs, one picture at a
time, so that neither memory nor a picture's neighbours in a batch matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigcam.convert.quantize.images import prepared
from sigcam.core.errors import BackendError
from sigcam.core.progress import Report
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.images.preprocess import Original, Placement
from sigcam.runtime.backends import open_backend
from sigcam.runtime.backends.base import Backend, BackendOptions
from sigcam.runtime.explanation import Box, Explanation
from sigcam.runtime.model import outputs_to_read, own_grids

ENGINE = "ort"
_NO_PICTURE = Original(np.zeros((1, 1, 3), np.uint8))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a graph says of one picture.

    Attributes:
        top: the most probable class.
        ids: int64 [K], the classes that the grids are for.
        grids: float32 [K, h, w].
    """

    top: int
    ids: Array
    grids: Array


@dataclass(frozen=True)
class Measured:
    """Two graphs on the held-out pictures; see `Fidelity` for the words."""

    agreement: float
    compared: int
    mean_correlation: float | None
    worst_correlation: float | None
    mean_box_iou: float | None


class Gate:
    """Holds what float32 says of the held-out pictures, and compares other graphs with it."""

    def __init__(
        self, path: Path, spec: Spec, held_out: Sequence[Path], threads: int | None, report: Report
    ) -> None:
        """Runs the float32 artifact.

        Args:
            path: of the float32 artifact.
            spec: that it carries.
            held_out: pictures, decoded again at each comparison.
            threads: of the engine.
            report: called with the pictures done and their number.

        Raises:
            ArtifactError: the engine refuses the file.
            BackendError: the engine failed, or the outputs aren't finite.
        """
        self._spec, self._held_out = spec, held_out
        self._options = BackendOptions(threads=threads, spinning=False)
        self._float32 = self._run(path, None, report)

    def compare(self, path: Path, report: Report) -> Measured:
        """Runs another graph on the same pictures.

        Raises:
            ArtifactError: the engine refuses the file.
            BackendError: the engine failed, or the outputs aren't finite.
        """
        others = self._run(path, self._float32, report)
        pairs = list(zip(self._float32, others, strict=True))
        agreement = float(np.mean([one.top == other.top for one, other in pairs]))
        correlations: list[float] = []
        ious: list[float] = []
        for source, (one, other) in zip(self._held_out, pairs, strict=True):
            grids = _same_class(one, other)
            if grids is None or (np.ptp(grids[0]) == 0 and np.ptp(grids[1]) == 0):
                continue
            correlations.append(correlation(*grids))
            iou = self._box_iou(grids, self._placements[source])
            if iou is not None:
                ious.append(iou)
        return Measured(
            agreement,
            len(correlations),
            float(np.mean(correlations)) if correlations else None,
            min(correlations) if correlations else None,
            float(np.mean(ious)) if ious else None,
        )

    def _run(self, path: Path, given: Sequence[Answer] | None, report: Report) -> list[Answer]:
        """The answers of the graph at `path`; for the classes of `given`, where it names them."""
        backend = open_backend(path, ENGINE, self._options)
        placements: dict[Path, Placement] = {}
        try:
            wanted = outputs_to_read(self._spec, backend)
            answers = []
            for index, source in enumerate(self._held_out):
                tensor, placements[source] = prepared(source, self._spec.geometry)
                class_id = -1 if given is None else given[index].top
                answers.append(self._answer(backend, wanted, tensor, class_id))
                report(index + 1, len(self._held_out))
        finally:
            backend.close()
        self._placements = placements
        return answers

    def _answer(
        self, backend: Backend, wanted: Sequence[str], tensor: Array, class_id: int
    ) -> Answer:
        feeds = {"image": tensor[None]}
        if self._spec.classes.mode == "input":
            feeds["class_ids"] = np.array([[class_id]], np.int64)
        outputs = backend.infer(feeds, wanted)
        grids = own_grids(outputs, self._spec)[0]
        logits = outputs["logits"][0]
        if not (np.isfinite(logits).all() and np.isfinite(grids).all()):
            raise BackendError(
                "logits or grids are not finite on a held-out picture; check the classifier's "
                "weights and export it again"
            )
        return Answer(int(logits.argmax()), outputs["class_ids_out"][0], grids)

    def _box_iou(self, grids: tuple[Array, Array], placement: Placement) -> float | None:
        """Of the largest boxes at the threshold that users get by default; None without any."""
        first, second = (self._boxes(grid, placement) for grid in grids)
        if not first and not second:
            return None
        return iou(first[0], second[0]) if first and second else 0.0

    def _boxes(self, grid: Array, placement: Placement) -> list[Box]:
        shown = Explanation(0, "", 0.0, None, grid, self._spec.method, placement, _NO_PICTURE)
        return shown.boxes()


def _same_class(one: Answer, other: Answer) -> tuple[Array, Array] | None:
    """The grids of both for float32's most probable class, if both made one."""
    first, second = (np.flatnonzero(answer.ids == one.top) for answer in (one, other))
    if not len(first) or not len(second):
        return None
    return one.grids[first[0]], other.grids[second[0]]


def correlation(one: Array, other: Array) -> float:
    """Pearson's correlation of two grids in float64; 0 where one of them is constant."""
    a, b = (grid.astype(np.float64).ravel() for grid in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale > 0 else 0.0


def iou(one: Box, other: Box) -> float:
    """Intersection over union of two boxes, 0 to 1."""
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    shared = max(0, width) * max(0, height)
    areas = sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in (one, other))
    return shared / (areas - shared)
