"""All numbers of a report, computed once for every form of it."""

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
from sigcam.evaluate.run import Evaluation, described

_AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class Curves:
    """What is drawn of an artifact; None where the data have no boxes or no masks.

    Attributes:
        boxes: label to accuracy in percent at each threshold, float64 [1000].
        precision, recall: of pixels, float64 [1001], from the highest threshold down.
    """

    boxes: dict[str, Array] | None
    precision: Array | None
    recall: Array | None


@dataclass(frozen=True, eq=False)
class Summary:
    """An evaluation and its numbers.

    Attributes:
        evaluation: what was run.
        results: each metric of each artifact.
        curves: of each artifact.
        resamples, level, seed: of the intervals.
    """

    evaluation: Evaluation
    results: tuple[Result, ...]
    curves: tuple[Curves, ...]
    resamples: int
    level: float
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON; numbers that don't exist are null."""
        run = self.evaluation
        return {
            "dataset": {
                "name": run.dataset.name,
                "format": run.dataset.format,
                "images": len(run.dataset),
                "left_out": [str(one) for one in run.dataset.problems],
                "notes": list(run.dataset.notes),
            },
            "options": described(run.options),
            "intervals": {"level": self.level, "resamples": self.resamples, "seed": self.seed},
            "artifacts": [
                {
                    "name": one.name, "sha256": one.digest, "backend": one.backend,
                    "map_of": map_of(one.asks), "spec": one.spec,
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
                "seconds": round(run.seconds, 2),
                "backend_seconds": round(run.backend_seconds, 2),
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
        evaluation: a finished run.
        resamples: of the intervals, as this and the following for `bootstrap.compare`.
        level: their probability.
        seed: of the drawings.
    """
    found = results(
        evaluation.records, evaluation.options.threshold,
        resamples=resamples, level=level, seed=seed,
    )  # fmt: skip
    curves = tuple(_curves(records) for records in evaluation.records)
    return Summary(evaluation, tuple(found), curves, resamples, level, seed)


def map_of(asks: bool) -> str:
    """Whose map was scored."""
    return "the true class" if asks else "the predicted class (the artifact makes no other)"


def versions() -> dict[str, str]:
    """Versions of the packages that took part."""
    found = {"python": platform.python_version()}
    for name in ("sigcam", "numpy", "opencv-python-headless", "onnxruntime", "openvino"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _numbers(one: Comparison) -> dict[str, Any]:
    return {"value": _number(one.metric.value), "interval": _interval(one.metric),
            "difference": _number(one.difference.value),
            "difference_interval": _interval(one.difference)}  # fmt: skip


def _interval(one: Estimate) -> list[float | None]:
    return [_number(one.low), _number(one.high)]


def _number(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _curves(records: Array) -> Curves:
    every = np.zeros((len(IOU_THRESHOLDS), len(THRESHOLDS)))
    known = np.zeros(len(THRESHOLDS))
    pixels = np.zeros((2, BINS), np.int64)
    boxes = masks = 0
    for start in range(0, len(records), _AT_ONCE):
        part = records[start : start + _AT_ONCE]
        hits = unpack_hits(part["hits"][part["has_boxes"]])
        every += hits[:, EVERY].sum(axis=0)
        known += hits[:, LARGEST, IOU_THRESHOLDS.index(LOC_IOU)].sum(axis=0)
        pixels += part["pixels"][part["has_masks"]].sum(axis=0, dtype=np.int64)
        boxes, masks = boxes + len(hits), masks + int(part["has_masks"].sum())
    curve = pixel_curve(pixels) if masks and pixels[1].any() else None
    drawn = None
    if boxes:
        drawn = {
            f"any contour, IoU {iou:g}": 100 * row / boxes
            for iou, row in zip(IOU_THRESHOLDS, every, strict=True)
        }
        drawn[f"largest contour, IoU {LOC_IOU:g}"] = 100 * known / boxes
    return Curves(
        drawn, None if curve is None else curve.precision, None if curve is None else curve.recall
    )
