"""Evaluation of artifacts on a data set: localisation, faithfulness, and reports.

    run.py             evaluates artifacts on a data set: all of the steps below
    stages.py          the steps that an image goes through, one after the other
    model.py           runs an artifact: predictions, CAMs, probabilities of changed images
    scoring.py         scores one CAM against its image's boxes and masks
    mosaics.py         the same on mosaics of labelled images: the grid pointing game
    sanity.py          whether the map depends on what the network learnt: weights redrawn
    sensitivity.py     how much a map changes with the class that is asked for
    gallery.py         draws the images that a report shows
    localization/      metrics against boxes and masks, by the conventions of Choe et al. 2020
        protocol.py         the protocol's square, thresholds, heatmaps, boxes and masks
        box_accuracy.py     boxes: MaxBoxAccV2, GT-known and Top-1 Loc
        threshold_boxes/    the boxes of a heatmap at every threshold, fast
        pixel_precision.py  masks: PxAP
        pointing.py         pointing game, energy inside the object
        grid_pointing.py    share of a class's map inside its own tile of a mosaic
    faithfulness/      metrics of what a changed image does to the prediction
        confidence.py       Average Drop, % Increase
        insertion_deletion.py   insertion, deletion
        road.py, imputation.py  ROAD, and how it fills removed pixels
        measure.py          changes an image and runs the artifact on what comes out
    results/           from images to numbers
        records.py, store.py    what is kept of each image, and of an evaluation that goes on
        metrics.py, bootstrap.py    metrics of records, and their intervals
    reports/           report.html, report.md, report.json and images.csv

The metrics work on arrays and know nothing of backends or files. The names below are imported
when they are first used: `import sigcam.evaluate` itself imports nothing else.

    >>> import numpy as np
    >>> from sigcam.evaluate import energy_inside, score_heatmap
    >>> heatmap = score_heatmap(np.array([[0.0, 0.0], [0.0, 1.0]]))
    >>> lower_right = np.zeros(heatmap.shape, bool)
    >>> lower_right[112:, 112:] = True
    >>> round(energy_inside(heatmap, lower_right), 2)
    0.66
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.evaluate.faithfulness.confidence import confidence_drop as confidence_drop
    from sigcam.evaluate.faithfulness.confidence import confidence_rise as confidence_rise
    from sigcam.evaluate.faithfulness.confidence import masked_image as masked_image
    from sigcam.evaluate.faithfulness.insertion_deletion import curve_area as curve_area
    from sigcam.evaluate.faithfulness.insertion_deletion import deletion_curve as deletion_curve
    from sigcam.evaluate.faithfulness.insertion_deletion import insertion_curve as insertion_curve
    from sigcam.evaluate.faithfulness.road import road_curve as road_curve
    from sigcam.evaluate.faithfulness.road import road_score as road_score
    from sigcam.evaluate.localization.box_accuracy import box_iou as box_iou
    from sigcam.evaluate.localization.box_accuracy import score_boxes as score_boxes
    from sigcam.evaluate.localization.grid_pointing import tile_shares as tile_shares
    from sigcam.evaluate.localization.pixel_precision import pixel_counts as pixel_counts
    from sigcam.evaluate.localization.pixel_precision import pixel_curve as pixel_curve
    from sigcam.evaluate.localization.pointing import box_region as box_region
    from sigcam.evaluate.localization.pointing import energy_inside as energy_inside
    from sigcam.evaluate.localization.pointing import pointing_hit as pointing_hit
    from sigcam.evaluate.localization.protocol import pixel_labels as pixel_labels
    from sigcam.evaluate.localization.protocol import scale_boxes as scale_boxes
    from sigcam.evaluate.localization.protocol import score_heatmap as score_heatmap
    from sigcam.evaluate.mosaics import MosaicOptions as MosaicOptions
    from sigcam.evaluate.mosaics import evaluate_mosaics as evaluate_mosaics
    from sigcam.evaluate.run import EvaluateOptions as EvaluateOptions
    from sigcam.evaluate.run import Evaluation as Evaluation
    from sigcam.evaluate.run import evaluate_artifacts as evaluate_artifacts
    from sigcam.evaluate.sanity import SanityReport as SanityReport
    from sigcam.evaluate.sanity import check_sanity as check_sanity
    from sigcam.evaluate.sensitivity import class_sensitivity as class_sensitivity

_MODULES = {
    "EvaluateOptions": "sigcam.evaluate.run",
    "Evaluation": "sigcam.evaluate.run",
    "MosaicOptions": "sigcam.evaluate.mosaics",
    "class_sensitivity": "sigcam.evaluate.sensitivity",
    "evaluate_mosaics": "sigcam.evaluate.mosaics",
    "tile_shares": "sigcam.evaluate.localization.grid_pointing",
    "box_iou": "sigcam.evaluate.localization.box_accuracy",
    "SanityReport": "sigcam.evaluate.sanity",
    "check_sanity": "sigcam.evaluate.sanity",
    "box_region": "sigcam.evaluate.localization.pointing",
    "confidence_drop": "sigcam.evaluate.faithfulness.confidence",
    "confidence_rise": "sigcam.evaluate.faithfulness.confidence",
    "curve_area": "sigcam.evaluate.faithfulness.insertion_deletion",
    "deletion_curve": "sigcam.evaluate.faithfulness.insertion_deletion",
    "energy_inside": "sigcam.evaluate.localization.pointing",
    "evaluate_artifacts": "sigcam.evaluate.run",
    "insertion_curve": "sigcam.evaluate.faithfulness.insertion_deletion",
    "masked_image": "sigcam.evaluate.faithfulness.confidence",
    "pixel_counts": "sigcam.evaluate.localization.pixel_precision",
    "pixel_curve": "sigcam.evaluate.localization.pixel_precision",
    "pixel_labels": "sigcam.evaluate.localization.protocol",
    "pointing_hit": "sigcam.evaluate.localization.pointing",
    "road_curve": "sigcam.evaluate.faithfulness.road",
    "road_score": "sigcam.evaluate.faithfulness.road",
    "scale_boxes": "sigcam.evaluate.localization.protocol",
    "score_boxes": "sigcam.evaluate.localization.box_accuracy",
    "score_heatmap": "sigcam.evaluate.localization.protocol",
}
"""The public names and the modules that they stand in."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'sigcam.evaluate' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
