"""The fidelity report: another precision against float32, on held-out images.

Both graphs run in the same backend, ONNX Runtime on the CPU, on the same inputs, one image at a
time, so that neither memory nor an image's neighbours in a batch matter.
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
from sigcam.runtime.model import outputs_to_read, own_cams

BACKEND = "ort"
_NO_IMAGE = Original(np.zeros((1, 1, 3), np.uint8))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a graph says of one image.

    Attributes:
        top: the most probable class.
        ids: int64 [K], the classes that the CAMs are for.
        cams: float32 [K, h, w].
    """

    top: int
    ids: Array
    cams: Array


@dataclass(frozen=True)
class Measured:
    """Two graphs on the held-out images; see `FidelityReport` for the words."""

    agreement: float
    compared: int
    mean_correlation: float | None
    worst_correlation: float | None
    mean_box_iou: float | None


class FidelityCheck:
    """Holds what float32 says of the held-out images, and compares other graphs with it."""

    def __init__(
        self, path: Path, spec: Spec, held_out: Sequence[Path], threads: int | None, report: Report
    ) -> None:
        """Runs the float32 artifact.

        Args:
            path: of the float32 artifact.
            spec: that it carries.
            held_out: images, decoded again at each comparison.
            threads: of the backend.
            report: called with the images done and their number.

        Raises:
            ArtifactError: the backend refuses the file.
            BackendError: the backend failed, or the outputs aren't finite.
        """
        self._spec, self._held_out = spec, held_out
        self._options = BackendOptions(threads=threads, spinning=False)
        self._float32 = self._run(path, None, report)

    def compare(self, path: Path, report: Report) -> Measured:
        """Runs another graph on the same images.

        Raises:
            ArtifactError: the backend refuses the file.
            BackendError: the backend failed, or the outputs aren't finite.
        """
        others = self._run(path, self._float32, report)
        pairs = list(zip(self._float32, others, strict=True))
        agreement = float(np.mean([one.top == other.top for one, other in pairs]))
        correlations: list[float] = []
        ious: list[float] = []
        for source, (one, other) in zip(self._held_out, pairs, strict=True):
            cams = _same_class(one, other)
            if cams is None or (np.ptp(cams[0]) == 0 and np.ptp(cams[1]) == 0):
                continue
            correlations.append(correlation(*cams))
            iou = self._box_iou(cams, self._placements[source])
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
        backend = open_backend(path, BACKEND, self._options)
        placements: dict[Path, Placement] = {}
        try:
            wanted = outputs_to_read(self._spec, backend)
            answers = []
            for index, source in enumerate(self._held_out):
                tensor, placements[source] = prepared(source, self._spec.preprocessing)
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
        cams = own_cams(outputs, self._spec)[0]
        logits = outputs["logits"][0]
        if not (np.isfinite(logits).all() and np.isfinite(cams).all()):
            raise BackendError(
                "logits or CAMs are not finite on a held-out image; check the classifier's "
                "weights and export it again"
            )
        return Answer(int(logits.argmax()), outputs["class_ids_out"][0], cams)

    def _box_iou(self, cams: tuple[Array, Array], placement: Placement) -> float | None:
        """Of the largest boxes at the threshold that users get by default; None without any."""
        first, second = (self._boxes(cam, placement) for cam in cams)
        if not first and not second:
            return None
        return iou(first[0], second[0]) if first and second else 0.0

    def _boxes(self, cam: Array, placement: Placement) -> list[Box]:
        shown = Explanation(0, "", 0.0, None, cam, self._spec.method, placement, _NO_IMAGE)
        return shown.boxes()


def _same_class(one: Answer, other: Answer) -> tuple[Array, Array] | None:
    """The CAMs of both for float32's most probable class, if both made one."""
    first, second = (np.flatnonzero(answer.ids == one.top) for answer in (one, other))
    if not len(first) or not len(second):
        return None
    return one.cams[first[0]], other.cams[second[0]]


def correlation(one: Array, other: Array) -> float:
    """Pearson's correlation of two CAMs in float64; 0 where one of them is constant."""
    a, b = (cam.astype(np.float64).ravel() for cam in (one, other))
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
