"""Data sets for evaluation: pictures with classes, boxes and masks, in the forms they come in.

`open_dataset` reads and checks one, `match_classes` compares it with a model, `read_masks` gives a
sample's masks as arrays.
"""

from sigcam.evaluate.datasets.checks import check_dataset
from sigcam.evaluate.datasets.classes import match_classes
from sigcam.evaluate.datasets.masks import read_masks
from sigcam.evaluate.datasets.opening import FORMATS, open_dataset
from sigcam.evaluate.datasets.sample import Dataset, Place, Problem, Sample

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
