"""Finds what is wrong with a data set before any long work: all of it, with file and line.

Only headers of images and masks are read. An image that is damaged further on shows when it is
decoded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sigcam.core.errors import DataError
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
    data_error,
    missing_advice,
    problem,
)
from sigcam.data.readers.text import is_file
from sigcam.images.headers import size_of_file

BOX_SLACK = 1
"""How many pixels a box may reach over the right and lower edge of its image.

Where pixels count from 1, or ends lie outside, the last column is `width`; the reference takes
such boxes as they are."""


def check_dataset(dataset: Dataset, skip_bad: bool = False) -> Dataset:
    """Looks at every image and mask, and at what is said about them.

    Found are: missing or damaged images and masks, a size other than the one stated, boxes
    outside the image or inverted, masks of another shape than the image, classes without a
    name, and an empty data set. Masks at another scale than their images (most of OpenImages)
    are no problem, as the reference scales both; a note says how many there are.

    >>> file = Path("list.csv")
    >>> sample = Sample("cat.png", Path("cat.png"), Place(file, line=2), label=0)
    >>> data = Dataset("list", file, "csv", ("cat",), [sample])
    >>> check_dataset(data)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    sigcam.core.errors.DataError: 1 problem in the data set; 1 of 1 images are missing: ...
      list.csv, line 2: the image cat.png is missing

    Args:
        dataset: as a reader returns it, with the problems that were found there.
        skip_bad: whether the samples with problems are left out instead of raising; the result's
            `problems` then says what was wrong.

    Returns:
        The data set with every sample's `size`; a sample with a problem isn't in it.

    Raises:
        DataError: there are problems, and not `skip_bad`; or nothing is left.
    """
    samples, problems, scaled = [], list(dataset.problems), 0
    for sample in dataset.samples:
        checked = _Check(sample, dataset.classes)
        problems += checked.problems
        if not checked.problems:
            further = tuple(replace(one, size=checked.size) for one in sample.further)
            samples.append(replace(sample, size=checked.size, further=further))
            scaled += checked.scaled
    if problems and not skip_bad:
        raise data_error(problems, _advice(dataset))
    if not samples:
        empty = f"the data set {dataset.name!r} ({dataset.format}) has no usable images"
        empty += "".join(f"; {note}" for note in dataset.notes)
        raise data_error(problems, empty) if problems else DataError(f"{dataset.path}: {empty}")
    notes = dataset.notes
    if scaled:
        notes += (f"masks at another scale than their images: {scaled}",)
    return replace(dataset, samples=samples, problems=tuple(problems), notes=notes)


def _advice(dataset: Dataset) -> str:
    """Returns what to do about a data set with problems."""
    missing = sum(not is_file(sample.path) for sample in dataset.samples)
    advice = "correct them, or leave out the images that they concern (skip_bad)"
    return f"{missing_advice(missing, len(dataset))}; {advice}" if missing else advice


class _Check:
    """Finds out what is wrong with one sample.

    Attributes:
        size: (width, height) of its image; None if that is unknown.
        problems: what is wrong.
        scaled: how many of its masks are at another scale.
    """

    def __init__(self, sample: Sample, classes: Sequence[str] | None) -> None:
        self.size: tuple[int, int] | None = None
        self.problems: list[Problem] = []
        self.scaled = 0
        for label in sample.labels:
            if classes and label >= len(classes):
                text = f"{sample.name} has class {label}, there are {len(classes)} classes"
                self.problems.append(problem(sample.place, text))
        size = _size_of(sample.path, sample.place, "image")
        if isinstance(size, Problem):
            self.problems.append(size)
        elif sample.size is not None and sample.size != size:
            text = f"{sample.path} is {_by(size)} pixels (upright), {_by(sample.size)} are stated"
            self.problems.append(problem(sample.place, text))
        else:
            self.size = size
            for one in sample.by_class:
                self._look_at_boxes(one, size)
                self._look_at_masks(one, size)

    def _look_at_boxes(self, sample: Sample, size: tuple[int, int]) -> None:
        if sample.boxes is None:
            return
        x0, y0, x1, y1 = sample.boxes.T
        width, height = size
        outside = (x0 < 0) | (y0 < 0) | (x0 >= width) | (y0 >= height)
        outside |= (x1 > width - 1 + BOX_SLACK) | (y1 > height - 1 + BOX_SLACK)
        inverted = (x1 < x0) | (y1 < y0)
        for index in np.flatnonzero(outside | inverted):
            what = "inverted" if inverted[index] else f"outside its image of {_by(size)} pixels"
            box = ", ".join(f"{value:g}" for value in sample.boxes[index])
            text = f"the box [{box}] (x0, y0, x1, y1 from 0) of {sample.name} is {what}"
            self.problems.append(problem(sample.box_places[index], text))

    def _look_at_masks(self, sample: Sample, size: tuple[int, int]) -> None:
        places = [*sample.mask_places, *(sample.mask_places[-1:] * len(sample.ignore))]
        for mask, place in zip([*(sample.masks or ()), *sample.ignore], places, strict=True):
            if not isinstance(mask, Path):
                continue
            found = _size_of(mask, place, "mask")
            if isinstance(found, Problem):
                self.problems.append(found)
            elif not _same_shape(found, size):
                text = f"the mask {mask} is {_by(found)} pixels, its image {_by(size)}"
                self.problems.append(problem(place, text))
            else:
                self.scaled += found != size


def _same_shape(mask: tuple[int, int], image: tuple[int, int]) -> bool:
    """Returns whether one is the other scaled, within a pixel of the smaller one."""
    return abs(mask[0] * image[1] - mask[1] * image[0]) <= max(*mask, *image)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _size_of(path: Path, place: Place, what: str) -> tuple[int, int] | Problem:
    """Reads width and height of an image file, upright, from its header; or says what is wrong."""
    try:
        if not path.is_file():
            return problem(place, f"the {what} {path} is missing")
        size = size_of_file(path)
    except OSError as exc:
        return problem(place, f"the {what} {path} can't be read: {exc.strerror or exc}")
    if min(size) < 1:
        return problem(place, f"the {what} {path} is damaged, or no image of a kind that is read")
    return size
