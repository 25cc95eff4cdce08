"""Reads COCO's JSON of instances: images, annotations with boxes and segmentations, categories.

A box `[x, y, width, height]` in COCO reaches from the left edge of pixel x to the right edge of
pixel x + width - 1, with decimals. Here both ends are inside: x0 = x, x1 = x + width - 1, and
x1 = x0 for boxes narrower than a pixel. Category ids become 0..C-1 in their order.

Several classes or none in an image: see `objects.py`. Masks are those of the objects that count, as
polygons or run lengths (plain or compressed); crowds of the same class (`iscrowd`) make the ignore
mask. Images have masks only if every object that counts has one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from sigcam.core.errors import DataError
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
    box_array,
    problem,
)
from sigcam.data.readers.objects import (
    Object,
    by_class,
    has_several_classes,
    notes_of,
    of_one_class,
)
from sigcam.data.readers.text import is_file, read_text
from sigcam.data.segmentation import BadSegmentation, read_segmentation

LISTS = ("images", "annotations", "categories")


def read_coco(file: Path, root: Path | None = None, *, multi_label: bool = False) -> Dataset:
    """Reads a JSON file of COCO's instances.

    Args:
        file: the JSON file. It is read whole.
        root: folder that the images are relative to; None: the first of the file's folder,
            the one above, and the folders in these, that has the first image.
        multi_label: whether an image has every class of its objects, not only that of the
            largest box.

    Raises:
        DataError: not JSON, or without the lists images, annotations and categories.

    Example:
        >>> import tempfile
        >>> image = {"id": 7, "file_name": "a.png", "width": 30, "height": 20}
        >>> box = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [0, 0, 10, 5], "iscrowd": 0}
        >>> dog = {"id": 3, "name": "dog"}
        >>> lists = {"images": [image], "annotations": [box], "categories": [dog]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "list.json").write_text(json.dumps(lists))
        ...     data = read_coco(Path(folder, "list.json"))
        >>> data.classes, data.samples[0].boxes
        (('dog',), array([[0., 0., 9., 4.]]))
    """
    content = _content(file)
    problems: list[Problem] = []
    reader = _Reader(file, problems)
    categories = reader.by_id(content["categories"], "categories", "name")
    images = reader.by_id(content["images"], "images", "file_name")
    order = sorted(categories)
    reader.labels = {category: label for label, category in enumerate(order)}
    reader.sizes = {key: _size(image) for key, (_, image) in images.items()}
    objects: dict[int, list[Object]] = {key: [] for key in images}
    bad = reader.read_annotations(content["annotations"], objects)
    base = root or _root_of(file, [image["file_name"] for _, image in images.values()])
    samples, without, several = [], 0, 0
    for key, (place, image) in images.items():
        if key in bad:
            continue
        name = image["file_name"]
        plain = Sample(name, base / name, place, size=reader.sizes[key])
        if multi_label:
            samples.append(_of_every_class(plain, objects[key]))
            continue
        counting = of_one_class(objects[key])
        if not counting:
            without += 1
            continue
        several += has_several_classes(objects[key])
        samples.append(_of_class(plain, counting[0].label, counting, objects[key]))
    return Dataset(
        file.stem,
        file,
        "coco",
        tuple(categories[key][1]["name"] for key in order),
        samples,
        tuple(problems),
        ids_given=False,
        notes=notes_of(without, several),
        multi_label=multi_label,
    )


def _content(file: Path) -> Mapping[str, list[Any]]:
    try:
        content = json.loads(read_text(file))
    except json.JSONDecodeError as exc:
        raise DataError(f"{file}, line {exc.lineno}: not JSON: {exc.msg}") from exc
    except ValueError as exc:  # whole numbers of thousands of digits
        raise DataError(f"{file}: not COCO: {exc}") from exc
    except RecursionError as exc:
        raise DataError(f"{file}: not COCO: it is nested too deep") from exc
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in LISTS):
        raise DataError(
            f"{file}: COCO instances have the lists {', '.join(LISTS)}; name the data set's format "
            "if this file is none of its own"
        )
    return content


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    if _is_id(width) and _is_id(height) and min(width, height) > 0 and max(width, height) < 2**31:
        return width, height
    return None


def _root_of(file: Path, names: Sequence[str]) -> Path:
    near = (file.parent, file.absolute().parent.parent)
    inside = [sub for folder in near for sub in sorted(folder.iterdir()) if sub.is_dir()]
    first = names[0] if names else None
    return next((f for f in (*near, *inside) if first and is_file(f / first)), file.parent)


def _of_every_class(plain: Sample, objects: Sequence[Object]) -> Sample:
    """Returns an image with the boxes and masks of each class that it has an object of."""
    made = [_of_class(plain, label, some, objects) for label, some in by_class(objects)]
    return replace(made[0], further=tuple(made[1:])) if made else plain


def _of_class(
    plain: Sample, label: int, counting: Sequence[Object], objects: Sequence[Object]
) -> Sample:
    """Returns an image with the boxes and masks of the objects of one class that count."""
    if not counting:
        return replace(plain, label=label)
    drawn = all(one.masks for one in counting)
    crowds = [m for one in objects if one.apart and one.label == label for m in one.masks]
    return replace(
        plain,
        label=label,
        boxes=box_array(one.box for one in counting),
        box_places=tuple(one.place for one in counting),
        masks=tuple(mask for one in counting for mask in one.masks) if drawn else None,
        mask_places=tuple(one.place for one in counting for _ in one.masks) if drawn else (),
        ignore=tuple(crowds) if drawn else (),
    )


class _Reader:
    def __init__(self, file: Path, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        self.labels: dict[int, int] = {}
        self.sizes: dict[int, tuple[int, int] | None] = {}

    def by_id(
        self, entries: Sequence[Any], what: str, text_field: str
    ) -> dict[int, tuple[Place, dict[str, Any]]]:
        """Entries by their ids; those without an id and a text, and repeated ones, are problems."""
        found: dict[int, tuple[Place, dict[str, Any]]] = {}
        texts: dict[str, Place] = {}
        for index, entry in enumerate(entries):
            place = Place(self.file, None, f"{what}[{index}]")
            text = entry.get(text_field) if isinstance(entry, dict) else None
            if not isinstance(text, str) or not text or not _is_id(entry.get("id")):
                wanted = f"a whole number as id and a {text_field} wanted"
                self.problems.append(problem(place, wanted))
            elif entry["id"] in found:
                before = found[entry["id"]][0].entry
                self.problems.append(problem(place, f"id {entry['id']} is that of {before} too"))
            elif text in texts:
                before = texts[text].entry
                self.problems.append(problem(place, f"{text} stands in {before} already"))
            else:
                found[entry["id"]] = place, entry
                texts[text] = place
        return found

    def read_annotations(
        self, entries: Sequence[Any], objects: Mapping[int, list[Object]]
    ) -> set[int]:
        """Adds objects to their images; returns the images with a wrong one."""
        bad = set()
        for index, entry in enumerate(entries):
            place = Place(self.file, None, f"annotations[{index}]")
            image = entry.get("image_id") if isinstance(entry, dict) else None
            if not _is_id(image) or image not in objects:
                self.problems.append(problem(place, f"there is no image with the id {image!r}"))
                continue
            found = self._object(entry, place, image)
            if isinstance(found, str):
                self.problems.append(problem(place, found))
                bad.add(image)
            else:
                objects[image].append(found)
        return bad

    def _object(self, entry: Mapping[str, Any], place: Place, image: int) -> Object | str:
        """Reads an object, or says what is wrong with it."""
        category = entry.get("category_id")
        if not _is_id(category) or category not in self.labels:
            return f"a label without a class: there is no category with the id {category!r}"
        box = entry.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
            return f"bbox must be four numbers, x, y, width, height, got {box!r}"
        x, y, width, height = box
        if width <= 0 or height <= 0:
            return f"bbox must have a width and a height above 0, got {box}"
        try:
            masks = read_segmentation(entry.get("segmentation"), self.sizes[image])
        except BadSegmentation as exc:
            return f"segmentation: {exc}"
        corner = max(x, x + width - 1), max(y, y + height - 1)
        return Object(
            self.labels[category], (x, y, *corner), place, bool(entry.get("iscrowd")), masks
        )


def _is_finite(value: object) -> bool:
    # Whole numbers of any length are JSON; an image has no side of a billion pixels.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
