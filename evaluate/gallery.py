"""Draws the images that a report shows: those that the first artifact does best and worst on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sigcam.core.types import Array
from sigcam.data import Dataset, Sample
from sigcam.evaluate.localization.protocol import THRESHOLDS
from sigcam.evaluate.model import EvaluatedModel
from sigcam.images.boxes import boxes_of
from sigcam.images.overlay import draw
from sigcam.images.preprocess import Placement, read_input
from sigcam.images.upsample import to_heatmap

SHOWN = 6
"""How many of the best images are shown, and how many of the worst."""

_SIDE = 260
"""The longer side of a drawn image in pixels."""

_TRUTH = (80, 220, 120)
"""Colour of the true boxes, RGB."""


@dataclass(frozen=True, eq=False)
class GalleryImage:
    """An image of the gallery.

    Attributes:
        name: the sample's name.
        score: the value that it was chosen by, 0 to 1.
        captions: for each artifact, what it predicts.
        overlays: for each artifact a JPEG of the heatmap over the image, with the heatmap's boxes
            in white and the true ones in green.
    """

    name: str
    score: float
    captions: tuple[str, ...]
    overlays: tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Gallery:
    """The images that the first artifact does best and worst on.

    Attributes:
        by: the value that they were chosen by, in words.
        worst: the images with the lowest values, the lowest first.
        best: the images with the highest values, the highest first.
    """

    by: str
    worst: tuple[GalleryImage, ...]
    best: tuple[GalleryImage, ...]


def ranking(records: Array) -> tuple[str, Array]:
    """Returns the value that images are chosen by: the first that the data set has.

    Args:
        records: the first artifact's records [P].

    Returns:
        The value in words, and float64 [P], 0 to 1, NaN where an image has none.

    Example:
        >>> from sigcam.evaluate.results.records import empty_record
        >>> records = np.stack([empty_record(), empty_record()])
        >>> records["energy"] = 0.25, 0.75
        >>> ranking(records)
        ('energy inside the object', array([0.25, 0.75]))
    """
    if records["has_boxes"].any():
        return "IoU of the largest contour's box", np.array(records["iou"], np.float64)
    if np.isfinite(records["energy"]).any():
        return "energy inside the object", np.array(records["energy"], np.float64)
    before, after = (np.array(records[name], np.float64) for name in ("probability", "after"))
    return "confidence kept on the image times its heatmap", np.minimum(1.0, after / before)


def make_gallery(
    models: Sequence[EvaluatedModel], dataset: Dataset, records: Array, threshold: float
) -> Gallery:
    """Runs the chosen images again and draws them.

    Args:
        models: the artifacts.
        dataset: the samples, in the order of the records.
        records: the first artifact's records [P].
        threshold: share of a heatmap's maximum at which its boxes are drawn, 0 to 1.

    Raises:
        ImageError: an image that was read before can't be read any more.
        BackendError: a backend failed.

    Example:
        gallery = make_gallery(models, dataset, evaluation.records[0], threshold=0.2)
        gallery.by, len(gallery.best)
    """
    by, values = ranking(records)
    return gallery_of(
        by,
        values,
        lambda index: _image(models, dataset.samples[index], float(values[index]), threshold),
    )


def gallery_of(by: str, values: Array, image: Callable[[int], GalleryImage]) -> Gallery:
    """Chooses the images with the lowest and the highest values, and has them drawn.

    Args:
        by: the value in words.
        values: float64 [P]; NaN where an image has none and isn't shown.
        image: draws the image of an index.

    Example:
        >>> drawn = lambda index: GalleryImage(f"{index}.png", 0.0, (), ())
        >>> gallery = gallery_of("IoU", np.array([0.5, np.nan, 0.1, 0.9]), drawn)
        >>> [one.name for one in gallery.worst], [one.name for one in gallery.best]
        (['2.png'], ['3.png'])
    """
    order = [int(i) for i in np.argsort(values, kind="stable") if np.isfinite(values[i])]
    count = min(SHOWN, len(order) // 2)
    worst = tuple(image(index) for index in order[:count])
    best = tuple(image(index) for index in reversed(order[len(order) - count :]))
    return Gallery(by, worst, best)


def _image(
    models: Sequence[EvaluatedModel], sample: Sample, score: float, threshold: float
) -> GalleryImage:
    captions, overlays = [], []
    for model in models:
        read = read_input(sample.path, model.raw_preprocessing)
        [prediction] = model.predict([read.tensor], [sample.label])
        predicted = model.spec.label(prediction.class_id)
        of = model.spec.label(prediction.cam_class)
        heatmap_of = "" if of == predicted else f", heatmap of {of}"
        captions.append(f"{predicted} {prediction.probability:.0%}{heatmap_of}")
        truth = [] if sample.boxes is None else sample.boxes.round().astype(int).tolist()
        overlays.append(
            overlay_jpeg(read.original.image, prediction.cam, read.placement, truth, threshold)
        )
    return GalleryImage(sample.name, score, tuple(captions), tuple(overlays))


def overlay_jpeg(
    image: Array,
    cam: Array,
    placement: Placement,
    truth: Sequence[Sequence[int]],
    threshold: float | None = None,
) -> bytes:
    """Draws a heatmap over its image, with boxes: a JPEG of at most 260 pixels a side.

    Args:
        image: [H, W, n], as the artifact reads it.
        cam: floating [h, w].
        placement: where the network's input lies in the image.
        truth: true boxes (x0, y0, x1, y1) in whole pixels, both ends inside; drawn in green.
        threshold: share of the heatmap's maximum at which its own boxes are drawn, in white;
            None draws none.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> image, cam = np.zeros((480, 640, 3), np.uint8), np.eye(7, dtype=np.float32)
        >>> placement = place(Preprocessing(), 480, 640)
        >>> jpeg = overlay_jpeg(image, cam, placement, truth=[(100, 50, 300, 400)], threshold=0.2)
        >>> cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape
        (195, 260, 3)
    """
    heatmap, valid = to_heatmap(cam, placement)
    # Boxes around all that is above 0, as the threshold 0 means, are those of its next one.
    boxes = [] if threshold is None else boxes_of(heatmap, max(threshold, float(THRESHOLDS[1])))
    drawn = draw(image, heatmap if valid else None, placement.crop_box, boxes=boxes)
    line = max(2, round(min(drawn.shape[:2]) / 100))
    for x0, y0, x1, y1 in truth:  # both ends inside, as OpenCV draws them
        cv2.rectangle(drawn, (x0, y0), (x1, y1), _TRUTH, line)
    scale = min(1.0, _SIDE / max(drawn.shape[:2]))
    size = (max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale)))
    small = cv2.resize(drawn, size, interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(np.asarray(small), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
