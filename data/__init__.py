"""Data sets for training and evaluation: images with classes, boxes and masks.

`open_dataset` reads and checks one of any form, `open_images` one whose classes don't matter,
`match_classes` compares it with a model, `read_masks` gives a sample's masks as arrays, and
`left_out` says what isn't used and why.
"""

from sigcam.data.checks import check_dataset
from sigcam.data.classes import match_classes
from sigcam.data.dataset import Dataset, Place, Problem, Sample, labelled, left_out, unread
from sigcam.data.masks import read_masks
from sigcam.data.open import FORMATS, open_dataset
from sigcam.data.unlabelled import open_images

__all__ = [
    "FORMATS",
    "Dataset",
    "Place",
    "Problem",
    "Sample",
    "check_dataset",
    "labelled",
    "left_out",
    "match_classes",
    "open_dataset",
    "open_images",
    "read_masks",
    "unread",
]
