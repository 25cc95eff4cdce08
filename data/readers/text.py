"""Reads text files of data sets: their lines, and the numbers on them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.data.dataset import Place, Problem, problem


def read_text(file: Path) -> str:
    r"""Returns a file's text, without a byte order mark.

    Raises:
        DataError: it is missing, unreadable or not UTF-8.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "classes.txt").write_bytes(b"\xef\xbb\xbfdog")
        ...     read_text(Path(folder, "classes.txt"))
        'dog'
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as exc:
        raise DataError(f"{file} is missing") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file} can't be read as UTF-8 text: {exc}") from exc


def lines_of(file: Path) -> Iterator[tuple[Place, str]]:
    r"""Yields the lines of a file that aren't blank, stripped, with their places.

    Raises:
        DataError: it is missing, unreadable or not UTF-8.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "classes.txt").write_text("dog\n\n hen \n")
        ...     [(place.line, text) for place, text in lines_of(Path(folder, "classes.txt"))]
        [(1, 'dog'), (3, 'hen')]
    """
    # Not splitlines, which also ends a line at characters that a file name may hold.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if line.strip():
            yield Place(file, number), line.strip()


def rows_of(file: Path) -> Iterator[tuple[Place, list[str]]]:
    r"""Yields the rows of a CSV file with the places of their last lines; blank ones are left out.

    Raises:
        DataError: it is missing, unreadable, or not CSV.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text('image,class\n"a, b.png", dog\n')
        ...     [(place.line, cells) for place, cells in rows_of(Path(folder, "a.csv"))]
        [(1, ['image', 'class']), (2, ['a, b.png', 'dog'])]
    """
    reader = csv.reader(io.StringIO(read_text(file), newline=""), strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield Place(file, reader.line_num), [cell.strip() for cell in cells]
    except csv.Error as exc:
        raise DataError(f"{file}, line {reader.line_num}: not CSV: {exc}") from exc


def class_id(text: str, place: Place, problems: list[Problem]) -> int | None:
    """Returns a class id, >= 0; None, and adds a problem, if it isn't one.

    Example:
        >>> problems = []
        >>> place = Place(Path("labels.csv"), 2)
        >>> class_id("7", place, problems), class_id("-1", place, problems), len(problems)
        (7, None, 1)
    """
    if is_count(text):
        return int(text)
    wanted = "a class id is a whole number from 0 on, of nine digits at most"
    problems.append(problem(place, f"{wanted}, got {text!r}"))
    return None


def is_count(text: str) -> bool:
    """Returns whether it is a whole number from 0 on, of a sensible length.

    Example:
        >>> is_count("12"), is_count("-1"), is_count("1e3")
        (True, False, False)
    """
    return text.isascii() and text.isdigit() and len(text) <= 9


def is_whole_number(text: str) -> bool:
    """Returns whether it is a whole number of any sign and length, and so no class's name.

    Example:
        >>> is_whole_number("-1"), is_whole_number("n01440764")
        (True, False)
    """
    return text.lstrip("-").isdigit()


def numbers(cells: list[str]) -> list[float] | None:
    """Returns finite numbers; None if there is anything else.

    Example:
        >>> numbers(["1", "2.5"]), numbers(["1", "nan"])
        ([1.0, 2.5], None)
    """
    try:
        found = [float(cell) for cell in cells]
    except ValueError:
        return None
    return found if all(math.isfinite(value) for value in found) else None


def is_file(path: Path) -> bool:
    r"""Returns whether a name out of a data set is that of a file, whatever it holds.

    Example:
        >>> is_file(Path("no\0name")), is_file(Path(__file__))
        (False, True)
    """
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def class_file(*folders: Path) -> tuple[str, ...] | None:
    r"""Returns the names in the first `classes.txt` there is, one a line; None without one.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "classes.txt").write_text("dog\nhen\n")
        ...     class_file(Path(folder, "deep"), Path(folder))
        ('dog', 'hen')
    """
    for folder in folders:
        if (folder / "classes.txt").is_file():
            return tuple(text for _, text in lines_of(folder / "classes.txt"))
    return None
