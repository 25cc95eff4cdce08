"""What every reader of a data set returns: samples, and what is wrong with them.

A reader leaves nothing out in silence. What it can't use is a `Problem` with file and line, what
it passes over or takes for granted is a note, and `left_out` says both in words.

Boxes are `[x0, y0, x1, y1]` in pixels of the upright image, counted from 0, with both ends
inside the box: a box of one pixel has x0 = x1, its width is x1 - x0 + 1. That is the convention of
the reference evaluation (wsolevaluation, Choe et al. 2020).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from sigcam.core.errors import DataError
from sigcam.core.types import Array

SHOWN = 20
"""How many problems an error lists; `Dataset.problems` has them all."""


class Place(NamedTuple):
    """Where something stands in a data set.

    Attributes:
        file: the file.
        line: counted from 1; None for the file as a whole, and in JSON.
        entry: what stands for the line in JSON, e.g. `annotations[17]`.

    Example:
        >>> str(Place(Path("labels.csv"), 3)), str(Place(Path("list.json"), entry="images[2]"))
        ('labels.csv, line 3', 'list.json, images[2]')
    """

    file: Path
    line: int | None = None
    entry: str = ""

    def __str__(self) -> str:
        where = f", line {self.line}" if self.line is not None else ""
        return f"{self.file}{where}" + (f", {self.entry}" if self.entry else "")


class Problem(NamedTuple):
    """Something that is wrong with a data set.

    Attributes:
        file: the file that says it, or that is damaged.
        line: counted from 1; None for the file as a whole, and in JSON.
        text: what is wrong, with the entry of a JSON file in front.

    Example:
        >>> str(Problem(Path("labels.csv"), 3, "an image and a class wanted"))
        'labels.csv, line 3: an image and a class wanted'
    """

    file: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{Place(self.file, self.line)}: {self.text}"


def problem(place: Place, text: str) -> Problem:
    """Returns the problem that `text` says of what stands at a place.

    Example:
        >>> problem(Place(Path("list.json"), entry="images[2]"), "no file_name").text
        'images[2]: no file_name'
    """
    return Problem(place.file, place.line, f"{place.entry}: {text}" if place.entry else text)


class Polygons(NamedTuple):
    """A mask as outlines.

    Attributes:
        rings: float64 [V, 2] each, (x, y) of its corners; pixel i reaches from i to i + 1. A
            pixel belongs to the mask if its centre lies inside an odd number of times in one ring.
    """

    rings: tuple[Array, ...]


class RunLengths(NamedTuple):
    """A mask as run lengths.

    Attributes:
        counts: int64 [M], lengths of runs of 0 and 1 in turn, beginning with 0, down the
            columns from left to right; their sum is the number of the image's pixels.
    """

    counts: Array


Drawn: TypeAlias = "Polygons | RunLengths"
"""A mask that is drawn in the annotations."""

Mask: TypeAlias = "Path | Drawn"
"""A mask in a file of its own, or drawn in the annotations."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One image and what is known about it.

    Attributes:
        name: as the data set writes it.
        path: of the image.
        place: where the data set names it.
        label: its class, >= 0; None if the data set has no classes, or the image, which may have
            any number of them, none.
        boxes: float64 [M, 4], M >= 1, [x0, y0, x1, y1] with both ends inside (see above); None
            without boxes.
        box_places: where each box stands, M.
        masks: of the objects, at least one; None without masks.
        mask_places: where each mask stands.
        ignore: masks of what counts neither as the object nor as background.
        ignore_level: the grey level in `masks` that means the same (a trimap's border); or None.
        size: (width, height) of the upright image; None before it was looked at.
        further: the same image as a sample of each class beside `label`, with that class's boxes
            and masks; only where an image may have several classes.
    """

    name: str
    path: Path
    place: Place
    label: int | None = None
    boxes: Array | None = None
    box_places: tuple[Place, ...] = ()
    masks: tuple[Mask, ...] | None = None
    mask_places: tuple[Place, ...] = ()
    ignore: tuple[Mask, ...] = ()
    ignore_level: int | None = None
    size: tuple[int, int] | None = None
    further: tuple[Sample, ...] = ()

    @property
    def labels(self) -> tuple[int, ...]:
        """Returns the ids of all classes of the image; empty where it has none.

        Example:
            >>> plain = Sample("a.png", Path("a.png"), Place(Path("list.csv")))
            >>> plain.of_classes([4, 2]).labels, plain.labels
            ((4, 2), ())
        """
        return tuple(one.label for one in self.by_class if one.label is not None)

    @property
    def by_class(self) -> tuple[Sample, ...]:
        """Returns the image as a sample of each of its classes; the sample itself without any."""
        return (self if not self.further else replace(self, further=()), *self.further)

    def of_classes(self, labels: Sequence[int]) -> Sample:
        """Returns the same image with other classes.

        Args:
            labels: their ids, any number of them.
        """
        plain = replace(self, further=())
        one, *others = [replace(plain, label=label) for label in labels or (None,)]
        return replace(one, further=tuple(others))


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that was read.

    Attributes:
        name: what reports call it.
        path: the file or folder that it was read from.
        format: "wsol", "folders", "csv", "voc" or "coco".
        classes: name of class 0, 1, ...; None if unknown.
        samples: the usable ones, in the data set's order.
        problems: everything that is wrong; what it concerns isn't in `samples`.
        ids_given: whether the class ids stand in the data. If not, they are positions in
            `classes`, and `match_classes` may map them to a model's names.
        notes: what a reader passed over or took for granted, for the report.
        multi_label: whether it was read for images of any number of classes.

    Example:
        >>> file = Path("labels.csv")
        >>> samples = [Sample(f"{i}.png", Path(f"{i}.png"), Place(file), i) for i in (2, 0)]
        >>> data = Dataset("farm", file, "csv", None, samples)
        >>> len(data), data.labels, data.num_classes
        (2, array([2, 0]), 3)
    """

    name: str
    path: Path
    format: str
    classes: tuple[str, ...] | None
    samples: Sequence[Sample]
    problems: tuple[Problem, ...] = ()
    ids_given: bool = True
    notes: tuple[str, ...] = ()
    multi_label: bool = False

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> Array:
        """Returns the class id of every sample, int64 [N], made anew at each call.

        Raises:
            DataError: samples without a class or with several, which it names with file and
                line; or no samples.
        """
        labelled(replace(self, multi_label=False))
        several = [one for one in self.samples if one.further]
        if several:
            raise data_error(
                [problem(one.place, f"{one.name} has {len(one.labels)}") for one in several],
                f"one class an image is wanted, {len(several)} of {len(self)} have several",
            )
        return np.array([one.label for one in self.samples], np.int64)

    @property
    def label_sets(self) -> list[tuple[int, ...]]:
        """Returns the class ids of every sample: any number of them, in no order that matters.

        Example:
            >>> sample = Sample("a.png", Path("a.png"), Place(Path("list.csv")), label=1)
            >>> Dataset("farm", Path("list.csv"), "csv", None, [sample]).label_sets
            [(1,)]
        """
        return [one.labels for one in self.samples]

    @property
    def num_classes(self) -> int:
        """Returns C: how many names there are, or one more than the largest class id.

        Raises:
            DataError: there are no names, and samples without a class.
        """
        if self.classes:
            return len(self.classes)
        labelled(self)
        return 1 + max(label for one in self.samples for label in one.labels)

    def fingerprint(self) -> str:
        """Computes a digest of which images these are, and in which order.

        It covers their names, sizes in bytes and times of change, not their contents: reading
        ImageNet once more costs longer than many an epoch of training. An image that is replaced
        changes its size or time. A copied data set counts as another one, which costs work that
        was done before, never a wrong result. Classes, boxes and masks don't matter.

        Returns:
            SHA-256 in hexadecimal digits.

        Raises:
            DataError: images are missing.
        """
        digest = hashlib.sha256()
        missing = []
        for sample in self.samples:
            try:
                stat = sample.path.stat()
            except OSError:
                missing.append(problem(sample.place, f"the image {sample.path} is missing"))
                continue
            # File names may hold bytes that aren't UTF-8.
            digest.update(os.fsencode(f"{sample.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        if missing:
            raise data_error(missing, missing_advice(len(missing), len(self)))
        return digest.hexdigest()


def labelled(dataset: Dataset) -> Dataset:
    """Returns the data set itself, if its samples have classes: each one, or for multi-label any.

    Raises:
        DataError: samples without a class, which it names with file and line; or no samples.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), Place(Path("list.csv")), label=1)
        >>> data = Dataset("farm", Path("list.csv"), "csv", None, [sample])
        >>> labelled(data) is data
        True
    """
    if not dataset.samples:
        raise DataError(f"the data set {dataset.name!r} ({dataset.path}) has no images")
    without = [one for one in dataset.samples if one.label is None]
    if len(without) == len(dataset) if dataset.multi_label else without:
        why = "".join(f"; {note}" for note in dataset.notes)
        raise data_error(
            [problem(one.place, f"{one.name} has no class") for one in without],
            f"{'at least one' if dataset.multi_label else 'every'} image needs a class, "
            f"{len(without)} of "
            f"{len(dataset)} have none{why}",
        )
    return dataset


def data_error(problems: Sequence[Problem], advice: str) -> DataError:
    """Makes the error for problems: the first ones by file and line, and how many there are.

    Args:
        problems: at least one. What is said several times (a class folder's name for each of its
            images) counts once.
        advice: what to do about them.

    Example:
        >>> print(data_error([Problem(Path("a.csv"), 2, "no class")], "every image needs one"))
        1 problem in the data set; every image needs one:
          a.csv, line 2: no class
    """
    distinct = list(dict.fromkeys(problems))
    shown = "".join(f"\n  {one}" for one in distinct[:SHOWN])
    rest = len(distinct) - SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    things = "1 problem" if len(distinct) == 1 else f"{len(distinct)} problems"
    return DataError(f"{things} in the data set; {advice}:{shown}{more}")


def missing_advice(missing: int, total: int) -> str:
    """Returns what to do about images that the data names and the disk doesn't have.

    Example:
        >>> missing_advice(2, 5).partition(":")[0]
        '2 of 5 images are missing'
    """
    return (
        f"{missing} of {total} images are missing: put them there, correct the list, or give the "
        "folder that its paths are relative to (root)"
    )


def unread(sample: Sample, error: object) -> Problem:
    """Returns the problem of an image whose header is good and that can't be decoded.

    Example:
        >>> sample = Sample("a.png", Path("a.png"), Place(Path("list.csv"), 2))
        >>> str(unread(sample, "it is truncated"))
        "list.csv, line 2: a.png can't be read: it is truncated"
    """
    return problem(sample.place, f"{sample.name} can't be read: {error}")


def left_out(
    problems: Sequence[Problem], notes: Sequence[str] = (), most: int | None = None
) -> list[str]:
    """Says what was left out of a data set and why, and what was taken for granted.

    Args:
        problems: of the data set, or of those of its images that couldn't be decoded later.
        notes: of the data set.
        most: how many problems are said; None for all.

    Returns:
        A line for each of them, and one for the number of those that aren't said.

    Example:
        >>> problems = [Problem(Path("a.csv"), line, "no class") for line in (2, 5, 6)]
        >>> left_out(problems, notes=["boxes begin at 1"], most=1)
        ['left out: a.csv, line 2: no class', 'left out: 2 more', 'boxes begin at 1']
    """
    distinct = list(dict.fromkeys(problems))
    lines = [f"left out: {one}" for one in distinct[:most]]
    rest = len(distinct) - len(lines)
    return [*lines, *([f"left out: {rest} more"] if rest else []), *notes]


def box_array(boxes: Iterable[Sequence[float]]) -> Array:
    """Returns boxes as float64 [M, 4].

    Example:
        >>> box_array([(0, 0, 9, 4)]), box_array([]).shape
        (array([[0., 0., 9., 4.]]), (0, 4))
    """
    return np.asarray(list(boxes), np.float64).reshape(-1, 4)
