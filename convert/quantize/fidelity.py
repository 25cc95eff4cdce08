"""Measures the fidelity report: another precision against float32, on held-out images.

Both graphs run in the same backend, ONNX Runtime on the CPU, on the same inputs, one image at a
time, so that neither memory nor an image's neighbours in a batch matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigcam.convert.quantize.images import prepared
from sigcam.core.progress import Report
from sigcam.core.spec import Spec
from sigcam.core.types import Array
from sigcam.images.boxes import boxes_of
from sigcam.images.correlation import correlation
from sigcam.images.preprocess import Placement
from sigcam.images.upsample import to_heatmap
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel

BACKEND = "ort"
"""The name of the backend that both graphs run in."""


@dataclass(frozen=True, eq=False)
class ImageOutputs:
    """What a graph gives for one image.

    Attributes:
        top: the most probable class.
        answer: the predicted classes: the most probable one, of a multi-label artifact all of
            probability 0.5 or more.
        class_ids: int64 [K], the classes that the CAMs are of.
        cams: float32 [K, h, w], finite.
        placement: where the network's input lies in the image.
    """

    top: int
    answer: frozenset[int]
    class_ids: Array
    cams: Array
    placement: Placement


@dataclass(frozen=True)
class FidelityFigures:
    """What comparing two graphs on the held-out images gives, as `FidelityReport` has it.

    Attributes:
        agreement: share of the images with the same predicted class, of a multi-label artifact
            with all predicted classes the same, 0 to 1.
        compared: images whose CAMs were compared.
        mean_correlation: mean of Pearson's correlation of the two CAMs, -1 to 1; None without any.
        worst_correlation: the lowest of these correlations; None without any.
        mean_box_iou: mean IoU of the two heatmaps' largest boxes, 0 to 1; None without any.
    """

    agreement: float
    compared: int
    mean_correlation: float | None
    worst_correlation: float | None
    mean_box_iou: float | None


class FidelityCheck:
    """Keeps what float32 gives for the held-out images, and compares other graphs with it."""

    def __init__(
        self, path: Path, spec: Spec, held_out: Sequence[Path], threads: int | None, report: Report
    ) -> None:
        """Runs the float32 artifact.

        Args:
            path: the float32 artifact's file.
            spec: the artifact's spec.
            held_out: the images' files, decoded again at each comparison.
            threads: threads of the backend; None leaves it to the backend.
            report: called with the images done and their number.

        Raises:
            ArtifactError: the backend refuses the file.
            BackendError: the backend failed, or the outputs aren't finite.
        """
        self._spec, self._held_out = spec, held_out
        self._options = BackendOptions(threads=threads, spinning=False)
        self._float32 = self._run(path, None, report)

    def compare(self, path: Path, report: Report) -> FidelityFigures:
        """Runs another graph on the same images and compares it with float32.

        Args:
            path: the other artifact's file.
            report: called with the images done and their number.

        Raises:
            ArtifactError: the backend refuses the file.
            BackendError: the backend failed, or the outputs aren't finite.
        """
        others = self._run(path, self._float32, report)
        pairs = list(zip(self._float32, others, strict=True))
        agreement = float(np.mean([one.answer == other.answer for one, other in pairs]))
        correlations: list[float] = []
        ious: list[float] = []
        for one, other in pairs:
            cams = _same_class(one, other)
            if cams is None or (np.ptp(cams[0]) == 0 and np.ptp(cams[1]) == 0):
                continue
            correlations.append(correlation(*cams))
            iou = _box_iou(cams, one.placement)
            if iou is not None:
                ious.append(iou)
        return FidelityFigures(
            agreement=agreement,
            compared=len(correlations),
            mean_correlation=float(np.mean(correlations)) if correlations else None,
            worst_correlation=min(correlations) if correlations else None,
            mean_box_iou=float(np.mean(ious)) if ious else None,
        )

    def _run(
        self, path: Path, given: Sequence[ImageOutputs] | None, report: Report
    ) -> list[ImageOutputs]:
        """Runs a graph on all images, for the most probable classes of `given` where it can."""
        found = []
        with ExportedModel.open(path, BACKEND, self._options, with_head=False) as model:
            for index, source in enumerate(self._held_out):
                tensor, placement = prepared(source, self._spec.preprocessing)
                class_ids = None
                if given is not None and model.takes_class_ids:
                    class_ids = np.array([[given[index].top]], np.int64)
                outputs = model.run(tensor[None], class_ids)
                top = int(outputs.logits[0].argmax())
                answer = frozenset([top])
                if self._spec.task == "multi-label":  # a logit of 0 is a probability of 0.5
                    answer = frozenset(np.flatnonzero(outputs.logits[0] >= 0).tolist())
                cams = outputs.finite_cams()[0]
                found.append(ImageOutputs(top, answer, outputs.class_ids[0], cams, placement))
                report(index + 1, len(self._held_out))
        return found


def _same_class(one: ImageOutputs, other: ImageOutputs) -> tuple[Array, Array] | None:
    """Returns the CAMs of both for float32's most probable class, if both made one."""
    first, second = (np.flatnonzero(outputs.class_ids == one.top) for outputs in (one, other))
    if not len(first) or not len(second):
        return None
    return one.cams[first[0]], other.cams[second[0]]


def _box_iou(cams: tuple[Array, Array], placement: Placement) -> float | None:
    """Computes the IoU of the largest boxes at the default threshold; None if neither has one."""
    first, second = (boxes_of(to_heatmap(cam, placement)[0]) for cam in cams)
    if not first and not second:
        return None
    return first[0].iou(second[0]) if first and second else 0.0
