"""Reads a CSV file of images and classes with a header; no boxes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sigcam.core.errors import DataError
from sigcam.data.dataset import Dataset, Place, Problem, Sample, problem
from sigcam.data.readers.text import class_id, is_whole_number, rows_of

IMAGE_COLUMNS = ("image", "path", "file")
ID_COLUMNS = ("class_index", "class_id")
NAME_COLUMNS = ("class", "label", "class_name")


class _Row(NamedTuple):
    place: Place
    image: str
    id: str
    name: str


def read_csv(file: Path, root: Path | None = None) -> Dataset:
    r"""Reads a CSV file whose header names a column of images and one or two of classes.

    Columns: `image`, `path` or `file`; `class_index` or `class_id` (ids from 0 on); `class`,
    `label` or `class_name` (names; ids where all are whole numbers and there is no column of
    ids). Further columns don't matter. Without ids, a name's id is its place in sorted order.

    Args:
        file: the CSV file, UTF-8, commas.
        root: folder that the images are relative to; None: the file's.

    Raises:
        DataError: not CSV, or a header without these columns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "farm.csv").write_text("image,class\na.png,hen\nb.png,dog\n")
        ...     data = read_csv(Path(folder, "farm.csv"))
        >>> data.classes, data.labels
        (('dog', 'hen'), array([1, 0]))
    """
    problems: list[Problem] = []
    rows, have_ids = _read_rows(file, problems)
    if not have_ids and all(is_whole_number(row.name) for row in rows):
        rows = [row._replace(id=row.name, name="") for row in rows]
        have_ids = True
    if have_ids:
        labels, classes = _by_id(rows, problems)
    else:
        classes = tuple(sorted({row.name for row in rows}))
        ids = {name: index for index, name in enumerate(classes)}
        labels = [ids[row.name] for row in rows]
    base = root or file.parent
    samples = [
        Sample(row.image, base / row.image, row.place, label)
        for row, label in zip(rows, labels, strict=True)
        if label is not None
    ]
    name = file.resolve().parent.name if file.stem == "labels" else file.stem
    return Dataset(name, file, "csv", classes or None, samples, tuple(problems), have_ids)


def _read_rows(file: Path, problems: list[Problem]) -> tuple[list[_Row], bool]:
    reader = rows_of(file)
    header = [cell.lower() for cell in next(reader, (Place(file), []))[1]]
    image, ids, names = (_column(header, c) for c in (IMAGE_COLUMNS, ID_COLUMNS, NAME_COLUMNS))
    if image is None or (ids is None and names is None):
        raise DataError(
            f"{file}, line 1: the header needs a column {' or '.join(IMAGE_COLUMNS)} and one of "
            f"{', '.join(ID_COLUMNS + NAME_COLUMNS)}; got {', '.join(header) or 'nothing'}"
        )
    rows: list[_Row] = []
    seen: dict[str, Place] = {}
    for place, cells in reader:
        if len(cells) != len(header):
            text = f"{len(header)} columns wanted, as in the header, got {len(cells)}"
            problems.append(problem(place, text))
            continue
        row = _Row(
            place,
            cells[image],
            "" if ids is None else cells[ids],
            "" if names is None else cells[names],
        )
        if not row.image or not (row.name if ids is None else row.id):
            problems.append(problem(place, f"an image and a class wanted, got {cells}"))
        elif row.image in seen:
            text = f"{row.image} stands in line {seen[row.image].line} already"
            problems.append(problem(place, text))
        else:
            seen[row.image] = place
            rows.append(row)
    return rows, ids is not None


def _column(header: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((header.index(name) for name in wanted if name in header), None)


def _by_id(
    rows: Sequence[_Row], problems: list[Problem]
) -> tuple[list[int | None], tuple[str, ...]]:
    """Returns each row's id, and the names in order if there is one for every id."""
    found: list[int | None] = []
    names: dict[int, str] = {}
    for row in rows:
        label = class_id(row.id, row.place, problems)
        if label is not None and row.name:
            before = names.setdefault(label, row.name)
            if before != row.name:
                text = f"class {label} is called {row.name!r} here and {before!r} before"
                problems.append(problem(row.place, text))
                label = None
        found.append(label)
    # Names with holes can't be told from a shorter list, so they count as unknown.
    whole = sorted(names) == list(range(len(names))) and set(found) - {None} == set(names)
    return found, tuple(names[i] for i in range(len(names))) if whole else ()
