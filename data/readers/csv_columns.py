"""Finds the columns of a CSV file that name images and classes, and reads its rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sigcam.core.errors import DataError
from sigcam.data.dataset import Place, Problem, problem
from sigcam.data.readers.text import rows_of

IMAGE_COLUMNS = (
    "image", "path", "file", "filename", "file_name", "image_name", "image_path", "image_id",
    "image_index",
)  # fmt: skip
ID_COLUMNS = ("class_index", "class_id")
NAME_COLUMNS = ("class", "label", "class_name")

_MORE_IDS = re.compile(r"(class_index|class_indices|class_id|class_ids)_?\d*")
_MORE_NAMES = re.compile(r"(class|classes|label|labels|class_names?|tags?|finding_labels)_?\d*")
_ZEROS, _ONES, _UNCERTAIN = {"0", "0.0"}, {"1", "1.0"}, {"-1", "-1.0"}
_SEPARATORS = ("|", ";")


class Row(NamedTuple):
    """A row of the file.

    Attributes:
        place: where it stands.
        image: as the row writes it.
        ids: of its classes, as text; empty without a column of ids.
        names: of its classes; empty without a column of names.
    """

    place: Place
    image: str
    ids: tuple[str, ...]
    names: tuple[str, ...]


class Rows(NamedTuple):
    """All rows of a file.

    Attributes:
        rows: those that can be used.
        have_ids: whether there is a column of ids.
        classes: the columns that are one class each, in order; empty where there are none.
        notes: what was passed over or taken for granted.
    """

    rows: list[Row]
    have_ids: bool
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class _Columns(NamedTuple):
    image: int
    ids: list[int]
    names: list[int]


_Lines = list[tuple[Place, list[str]]]


def read_rows(file: Path, problems: list[Problem], *, multi_label: bool) -> Rows:
    r"""Reads the rows of a CSV file.

    Args:
        file: the CSV file.
        problems: gets what is wrong with rows, which are left out.
        multi_label: whether a row may have several classes, or none.

    Raises:
        DataError: not CSV, or a header without columns of images and classes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "farm.csv").write_text("image,hen,dog\na.png,0,1\nb.png,1,0\n")
        ...     table = read_rows(Path(folder, "farm.csv"), [], multi_label=False)
        >>> table.classes, [row.names for row in table.rows]
        (('hen', 'dog'), [('dog',), ('hen',)])
    """
    reader = rows_of(file)
    header = next(reader, (Place(file), []))[1]
    lines: _Lines = []
    for place, cells in reader:
        if len(cells) == len(header):
            lines.append((place, cells))
        else:
            text = f"{len(header)} columns wanted, as in the header, got {len(cells)}"
            problems.append(problem(place, text))
    plain = [re.sub(r"\s+", "_", cell.lower()) for cell in header]
    columns = _columns(plain, multi_label)
    if columns.image >= 0 and (columns.ids or columns.names):
        _check_header(file, plain, columns, multi_label)
        return Rows(_named(lines, columns, problems, multi_label), bool(columns.ids))
    if columns.image >= 0:
        classes = [i for i in range(len(header)) if i != columns.image and _is_marked(lines, i)]
        if len(classes) >= (1 if multi_label else 2):
            return _marked(header, lines, columns.image, classes, problems)
    raise DataError(
        f"{file}, line 1: the header needs a column {' or '.join(IMAGE_COLUMNS[:3])} and one of "
        f"{', '.join(ID_COLUMNS + NAME_COLUMNS)}, or a column of 0 and 1 for each class; got "
        f"{', '.join(plain) or 'nothing'}"
    )


def _columns(header: Sequence[str], multi_label: bool) -> _Columns:
    image = next((header.index(name) for name in IMAGE_COLUMNS if name in header), -1)
    if multi_label:
        ids = [i for i, name in enumerate(header) if _MORE_IDS.fullmatch(name)]
        names = [i for i, name in enumerate(header) if _MORE_NAMES.fullmatch(name)]
        return _Columns(image, ids, names)
    first = [
        next(([header.index(name)] for name in wanted if name in header), [])
        for wanted in (ID_COLUMNS, NAME_COLUMNS)
    ]
    return _Columns(image, *first)


def _check_header(file: Path, header: Sequence[str], columns: _Columns, multi_label: bool) -> None:
    """Refuses a second column of the same name, of which only one would be read."""
    used = [columns.image, *([] if multi_label else [*columns.ids, *columns.names])]
    twice = [header[i] for i in used if Counter(header)[header[i]] > 1]
    if twice:
        advice = "" if multi_label else "; several classes an image are for the task multi-label"
        raise DataError(f"{file}, line 1: {twice[0]} stands there twice; leave one out{advice}")


def _named(
    lines: _Lines, columns: _Columns, problems: list[Problem], multi_label: bool
) -> list[Row]:
    """Reads rows whose cells name the classes."""
    chosen = columns.ids or columns.names
    separator = _separator([cells[i] for _, cells in lines for i in chosen], len(chosen))
    rows = []
    for place, cells in lines:
        ids, names = (
            tuple(part for i in those for part in _parts(cells[i], separator, multi_label))
            for those in (columns.ids, columns.names)
        )
        if not cells[columns.image] or not (multi_label or (ids if columns.ids else names)):
            problems.append(problem(place, f"an image and a class wanted, got {cells}"))
        elif not multi_label and any(_is_list(cells[i]) for i in chosen):
            text = (
                f"several classes in {', '.join(cells[i] for i in chosen)}; take the task "
                "multi-label, or give ids if that is the name of one"
            )
            problems.append(problem(place, text))
        else:
            rows.append(Row(place, cells[columns.image], ids, names))
    return rows


def _separator(cells: Sequence[str], columns: int) -> str:
    """Returns what separates classes in a cell: a comma only where nothing else does."""
    found = [one for one in _SEPARATORS if any(one in cell for cell in cells)]
    if found:
        return "[" + "".join(map(re.escape, found)) + "]"
    return "," if columns == 1 else "$"


def _parts(cell: str, separator: str, multi_label: bool) -> list[str]:
    parts = re.split(separator, cell) if multi_label else [cell]
    return [part.strip() for part in parts if part.strip()]


def _is_list(cell: str) -> bool:
    return len([part for part in re.split(r"[|;]", cell) if part.strip()]) > 1


def _is_marked(lines: _Lines, column: int) -> bool:
    """Returns whether a column holds marks of a class: 0 and 1, and -1 or nothing beside them."""
    cells = {cells[column] for _, cells in lines}
    return bool(cells & (_ZEROS | _ONES)) and cells <= _ZEROS | _ONES | _UNCERTAIN | {""}


def _marked(
    header: Sequence[str],
    lines: _Lines,
    image: int,
    columns: Sequence[int],
    problems: list[Problem],
) -> Rows:
    """Reads rows with a column of 0 and 1 for each class."""
    rows, blank = [], 0
    for place, cells in lines:
        uncertain = [header[i] for i in columns if cells[i] in _UNCERTAIN]
        if uncertain or not cells[image]:
            what = f"0 or 1 wanted for {uncertain[0]}, got -1" if uncertain else "an image wanted"
            problems.append(problem(place, what))
            continue
        blank += sum(not cells[i] for i in columns)
        names = tuple(header[i] for i in columns if cells[i] in _ONES)
        rows.append(Row(place, cells[image], (), names))
    others = [name for i, name in enumerate(header) if i != image and i not in columns]
    notes = (
        (f"empty cells taken for 0: {blank}", bool(blank)),
        (f"columns passed over, not of 0 and 1: {', '.join(others)}", bool(others)),
    )
    classes = tuple(header[i] for i in columns)
    return Rows(rows, False, classes, tuple(text for text, is_so in notes if is_so))
