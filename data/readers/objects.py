"""Images with several objects of several classes: which class and which boxes count.

The label is the class of the object with the largest box (the first of equally large ones). The
boxes, and masks, are those of all objects of that class. Objects that the data set itself sets
apart (`difficult` in Pascal VOC, `iscrowd` in COCO) choose no label and are no boxes. An image
that has no other object is left out, which a note of the data set counts.
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
    """

    label: int
    box: tuple[float, float, float, float]
    place: Place
    apart: bool = False
    masks: tuple[Mask, ...] = ()

    @property
    def area(self) -> float:
        """Of the box, in pixels."""
        x0, y0, x1, y1 = self.box
        return (x1 - x0 + 1) * (y1 - y0 + 1)


def of_one_class(objects: Sequence[Object]) -> list[Object]:
    """The objects that count, all of one class; empty if none counts."""
    counting = [one for one in objects if not one.apart]
    if not counting:
        return []
    label = max(counting, key=lambda one: one.area).label
    return [one for one in counting if one.label == label]


def left_out_note(count: int) -> tuple[str, ...]:
    """The note that says how many images have no object that counts."""
    return (f"images left out, without an object that counts: {count}",) if count else ()
