"""Reads a CSV file of images and classes with a header; no boxes.

The classes of a row stand in a column of their own, in several, or in one column for each class
with 0 and 1 in it (`csv_columns.py`). For a task with one class an image, an image with two is a
problem; for one with several, the classes of all of an image's rows are put together.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sigcam.data.dataset import Dataset, Place, Problem, Sample, problem
from sigcam.data.readers.csv_columns import Row, read_rows
from sigcam.data.readers.text import class_id, is_whole_number

_ADVICE = "one class an image is wanted; take the task multi-label where an image may have several"


def read_csv(file: Path, root: Path | None = None, *, multi_label: bool = False) -> Dataset:
    r"""Reads a CSV file whose header names a column of images and one or more of classes.

    Columns: `image`, `path` or `file`; `class_index` or `class_id` (ids from 0 on); `class`,
    `label` or `class_name` (names; ids where all are whole numbers and there is no column of
    ids). Further columns don't matter. Without ids, a name's id is its place in sorted order.
    Without such columns, those that hold nothing but 0 and 1 are one class each, in their order.

    With several classes an image: more columns of the same names (`label1`, `label2`, ...), cells
    of several classes ("cat|dog", "cat;dog", or "cat,dog" in quotes), several rows of an image,
    several columns with a 1. An image without a class has none of them.

    Args:
        file: the CSV file, UTF-8, commas.
        root: folder that the images are relative to; None: the file's.
        multi_label: whether an image may have any number of classes.

    Raises:
        DataError: not CSV, or a header without these columns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "farm.csv").write_text("image,class\na.png,hen\nb.png,dog|hen\n")
        ...     data = read_csv(Path(folder, "farm.csv"), multi_label=True)
        >>> data.classes, data.label_sets
        (('dog', 'hen'), [(1,), (0, 1)])
    """
    problems: list[Problem] = []
    table = read_rows(file, problems, multi_label=multi_label)
    rows, have_ids = table.rows, table.have_ids
    if not have_ids and all(is_whole_number(name) for row in rows for name in row.names):
        rows = [row._replace(ids=row.names, names=()) for row in rows]
        have_ids = True
    if have_ids:
        labels, classes = _by_id(rows, problems)
    else:
        classes = table.classes or tuple(sorted({name for row in rows for name in row.names}))
        ids = {name: index for index, name in enumerate(classes)}
        labels = [tuple(ids[name] for name in row.names) for row in rows]
    base = root or file.parent
    merge = _united if multi_label else _single
    samples, notes = merge(rows, labels, base, problems)
    name = file.resolve().parent.name if file.stem == "labels" else file.stem
    return Dataset(
        name,
        file,
        "csv",
        classes or None,
        samples,
        tuple(problems),
        have_ids,
        (*table.notes, *notes),
        multi_label,
    )


def _by_id(
    rows: Sequence[Row], problems: list[Problem]
) -> tuple[list[tuple[int, ...] | None], tuple[str, ...]]:
    """Returns each row's ids, None for a wrong one; and the names if there is one for every id."""
    found: list[tuple[int, ...] | None] = []
    names: dict[int, str] = {}
    for row in rows:
        before = len(problems)
        labels = [class_id(text, row.place, problems) for text in row.ids]
        if len(row.names) == len(labels):
            for label, name in zip(labels, row.names, strict=True):
                if label is None or not name:
                    continue
                first = names.setdefault(label, name)
                if first != name:
                    text = f"class {label} is called {name!r} here and {first!r} before"
                    problems.append(problem(row.place, text))
        good = [label for label in labels if label is not None]
        found.append(tuple(good) if len(problems) == before else None)
    # Names with holes can't be told from a shorter list, so they count as unknown.
    seen = {label for labels in found if labels is not None for label in labels}
    whole = sorted(names) == list(range(len(names))) and seen == set(names)
    return found, tuple(names[i] for i in range(len(names))) if whole else ()


def _key(base: Path, image: str) -> str:
    """Returns the same text for every way to write an image's path ("./a.png" for "a.png")."""
    return os.path.normpath(base / image)


def _single(
    rows: Sequence[Row],
    labels: Sequence[tuple[int, ...] | None],
    base: Path,
    problems: list[Problem],
) -> tuple[list[Sample], tuple[str, ...]]:
    """Makes samples of one class each; images with several classes are problems."""
    found: dict[str, Sample] = {}
    bad: set[str] = set()
    repeated = 0
    for row, classes in zip(rows, labels, strict=True):
        if classes is None:
            continue
        key = _key(base, row.image)
        if len(classes) != 1:
            text = f"{row.image} has {len(classes)} classes; {_ADVICE}"
            problems.append(problem(row.place, text))
            bad.add(key)
            continue
        first = found.setdefault(key, Sample(row.image, base / row.image, row.place, classes[0]))
        if first.place is row.place:
            continue
        if first.label == classes[0]:
            repeated += 1
            continue
        text = f"{row.image} has another class here than in line {first.place.line}; {_ADVICE}"
        problems.append(problem(row.place, text))
        bad.add(key)
    note = f"rows that repeat an image with the same class, not counted again: {repeated}"
    samples = [sample for key, sample in found.items() if key not in bad]
    return samples, (note,) if repeated else ()


def _united(
    rows: Sequence[Row],
    labels: Sequence[tuple[int, ...] | None],
    base: Path,
    problems: list[Problem],
) -> tuple[list[Sample], tuple[str, ...]]:
    """Makes a sample of each image, with the classes of all of its rows."""
    del problems  # there is nothing to contradict
    places: dict[str, tuple[str, Place]] = {}
    found: dict[str, set[int]] = {}
    bad: set[str] = set()
    for row, classes in zip(rows, labels, strict=True):
        key = _key(base, row.image)
        if classes is None:
            bad.add(key)
            continue
        places.setdefault(key, (row.image, row.place))
        found.setdefault(key, set()).update(classes)
    samples = [
        Sample(name, base / name, place).of_classes(sorted(found[key]))
        for key, (name, place) in places.items()
        if key not in bad
    ]
    return samples, ()
