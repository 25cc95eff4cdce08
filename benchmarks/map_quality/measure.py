"""Measures a source's maps, an array of one value per image or mosaic for each metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from benchmarks.map_quality.features import Runner
from benchmarks.map_quality.sources import Source
from sigcam.core.types import Array
from sigcam.data import Sample, read_masks
from sigcam.evaluate import curve_area, deletion_curve, insertion_curve, masked_image
from sigcam.evaluate.faithfulness.road import road_images, road_score
from sigcam.evaluate.localization.box_accuracy import score_boxes
from sigcam.evaluate.localization.grid_pointing import LEVELS, tile_shares
from sigcam.evaluate.localization.pixel_precision import pixel_counts
from sigcam.evaluate.localization.protocol import (
    enlarge,
    normalise,
    pixel_labels,
    place_scores,
    scale_boxes,
)
from sigcam.evaluate.sensitivity import class_sensitivity
from sigcam.images.preprocess import Placement
from sigcam.runtime.model import probabilities_of

STEPS = 16
"""Steps of insertion and deletion; `sigcam evaluate` takes 224."""


def logits_of(head: nn.Module, inputs: Array) -> Array:
    """Computes a head's logits, float64 [B, C]."""
    with torch.no_grad():
        found: Array = head(torch.from_numpy(np.asarray(inputs, np.float32))).double().numpy()
    return found


def grid_pointing(source: Source, features: Array, labels: Array, side: int) -> Array:
    """Plays the grid pointing game.

    Args:
        source: what makes the maps.
        features: of mosaics, [M, N, h, w].
        labels: the class of each tile, int64 [M, side * side].
        side: tiles in a row.

    Returns:
        float64 [M, 20]: the mean share of the tiles, at each threshold.
    """
    found = np.zeros((len(features), len(LEVELS)))
    for index in range(len(features)):
        cams = source.cams(features[index : index + 1], labels[index : index + 1])[0]
        shares = [tile_shares(cam, tile, side, 2 * 42) for tile, cam in enumerate(cams)]
        found[index] = np.mean(shares, axis=0)
    return found


def sensitivity(source: Source, features: Array, logits: Array) -> Array:
    """Computes the class sensitivity, float64 [P], of the most and least probable class."""
    ids = np.stack([logits.argmax(1), logits.argmin(1)], 1)
    return np.array(
        [
            class_sensitivity(*source.cams(features[i : i + 1], ids[i : i + 1])[0])
            for i in range(len(features))
        ]
    )


@dataclass(frozen=True, eq=False)
class Subject:
    """A classifier whose faithfulness is measured.

    Attributes:
        runner: its backbone.
        softmax: its softmax head, on pooled features or on whole ones.
        is_pooled: whether the head is on pooled features.
    """

    runner: Runner
    softmax: nn.Module
    is_pooled: bool = True

    def probabilities(self, images: Array, class_id: int) -> Array:
        """Computes the softmax probability of a class, float64 [B], of uint8 [B, H, W, 3]."""
        if self.is_pooled:
            inputs = self.runner.pooled(images)
        else:
            inputs = np.concatenate([self.runner.features(images[i : i + 16])
                                     for i in range(0, len(images), 16)])  # fmt: skip
        return np.asarray(
            probabilities_of(logits_of(self.softmax, inputs), "single-label")[:, class_id]
        )


def faithfulness(
    subject: Subject,
    source: Source,
    images: Sequence[Array],
    features: Array,
    logits: Array,
    *,
    further: int,
) -> dict[str, Array]:
    """Measures the maps of the predicted class.

    Args:
        subject: the classifier.
        source: what makes the maps.
        images: uint8 [H, W, 3] each, as the network gets them.
        features: theirs, [P, N, h, w].
        logits: the softmax head's, [P, C].
        further: for how many images insertion and deletion are measured; ROAD for half of them.

    Returns:
        "average_drop" and "increase" [P], "insertion" and "deletion" [further] and "road"
        [further / 2], as shares, not percent.
    """
    found: dict[str, list[float]] = {
        name: [] for name in ("average_drop", "increase", "insertion", "deletion", "road")
    }
    for index, image in enumerate(images):
        class_id = int(logits[index].argmax())
        before = float(probabilities_of(logits[index], "single-label")[class_id])
        cam = source.cams(features[index : index + 1], np.array([[class_id]]))[0, 0]
        scores = normalise(enlarge(cam, *image.shape[:2]))

        def score(changed: Array, class_id: int = class_id) -> Array:
            return subject.probabilities(np.asarray(changed), class_id)

        after = float(score(masked_image(image, scores)[None])[0])
        found["average_drop"].append(max(0.0, before - after) / before)
        found["increase"].append(float(after > before))
        if index < further:
            for name, curve in (("insertion", insertion_curve), ("deletion", deletion_curve)):
                found[name].append(curve_area(curve(image, scores, score, steps=STEPS, batch=32)))
        if index < further // 2:  # imputing takes a second an image
            morf, lerf = (
                score(np.stack(list(road_images(image, scores, most_relevant_first=first))))
                for first in (True, False)
            )
            found["road"].append(road_score(morf, lerf))
    return {name: np.array(values) for name, values in found.items()}


def localisation(
    source: Source, features: Array, samples: Sequence[Sample], placements: Sequence[Placement]
) -> dict[str, Array]:
    """Measures the maps of the true class against boxes and masks.

    Returns:
        "hits", bool [P, 3, 1000], of any contour's box at IoU 0.3, 0.5, 0.7; and "pixels",
        int64 [P, 2, 1001].
    """
    hits, pixels = [], []
    for index, (sample, placement) in enumerate(zip(samples, placements, strict=True)):
        cam = source.cams(features[index : index + 1], np.array([[sample.label]]))[0, 0]
        scores, _ = place_scores(cam, placement)
        assert sample.boxes is not None and sample.size is not None
        truth = scale_boxes(np.maximum(sample.boxes, 0), sample.size)
        hits.append(score_boxes(scores, truth).hits())
        inside, ignored = read_masks(sample)
        pixels.append(pixel_counts(scores, pixel_labels([inside], ignored)))
    return {"hits": np.stack(hits), "pixels": np.stack(pixels)}
