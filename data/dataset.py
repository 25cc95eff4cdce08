"""What every reader of a data set returns: samples, and what is wrong with them.

Boxes are `[x0, y0, x1, y1]` in pixels of the upright image, counted from 0, with both ends
inside the box: a box of one pixel has x0 = x1, its width is x1 - x0 + 1. That is the convention of
the reference evaluation (wsolevaluation, Choe et al. 2020).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    """

    file: Path
    line: int | None
    text: str

    def __str__(self) -> str:
        return f"{Place(self.file, self.line)}: {self.text}"


def problem(place: Place, text: str) -> Problem:
    """A problem with what stands at a place."""
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
        label: its class, >= 0; None if the data set has no classes.
        boxes: float64 [M, 4], M >= 1, [x0, y0, x1, y1] with both ends inside (see above); None
            without boxes.
        box_places: where each box stands, M.
        masks: of the objects, at least one; None without masks.
        mask_places: where each mask stands.
        ignore: masks of what counts neither as the object nor as background.
        ignore_level: the grey level in `masks` that means the same (a trimap's border); or None.
        size: (width, height) of the upright image; None before it was looked at.
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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that was read.

    Attributes:
        name: what reports call it.
        format: "wsol", "folders", "csv", "voc" or "coco".
        classes: name of class 0, 1, ...; None if unknown.
        samples: the usable ones, in the data set's order.
        problems: everything that is wrong; what it concerns isn't in `samples`.
        ids_given: whether the class ids stand in the data. If not, they are positions in
            `classes`, and `match_classes` may map them to a model's names.
        notes: what a reader left out or took for granted, for the report.
    """

    name: str
    format: str
    classes: tuple[str, ...] | None
    samples: Sequence[Sample]
    problems: tuple[Problem, ...] = ()
    ids_given: bool = True
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)


def data_error(problems: Sequence[Problem], advice: str) -> DataError:
    """The error for problems: the first ones by file and line, and how many there are."""
    shown = "".join(f"\n  {one}" for one in problems[:SHOWN])
    rest = len(problems) - SHOWN
    more = f"\n  and {rest} more" if rest > 0 else ""
    things = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return DataError(f"{things} in the data set; {advice}:{shown}{more}")


def box_array(boxes: Iterable[Sequence[float]]) -> Array:
    """Boxes as float64 [M, 4]."""
    return np.asarray(list(boxes), np.float64).reshape(-1, 4)
