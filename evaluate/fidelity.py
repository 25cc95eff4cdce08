"""What an artifact says of changed pictures: the fidelity metrics' runs of the engine.

All are of the predicted class, on the picture as the network gets it, with the map of that class
at the same size (bicubic, min-max).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy.typing as npt

from sigcam.evaluate.confidence import masked_picture
from sigcam.evaluate.model import Answer, Model
from sigcam.evaluate.protocol import enlarge, normalise
from sigcam.evaluate.removal import BATCH, STEPS, curve_area, deletion_curve, insertion_curve
from sigcam.evaluate.road import road_curve, road_score
from sigcam.runtime.errors import UsageError

Array = npt.NDArray[Any]

FIDELITY = ("confidence", "insertion", "deletion", "road")
"""What can be asked for. "confidence" takes one more run of the engine a picture, "road" 14,
"insertion" and "deletion" one more than their steps each."""


def check_fidelity(names: Collection[str]) -> None:
    """Refuses names that aren't in `FIDELITY`."""
    unknown = sorted(set(names) - set(FIDELITY))
    if unknown:
        raise UsageError(f"fidelity must be of {', '.join(FIDELITY)}, got {', '.join(unknown)}")


def measure_fidelity(
    model: Model,
    pictures: Sequence[Array],
    answers: Sequence[Answer],
    names: Collection[str],
    steps: int = STEPS,
) -> list[dict[str, float]]:
    """Runs the engine on changed pictures.

    Args:
        model: the artifact.
        pictures: uint8 [H, W, 3] each, as the network gets them.
        answers: to them.
        names: of `FIDELITY`.
        steps: of insertion and deletion.

    Returns:
        For each picture the fields of its record: "after" (confidence on the picture times the
        map), and "insertion", "deletion", "road" in [-1, 1].
    """
    found: list[dict[str, float]] = [{} for _ in pictures]
    maps = [
        normalise(enlarge(answer.predicted_grid, *picture.shape[:2]))
        for picture, answer in zip(pictures, answers, strict=True)
    ]
    classes = [answer.predicted for answer in answers]
    if "confidence" in names:
        masked = [masked_picture(*pair) for pair in zip(pictures, maps, strict=True)]
        for one, after in zip(found, model.probabilities(masked, classes), strict=True):
            one["after"] = float(after)
    for picture, scores, class_id, one in zip(pictures, maps, classes, found, strict=True):

        def score(changed: Array, class_id: int = class_id) -> Array:
            return model.probabilities(list(changed), [class_id] * len(changed))

        if "insertion" in names:
            curve = insertion_curve(picture, scores, score, steps=steps, batch=BATCH)
            one["insertion"] = curve_area(curve)
        if "deletion" in names:
            curve = deletion_curve(picture, scores, score, steps=steps, batch=BATCH)
            one["deletion"] = curve_area(curve)
        if "road" in names:
            morf = road_curve(picture, scores, score)
            lerf = road_curve(picture, scores, score, most_relevant_first=False)
            one["road"] = road_score(morf, lerf)
    return found
