"""One image's record: its map against the sample's boxes and masks."""

from __future__ import annotations

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.data import Sample, read_masks
from sigcam.evaluate.localization.box_accuracy import score_boxes
from sigcam.evaluate.localization.pixel_precision import pixel_counts
from sigcam.evaluate.localization.pointing import box_region, energy_inside, pointing_hit
from sigcam.evaluate.localization.protocol import SIZE, pixel_labels, place_scores, scale_boxes
from sigcam.evaluate.model import Answer
from sigcam.evaluate.results.records import empty_record
from sigcam.images.preprocess import Placement


def score_image(
    answer: Answer, sample: Sample, placement: Placement, threshold: float, tolerance: float
) -> Array:
    """A record [] with all that doesn't need the backend.

    Args:
        answer: of the artifact.
        sample: the image's, with its size.
        placement: of the network's input in the image.
        threshold: the fixed one, as `score_boxes` has it.
        tolerance: of the pointing game, in pixels of the protocol's square.

    Raises:
        DataError: a mask that can't be read.
    """
    record = empty_record()
    scores, valid = place_scores(answer.cam, placement)
    record["predicted"], record["probability"] = answer.predicted, answer.probability
    record["cam_class"], record["valid"] = answer.cam_class, valid
    if sample.label is not None:
        record["correct"] = answer.predicted == sample.label
    region = None
    if sample.boxes is not None:
        if sample.size is None:
            raise UsageError(f"the size of {sample.name} is unknown; open it with open_dataset")
        # A box may reach a pixel over the edge, in data that counts from 1.
        boxes = np.maximum(sample.boxes, 0)
        truth = scale_boxes(boxes, sample.size)
        found = score_boxes(scores, truth)
        record["has_boxes"], record["hits"] = True, found.packed()
        record["iou"] = found.at(threshold)[1]
        region = box_region(truth, SIZE, SIZE)
    if sample.masks is not None:
        inside, ignored = read_masks(sample)
        labels = pixel_labels([inside], ignored)
        record["has_masks"], record["pixels"] = True, pixel_counts(scores, labels)
        region = inside
    if region is not None:
        record["pointing"] = pointing_hit(scores, region, tolerance)
        record["energy"] = energy_inside(scores, region)
    return record
