"""Reads the text files of the reference evaluation (wsolevaluation, Choe et al. 2020).

ImageNet-1K, CUB-200-2011, OpenImages-30K and Stanford Cars come in this form. A folder, one for
each split, has

    image_ids.txt       path
    class_labels.txt    path,class_id
    image_sizes.txt     path,width,height
    localization.txt    path,x0,y0,x1,y1            one line for each box, both ends inside
                        path,mask,ignore_mask       one line for each mask; the ignore mask on one
                                                    of an image's lines, nothing after the comma
                                                    on the others

More than the reference:
- `masks.txt` may hold the masks beside boxes in localization.txt.
- `path,mask` without a second comma names a trimap: 255 (or 1) is the object, 128 its border,
  which is ignored. The reference would take 128 for the object; write the second comma for that.
- Only image_ids.txt must be there. An image without a line in a file that has lines for others
  is a problem, which the reference meets as a KeyError. Box coordinates may have decimals.
- No image needs an ignore mask; the reference opens a folder as an image then.
- With several classes an image, class_labels.txt may have several lines for one; an image without
  a line has none of them. Boxes and masks of an image with several are left out, as
  localization.txt doesn't say which class they are of.
- Blanks around a line or between its commas don't count, nor do blank lines.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
    box_array,
    problem,
)
from sigcam.data.readers.text import (
    class_file,
    class_id,
    is_count,
    is_file,
    lines_of,
    numbers,
)

IDS_FILE = "image_ids.txt"
LABELS_FILE = "class_labels.txt"
SIZES_FILE = "image_sizes.txt"
LOCALIZATION_FILES = ("localization.txt", "masks.txt")
TRIMAP_BORDER = 128


@dataclass
class _Boxes:
    values: list[list[float]] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


@dataclass
class _Masks:
    paths: list[Path] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    ignore: Path | None = None
    trimaps: set[bool] = field(default_factory=set)


class _Reader:
    """Reads the files of one folder; images with a wrong line are kept in `bad`."""

    def __init__(self, folder: Path, mask_root: Path, multi_label: bool) -> None:
        self.folder = folder
        self.mask_root = mask_root
        self.multi_label = multi_label
        self.problems: list[Problem] = []
        self.bad: set[str] = set()
        self.names: dict[str, Place] = {}
        self.labels: dict[str, dict[int, Place]] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.boxes: dict[str, _Boxes] = {}
        self.masks: dict[str, _Masks] = {}

    def wrong(self, place: Place, name: str, text: str) -> None:
        self.problems.append(problem(place, text))
        self.bad.add(name)

    def read(self) -> None:
        for place, name in lines_of(self.folder / IDS_FILE):
            if name in self.names:
                self.problems.append(
                    problem(place, f"{name} stands in line {self.names[name].line} already")
                )
            else:
                self.names[name] = place
        if (self.folder / LABELS_FILE).is_file():
            self._read_labels()
        if (self.folder / SIZES_FILE).is_file():
            self._read_sizes()
        for file in LOCALIZATION_FILES:
            if (self.folder / file).is_file():
                self._read_localization(self.folder / file)
        self._look_for_gaps()

    def _read_labels(self) -> None:
        for place, line in lines_of(self.folder / LABELS_FILE):
            name, comma, text = line.rpartition(",")
            if not comma or not name:
                self.wrong(place, line, f'"path,class_id" wanted, got {line!r}')
                continue
            label = class_id(text.strip(), place, self.problems)
            if label is None:
                self.bad.add(name)
                continue
            found = self.labels.setdefault(name, {})
            if found and label not in found and not self.multi_label:
                [(first, other)] = found.items()
                text = (
                    f"{name} has class {label} here and {first} in line {other.line}; take the "
                    "task multi-label where an image may have several"
                )
                self.wrong(place, name, text)
            else:
                found.setdefault(label, place)

    def _read_sizes(self) -> None:
        for place, line in lines_of(self.folder / SIZES_FILE):
            name, *cells = line.split(",")
            cells = [cell.strip() for cell in cells]
            if len(cells) != 2 or not all(is_count(cell) and int(cell) for cell in cells):
                self.wrong(place, name, f'"path,width,height" wanted, got {line!r}')
                continue
            size = (int(cells[0]), int(cells[1]))
            if self.sizes.setdefault(name, size) != size:
                self.wrong(place, name, f"{name} has another size in a line before")

    def _read_localization(self, file: Path) -> None:
        for place, line in lines_of(file):
            name, *cells = (cell.strip() for cell in line.split(","))
            if len(cells) == 4:
                box = numbers(cells)
                if box is None:
                    self.wrong(place, name, f"x0,y0,x1,y1 must be numbers, got {','.join(cells)}")
                    continue
                boxes = self.boxes.setdefault(name, _Boxes())
                boxes.values.append(box)
                boxes.places.append(place)
            elif len(cells) in (1, 2) and cells[0]:
                self._add_mask(place, name, cells)
            else:
                wanted = '"path,x0,y0,x1,y1", "path,mask,ignore_mask" or "path,mask"'
                self.wrong(place, name, f"{wanted} wanted, got {line!r}")

    def _add_mask(self, place: Place, name: str, cells: list[str]) -> None:
        masks = self.masks.setdefault(name, _Masks())
        masks.paths.append(self.mask_root / cells[0])
        masks.places.append(place)
        masks.trimaps.add(len(cells) == 1)
        if len(masks.trimaps) == 2:
            self.wrong(place, name, f"{name} has a trimap (no second comma) beside other masks")
        if len(cells) == 2 and cells[1]:
            if masks.ignore is not None:
                self.wrong(place, name, f"{name} has a second ignore mask; join the two")
            masks.ignore = self.mask_root / cells[1]

    def _look_for_gaps(self) -> None:
        tables = (
            (self.labels, LABELS_FILE, "class"),
            (self.sizes, SIZES_FILE, "size"),
            (self.boxes, LOCALIZATION_FILES[0], "box"),
            (self.masks, " or ".join(LOCALIZATION_FILES), "mask"),
        )
        for table, file, what in tables:
            if not table or (self.multi_label and table is self.labels):
                continue
            for name, place in self.names.items():
                if name not in table and name not in self.bad:
                    self.wrong(place, name, f"{name} has no {what} in {file}")

    def sample(self, name: str, root: Path) -> Sample:
        labels = sorted(self.labels.get(name, ()))
        sample = Sample(name, root / name, self.names[name], size=self.sizes.get(name))
        sample = sample.of_classes(labels)
        if len(labels) > 1:
            return sample
        if name in self.boxes:
            boxes = self.boxes[name]
            sample = replace(sample, boxes=box_array(boxes.values), box_places=tuple(boxes.places))
        if name in self.masks:
            masks = self.masks[name]
            sample = replace(
                sample,
                masks=tuple(masks.paths),
                mask_places=tuple(masks.places),
                ignore=() if masks.ignore is None else (masks.ignore,),
                ignore_level=TRIMAP_BORDER if True in masks.trimaps else None,
            )
        return sample


def read_wsol(
    folder: Path,
    root: Path | None = None,
    mask_root: Path | None = None,
    *,
    multi_label: bool = False,
) -> Dataset:
    """Reads the text files of one split.

    Args:
        folder: with the text files.
        root: folder that images are relative to; None: the nearest one from `folder` upwards
            (four steps) that has the first image. Names of classes come from `classes.txt`
            in `folder`, its parent or `root`, one a line, if there is one.
        mask_root: folder that masks are relative to; None: `root`.
        multi_label: whether an image may have any number of classes.

    Raises:
        DataError: a file can't be read. What is wrong inside is in the result's `problems`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name, line in [(IDS_FILE, "a.jpg"), (LABELS_FILE, "a.jpg,3")]:
        ...         _ = Path(folder, name).write_text(line)
        ...     Path(folder, "a.jpg").touch()
        ...     (sample,) = read_wsol(Path(folder)).samples
        >>> sample.name, sample.label
        ('a.jpg', 3)
    """
    if not (folder / IDS_FILE).is_file():
        raise DataError(f"{folder / IDS_FILE} is missing: the list of the images, one a line")
    base = root or _root_of(folder)
    reader = _Reader(folder, mask_root or base, multi_label)
    reader.read()
    samples = [reader.sample(name, base) for name in reader.names if name not in reader.bad]
    notes = []
    if not reader.labels:
        notes.append(f"no classes: {LABELS_FILE} is missing or empty")
    unclear = [
        name
        for name, labels in reader.labels.items()
        if len(labels) > 1 and (name in reader.boxes or name in reader.masks)
    ]
    if unclear:
        notes.append(f"images of several classes whose boxes and masks aren't used: {len(unclear)}")
    trimaps = sum(True in masks.trimaps for masks in reader.masks.values())
    if trimaps:
        notes.append(f"trimaps: {trimaps}; their level {TRIMAP_BORDER} is ignored")
    return Dataset(
        base.resolve().name,
        folder,
        "wsol",
        class_file(folder, folder.parent, base),
        samples,
        tuple(reader.problems),
        notes=tuple(notes),
        multi_label=multi_label,
    )


def _root_of(folder: Path) -> Path:
    first = next((name for _, name in lines_of(folder / IDS_FILE)), "")
    around = (folder, *list(folder.absolute().parents)[:4])
    return next((base for base in around if first and is_file(base / first)), folder)
