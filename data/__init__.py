"""Data sets for evaluation: images with classes, boxes and masks, in the forms they come in.

`open_dataset` reads and checks one, `match_classes` compares it with a model, `read_masks` gives a
sample's masks as arrays.
"""

from sigcam.data.checks import check_dataset
from sigcam.data.classes import match_classes
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
)
from sigcam.data.masks import read_masks
from sigcam.data.open import FORMATS, open_dataset

__all__ = [
    "FORMATS",
    "Dataset",
    "Place",
    "Problem",
    "Sample",
    "check_dataset",
    "match_classes",
    "open_dataset",
    "read_masks",
]
