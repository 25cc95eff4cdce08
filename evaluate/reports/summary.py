"""Computes all numbers of a report, once for every form of it."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from sigcam.core.types import Array
from sigcam.evaluate.localization.box_accuracy import LOC_IOU, unpack_hits
from sigcam.evaluate.localization.pixel_precision import BINS, pixel_curve
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS, THRESHOLDS
from sigcam.evaluate.model import ArtifactInfo
from sigcam.evaluate.results.bootstrap import (
    LEVEL,
    RESAMPLES,
    Comparison,
    Estimate,
)
from sigcam.evaluate.results.metrics import (
    EVERY,
    LARGEST,
    Result,
    results,
)
from sigcam.evaluate.run import Evaluation

_RECORDS_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Curves:
    """An artifact's curves, which the page draws.

    Attributes:
        every: share of images whose best box reaches each IoU of 0.3, 0.5, 0.7, in percent at
            each threshold, float64 [3, 1000]; None without boxes.
        largest: the same of the largest contour's box at `LOC_IOU`, float64 [1000].
        precision: precision of pixels, 0 to 1, from the highest threshold down, float64 [1001];
            None without masks.
        recall: recall of pixels, 0 to 1, from the highest threshold down, float64 [1001]; None
            without masks.
    """

    every: Array | None
    largest: Array | None
    precision: Array | None
    recall: Array | None


@dataclass(frozen=True, eq=False)
class Summary:
    """An evaluation and its numbers.

    Attributes:
        evaluation: the finished evaluation.
        results: each metric's values for all artifacts.
        curves: the curves of each artifact.
        resamples: how often images were drawn for the intervals.
        level: probability of the intervals, in (0, 1).
        seed: what the images were drawn with.
    """

    evaluation: Evaluation
    results: tuple[Result, ...]
    curves: tuple[Curves, ...]
    resamples: int
    level: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns everything in full precision, ready for JSON; missing numbers are null."""
        run = self.evaluation
        return {
            "dataset": {
                "name": run.dataset.name,
                "format": run.dataset.format,
                "images": len(run.dataset),
                "left_out": [str(one) for one in run.dataset.problems],
                "notes": list(run.dataset.notes),
            },
            "options": run.asked,
            "intervals": {"level": self.level, "resamples": self.resamples, "seed": self.seed},
            "artifacts": [
                {
                    "name": one.name, "sha256": one.digest, "backend": one.backend,
                    "heatmap_of": heatmap_of(one), "spec": one.spec,
                }
                for one in run.artifacts
            ],
            "metrics": {
                result.metric.key: {
                    "label": result.metric.label,
                    "unit": "percent",
                    "higher_is_better": result.metric.higher_is_better,
                    "images": result.images,
                    "artifacts": [_numbers(one) for one in result.artifacts],
                }
                for result in self.results
            },
            "run": {
                "seconds": run.seconds,
                "backend_seconds": run.backend_seconds,
                "images": len(run.dataset) - run.resumed,
                "machine": {
                    "processor": platform.machine(), "cores": os.cpu_count(),
                    "system": platform.system(),
                },
                "versions": versions(),
            },
        }  # fmt: skip


def summarise(
    evaluation: Evaluation,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Summary:
    """Computes metrics, intervals and curves from the records.

    Args:
        evaluation: a finished evaluation.
        resamples: how often images are drawn for the intervals.
        level: probability of the intervals, in (0, 1).
        seed: what the images are drawn with.

    Raises:
        UsageError: resamples or level out of range.

    Example:
        summary = summarise(evaluate_artifacts(["model.onnx"], dataset, "run/"), resamples=1000)
        for one in summary.results:
            print(one.metric.key, one.artifacts[0].metric.value)
    """
    found = results(
        evaluation.records, evaluation.options.threshold,
        resamples=resamples, level=level, seed=seed,
        multi_label=evaluation.artifacts[0].spec.get("task") == "multi-label",
    )  # fmt: skip
    curves = tuple(_curves(records) for records in evaluation.records)
    return Summary(evaluation, tuple(found), curves, resamples, level, seed)


def heatmap_of(artifact: ArtifactInfo) -> str:
    """Says which class's heatmap was scored.

    Example:
        >>> from pathlib import Path
        >>> info = ArtifactInfo("a", Path("a.onnx"), "0" * 64, "ort", {}, takes_class_ids=True)
        >>> heatmap_of(info)
        'the true class'
    """
    if artifact.takes_class_ids:
        return "the true class"
    return "the predicted class (the artifact makes no other)"


def sum_of(artifact: ArtifactInfo) -> str:
    """Says how an artifact makes its CAMs of CAM weights and features, and for which purpose.

    Example:
        >>> from pathlib import Path
        >>> spec = {"nwc": True, "signed": False, "purpose": "localise"}
        >>> sum_of(ArtifactInfo("a", Path("a.onnx"), "0" * 64, "ort", spec, takes_class_ids=True))
        'clamped, to localise'
    """
    spec = artifact.spec
    words = "clamped" if spec["nwc"] else "not clamped"
    words += ", signed" if spec["signed"] else ""
    return words + (f", to {spec['purpose']}" if spec["purpose"] else "")


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that took part.

    Example:
        >>> versions()["numpy"] == np.__version__
        True
    """
    found = {"python": platform.python_version()}
    for name in ("sigcam", "numpy", "opencv-python-headless", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _numbers(one: Comparison) -> dict[str, Any]:
    return {
        "value": _number(one.metric.value),
        "interval": _interval(one.metric),
        "difference": _number(one.difference.value),
        "difference_interval": _interval(one.difference),
    }


def _interval(one: Estimate) -> list[float | None]:
    return [_number(one.low), _number(one.high)]


def _number(value: float) -> float | None:
    # JSON has neither NaN nor infinity.
    return value if math.isfinite(value) else None


def _curves(records: Array) -> Curves:
    """Sums an artifact's records up to its curves, some records at a time."""
    every = np.zeros((len(IOU_THRESHOLDS), len(THRESHOLDS)))
    largest = np.zeros(len(THRESHOLDS))
    pixels = np.zeros((2, BINS), np.int64)
    boxes = masks = 0
    for start in range(0, len(records), _RECORDS_AT_ONCE):
        part = records[start : start + _RECORDS_AT_ONCE]
        hits = unpack_hits(part["hits"][part["has_boxes"]])
        every += hits[:, EVERY].sum(axis=0)
        largest += hits[:, LARGEST, IOU_THRESHOLDS.index(LOC_IOU)].sum(axis=0)
        pixels += part["pixels"][part["has_masks"]].sum(axis=0, dtype=np.int64)
        boxes, masks = boxes + len(hits), masks + int(part["has_masks"].sum())
    curve = pixel_curve(pixels) if masks and pixels[1].any() else None
    return Curves(
        every=100 * every / boxes if boxes else None,
        largest=100 * largest / boxes if boxes else None,
        precision=None if curve is None else curve.precision,
        recall=None if curve is None else curve.recall,
    )
