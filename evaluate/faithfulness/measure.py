"""Measures faithfulness: changes an image by its heatmap, and runs the artifact on what comes out.

All metrics are of the predicted class, on the image as the network gets it, with the heatmap of
that class at the same size (bicubic unless the caller says bilinear, min-max). `change_image`
makes what takes long to make and needs no backend; `measure_faithfulness` runs the backend.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.faithfulness.confidence import masked_image
from sigcam.evaluate.faithfulness.insertion_deletion import (
    BATCH,
    MEAN_COLOUR,
    STEPS,
    curve_area,
    deletion_curve,
    insertion_curve,
    run_batches,
)
from sigcam.evaluate.faithfulness.road import road_images, road_score
from sigcam.evaluate.localization.protocol import enlarge, normalise
from sigcam.evaluate.model import EvaluatedModel, Prediction
from sigcam.images.preprocess import mean_colour
from sigcam.images.upsample import Interpolation

FAITHFULNESS = ("confidence", "insertion", "deletion", "road")
"""The metrics that can be asked for. "confidence" takes one more run of the backend an image,
"road" 14, "insertion" and "deletion" one more than their steps each."""


@dataclass(frozen=True, eq=False)
class ChangedImage:
    """An image's changed versions, of those that are made before the backend runs.

    Insertion and deletion change little from step to step, hundreds of times: their images
    are made as the backend takes them.

    Attributes:
        image: raw pixels [H, W, n], unchanged.
        scores: float64 [H, W] in [0, 1], the predicted class's heatmap.
        masked: [H, W, n], the image times the heatmap; None without "confidence".
        morf: [H, W, n] each, the most relevant pixels removed; none without "road".
        lerf: [H, W, n] each, the least relevant pixels removed; none without "road".
    """

    image: Array
    scores: Array
    masked: Array | None
    morf: list[Array]
    lerf: list[Array]


def check_faithfulness(names: Collection[str]) -> None:
    """Refuses names that aren't in `FAITHFULNESS`.

    Raises:
        UsageError: a name that isn't there.

    Example:
        >>> check_faithfulness(["road", "iou"])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: faithfulness must be of confidence, ..., got iou
    """
    unknown = sorted(set(names) - set(FAITHFULNESS))
    if unknown:
        raise UsageError(
            f"faithfulness must be of {', '.join(FAITHFULNESS)}, got {', '.join(unknown)}"
        )


def change_image(
    image: Array,
    prediction: Prediction,
    names: Collection[str],
    interpolation: Interpolation = "bicubic",
) -> ChangedImage:
    """Makes an image's changed versions; runs no backend, so that threads can do it.

    Args:
        image: raw pixels [H, W, n], as the network gets it.
        prediction: what the artifact predicts for it.
        names: the metrics that the changed images are for, of `FAITHFULNESS`.
        interpolation: how the CAM is enlarged: "bicubic" or "bilinear".

    Raises:
        UsageError: an image too large for ROAD's imputation (`impute`).

    Example:
        >>> import numpy as np
        >>> cam = np.array([[0.0, 1.0]], np.float32)
        >>> white, prediction = np.full((1, 2, 3), 255, np.uint8), Prediction(0, 0.9, 0, cam, cam)
        >>> changed = change_image(white, prediction, ["confidence"])
        >>> changed.masked[0, :, 0], len(changed.morf)
        (array([  0, 255], dtype=uint8), 0)
    """
    height, width = image.shape[:2]
    scores = normalise(enlarge(prediction.predicted_cam, height, width, interpolation))
    masked = masked_image(image, scores) if "confidence" in names else None
    morf, lerf = (
        list(road_images(image, scores, most_relevant_first=first)) if "road" in names else []
        for first in (True, False)
    )
    return ChangedImage(image, scores, masked, morf, lerf)


def measure_faithfulness(
    model: EvaluatedModel,
    changed: Sequence[ChangedImage],
    predictions: Sequence[Prediction],
    names: Collection[str],
    steps: int = STEPS,
) -> list[dict[str, float]]:
    """Runs the artifact on changed images.

    Args:
        model: the artifact.
        changed: the changed images, from `change_image`, with the same names.
        predictions: what the artifact predicts for the unchanged ones.
        names: the metrics that are measured, of `FAITHFULNESS`.
        steps: in how many steps insertion and deletion change an image.

    Returns:
        For each image the fields of its record: "after" (confidence on the image times the
        heatmap), "insertion" and "deletion" in [0, 1], and "road" in [-0.5, 0.5].

    Raises:
        BackendError: the backend failed.

    Example:
        changed = [change_image(image, prediction, ["road"]) for image, prediction in pairs]
        measure_faithfulness(model, changed, predictions, ["road"])  # [{"road": 0.21}, ...]
    """
    found: list[dict[str, float]] = [{} for _ in changed]
    classes = [prediction.class_id for prediction in predictions]
    preprocessing = model.spec.preprocessing
    is_rgb = preprocessing.takes_bytes and preprocessing.channels == 3
    fill = MEAN_COLOUR if is_rgb else mean_colour(preprocessing)
    masked = [one.masked for one in changed if one.masked is not None]
    if masked:
        for values, after in zip(found, model.probabilities(masked, classes), strict=True):
            values["after"] = float(after)
    for one, class_id, values in zip(changed, classes, found, strict=True):

        def score(images: Array, class_id: int = class_id) -> Array:
            return model.probabilities(list(images), [class_id] * len(images))

        if "insertion" in names:
            curve = insertion_curve(one.image, one.scores, score, steps=steps, batch=BATCH)
            values["insertion"] = curve_area(curve)
        if "deletion" in names:
            curve = deletion_curve(
                one.image, one.scores, score, steps=steps, batch=BATCH, fill=fill
            )
            values["deletion"] = curve_area(curve)
        if "road" in names:
            morf, lerf = (run_batches(some, score, BATCH) for some in (one.morf, one.lerf))
            values["road"] = road_score(morf, lerf)
    return found
