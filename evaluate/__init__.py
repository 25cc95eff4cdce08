"""What a deployed map is worth: metrics, data sets, and the evaluation of artifacts.

    datasets/          what is evaluated on: readers, checks, masks
    protocol.py        conventions of Choe et al. 2020: the square, thresholds, boxes, masks
    placing.py         a CAM on that square, whatever the resize rule
    threshold_boxes.py boxes at every threshold, fast; with simple_levels, piece_track,
                       contour_search
    box_accuracy.py    MaxBoxAcc, MaxBoxAccV2, GT-known Loc, Top-1 Loc, Top-1 Cls
    pixel_precision.py PxAP
    pointing.py        pointing game, energy inside
    confidence.py      Average Drop, % Increase
    removal.py, road.py, imputation.py   insertion, deletion, ROAD
    model.py           an artifact: what it says of a batch
    faithfulness.py        changed images, and the backend's runs on them
    scoring.py         one image's record
    stages.py          what is done with an image, step by step
    records.py, state.py   what is kept of each image, and how an evaluation goes on
    metrics.py, bootstrap.py   from records to numbers, and how sure they are
    run.py             all of it
    gallery.py, reports/   images and pages of the result

The metrics work on arrays and know nothing of backends or files.
"""

from __future__ import annotations

from sigcam.data import Dataset as Dataset
from sigcam.data import Sample as Sample
from sigcam.data import open_dataset as open_dataset
from sigcam.evaluate.run import EvaluateOptions as EvaluateOptions
from sigcam.evaluate.run import Evaluation as Evaluation
from sigcam.evaluate.run import evaluate as evaluate
