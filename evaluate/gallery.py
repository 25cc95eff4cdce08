"""The images that a report shows: those that the first artifact does best and worst on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sigcam.core.types import Array
from sigcam.data import Dataset, Sample
from sigcam.evaluate.model import Answer, Model
from sigcam.images.preprocess import Prepared, read_input
from sigcam.runtime.explanation import Explanation

SHOWN = 6
"""Images at each end."""

_SIDE = 260
_TRUTH = (80, 220, 120)


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of the gallery.

    Attributes:
        name: of the sample.
        score: what it was chosen by, 0 to 1.
        captions: for each artifact, what it predicts.
        overlays: for each artifact, a JPEG: the map, its box in white, the true ones in green.
    """

    name: str
    score: float
    captions: tuple[str, ...]
    overlays: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images by what they were chosen by.

    Attributes:
        by: words for it.
        worst, best: the worst and the best first.
    """

    by: str
    worst: tuple[Shown, ...]
    best: tuple[Shown, ...]


def ranked(records: Array) -> tuple[str, Array]:
    """What images are chosen by, in words, and its value of each image, NaN for none."""
    if records["has_boxes"].any():
        return "IoU of the largest contour's box", np.array(records["iou"], np.float64)
    if np.isfinite(records["energy"]).any():
        return "energy inside the object", np.array(records["energy"], np.float64)
    before, after = (np.array(records[name], np.float64) for name in ("probability", "after"))
    return "confidence kept on the image times its map", np.minimum(1.0, after / before)


def make_gallery(
    models: Sequence[Model], dataset: Dataset, records: Array, threshold: float
) -> Gallery:
    """Runs the chosen images again and draws them.

    Args:
        models: the artifacts.
        dataset: its samples in the order of the records.
        records: of the first artifact.
        threshold: of the boxes that are drawn.

    Raises:
        ImageError: an image that was read before can't be read any more.
    """
    by, values = ranked(records)
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    count = min(SHOWN, len(order) // 2)

    def shown(index: int) -> Shown:
        return _shown(models, dataset.samples[index], float(values[index]), threshold)

    worst = tuple(shown(index) for index in order[:count])
    best = tuple(shown(index) for index in reversed(order[len(order) - count :]))
    return Gallery(by, worst, best)


def _shown(models: Sequence[Model], sample: Sample, score: float, threshold: float) -> Shown:
    captions, overlays = [], []
    for model in models:
        read = read_input(sample.path, model.reading)
        answer = model.answers([read.tensor], [sample.label])[0]
        predicted = model.spec.label(answer.predicted)
        of = model.spec.label(answer.cam_class)
        map_of = "" if of == predicted else f", map of {of}"
        captions.append(f"{predicted} {answer.probability:.0%}{map_of}")
        overlays.append(_overlay(model, read, answer, sample, threshold))
    return Shown(sample.name, score, tuple(captions), tuple(overlays))


def _overlay(
    model: Model, read: Prepared, answer: Answer, sample: Sample, threshold: float
) -> bytes:
    explanation = Explanation(
        answer.cam_class, "", answer.probability, None, answer.cam, model.spec.method,
        read.placement, read.original,
    )  # fmt: skip
    drawn = explanation.overlay(box_threshold=threshold)
    line = max(2, round(min(drawn.shape[:2]) / 100))
    for x0, y0, x1, y1 in [] if sample.boxes is None else sample.boxes.round().astype(int).tolist():
        cv2.rectangle(drawn, (x0, y0), (x1, y1), _TRUTH, line)
    scale = min(1.0, _SIDE / max(drawn.shape[:2]))
    size = (max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale)))
    small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(np.asarray(small), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
