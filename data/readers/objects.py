"""Chooses which classes and which boxes count in images with several objects.

Where an image has one class, the label is the class of the object with the largest box (the first
of equally large ones). The boxes, and masks, are those of all objects of that class. Objects that
the data set itself sets apart (`difficult` in Pascal VOC, `iscrowd` in COCO) choose no label and
are no boxes. An image that has no other object is left out. Notes of the data set count these
images, and those of which further classes don't count.

Where an image may have several, each class of an object counts, with the boxes of its own objects;
one whose objects are all set apart is there too, without boxes. An image without objects has none
of the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sigcam.data.dataset import Mask, Place


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object of an image.

    Attributes:
        label: its class, >= 0.
        box: (x0, y0, x1, y1), counted from 0, both ends inside.
        place: where it stands.
        apart: whether the data set sets it apart.
        masks: as drawn in the annotations; empty without.

    Example:
        >>> from pathlib import Path
        >>> Object(0, (0, 0, 9, 4), Place(Path("a.xml"), 7)).area
        50
    """

    label: int
    box: tuple[float, float, float, float]
    place: Place
    apart: bool = False
    masks: tuple[Mask, ...] = ()

    @property
    def area(self) -> float:
        """Returns the area of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0 + 1) * (y1 - y0 + 1)


def of_one_class(objects: Sequence[Object]) -> list[Object]:
    """Returns the objects that count, all of one class; none if none counts.

    Example:
        >>> from pathlib import Path
        >>> place = Place(Path("a.xml"))
        >>> small, large = Object(0, (0, 0, 1, 1), place), Object(1, (0, 0, 9, 9), place)
        >>> of_one_class([small, large]) == [large]
        True
    """
    counting = [one for one in objects if not one.apart]
    if not counting:
        return []
    label = max(counting, key=lambda one: one.area).label
    return [one for one in counting if one.label == label]


def by_class(objects: Sequence[Object]) -> list[tuple[int, list[Object]]]:
    """Returns each class that an image has an object of, and those of these objects that count.

    Example:
        >>> from pathlib import Path
        >>> place = Place(Path("a.xml"))
        >>> crowd, dog = Object(3, (0, 0, 9, 9), place, apart=True), Object(1, (0, 0, 9, 9), place)
        >>> by_class([crowd, dog]) == [(1, [dog]), (3, [])]
        True
    """
    return [
        (label, [one for one in objects if one.label == label and not one.apart])
        for label in sorted({one.label for one in objects})
    ]


def has_several_classes(objects: Sequence[Object]) -> bool:
    """Returns whether objects that aren't set apart are of more than one class.

    Example:
        >>> from pathlib import Path
        >>> objects = [Object(label, (0, 0, 1, 1), Place(Path("a.xml"))) for label in (0, 1)]
        >>> has_several_classes(objects), has_several_classes(objects[:1])
        (True, False)
    """
    return len({one.label for one in objects if not one.apart}) > 1


def notes_of(without: int, several: int) -> tuple[str, ...]:
    """Makes the notes of a data set of objects.

    Args:
        without: how many images have no object that counts.
        several: how many have objects of several classes.

    Example:
        >>> notes_of(3, 0)
        ('images left out, without an object that counts: 3',)
    """
    notes = []
    if without:
        notes.append(f"images left out, without an object that counts: {without}")
    if several:
        notes.append(f"images of several classes, that of the largest box taken: {several}")
    return tuple(notes)
