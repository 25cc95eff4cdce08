"""Scores one image's CAM against the sample's boxes and masks, and fills its record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.data import Sample, read_masks
from sigcam.evaluate.localization.box_accuracy import score_boxes
from sigcam.evaluate.localization.pixel_precision import pixel_counts
from sigcam.evaluate.localization.pointing import box_region, energy_inside, pointing_hit
from sigcam.evaluate.localization.protocol import SIZE, pixel_labels, place_scores, scale_boxes
from sigcam.evaluate.model import Prediction
from sigcam.evaluate.results.records import empty_record
from sigcam.evaluate.sensitivity import class_sensitivity
from sigcam.images.preprocess import Placement
from sigcam.images.upsample import Interpolation


@dataclass(frozen=True)
class Scoring:
    """How a heatmap is scored.

    Attributes:
        threshold: the fixed threshold of boxes, a multiple of 0.001 in [0, 1).
        tolerance: how many pixels of the protocol's square beside the object the pointing game
            still counts as a hit.
        interpolation: how the CAM is enlarged: "bicubic" as in the protocol, or "bilinear".
    """

    threshold: float = 0.2
    tolerance: float = 0.0
    interpolation: Interpolation = "bicubic"


def score_image(
    prediction: Prediction, sample: Sample, placement: Placement, scoring: Scoring
) -> Array:
    """Returns a record [] with everything that needs no further run of the backend.

    Args:
        prediction: what the artifact predicts for the image, with its CAM.
        sample: the image's sample, with its size if it has boxes.
        placement: where the network's input lies in the image.
        scoring: how the heatmap is scored.

    Raises:
        UsageError: the sample has boxes and no size.
        DataError: a mask that can't be read.

    Example:
        >>> from pathlib import Path
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.data import Place
        >>> from sigcam.images.preprocess import prepare
        >>> placement = prepare(np.zeros((8, 8, 3), np.uint8), Preprocessing(8, 8, "stretch"))[1]
        >>> cam = np.array([[0.0, 1.0]], np.float32)
        >>> sample = Sample("a.png", Path("a.png"), Place(Path("a.csv")), label=3)
        >>> score_image(Prediction(3, 0.9, 3, cam, cam), sample, placement, Scoring())["correct"]
        array(1, dtype=int8)
    """
    record = empty_record()
    scores, valid = place_scores(prediction.cam, placement, interpolation=scoring.interpolation)
    record["predicted"], record["probability"] = prediction.class_id, prediction.probability
    record["cam_class"], record["valid"] = prediction.cam_class, valid
    if sample.label is not None:
        record["correct"] = prediction.is_predicted and prediction.class_id == sample.label
    if prediction.least_cam is not None:
        record["sensitivity"] = class_sensitivity(prediction.predicted_cam, prediction.least_cam)
    region = None
    if sample.boxes is not None:
        if sample.size is None:
            raise UsageError(f"the size of {sample.name} is unknown; open it with open_dataset")
        # A box may reach a pixel over the edge, in data that counts from 1.
        boxes = np.maximum(sample.boxes, 0)
        truth = scale_boxes(boxes, sample.size)
        ious = score_boxes(scores, truth)
        record["has_boxes"], record["hits"] = True, ious.packed()
        record["iou"] = ious.at(scoring.threshold)[1]
        region = box_region(truth, SIZE, SIZE)
    if sample.masks is not None:
        inside, ignored = read_masks(sample)
        labels = pixel_labels([inside], ignored)
        record["has_masks"], record["pixels"] = True, pixel_counts(scores, labels)
        region = inside
    if region is not None:
        record["pointing"] = pointing_hit(scores, region, scoring.tolerance)
        record["energy"] = energy_inside(scores, region)
    return record
