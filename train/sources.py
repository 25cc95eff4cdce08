"""Reading a training set: a folder of class folders, a CSV, or WSOL text files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.images.decode import SUFFIXES
from sigcam.train.data import ImageList, missing_images

IMAGE_COLUMNS = ("image", "path", "file")
ID_COLUMNS = ("class_index", "class_id")
CLASS_COLUMNS = ("class", "label", "class_name")
IDS_FILE = "image_ids.txt"
LABELS_FILE = "class_labels.txt"


def open_data(path: str | Path, root: str | Path | None = None) -> ImageList:
    """Reads a training set, finding out by looking which kind it is.

    Args:
        path: one of
            a CSV file with a column `image`, `path` or `file` and a column `class_index` or
            `class_id` (ids) and/or `class`, `label` or `class_name` (names, or ids if all
            are whole numbers);
            a folder with `image_ids.txt` and `class_labels.txt`, itself or in its subfolder
            `metadata/` (wsolevaluation, Choe et al. 2020; lines "path" and "path,class_id");
            names come from `classes.txt`, one a line, if there is one;
            a folder with one CSV file;
            a folder of class folders, each with the images of that class.
        root: folder that the images' paths are relative to; None: the folder of the CSV,
            or the folder around the text files.

    Raises:
        DataError: none of these; or a wrong content, with file and line.
    """
    where = Path(path)
    base = None if root is None else Path(root)
    if where.is_file():
        return _from_csv(where, base)
    if not where.is_dir():
        raise DataError(f"{where} doesn't exist; give a folder or a CSV file")
    for folder in (where, where / "metadata"):
        if (folder / IDS_FILE).is_file() or (folder / LABELS_FILE).is_file():
            return _from_wsol(folder, base)
    tables = sorted(where.glob("*.csv"))
    if len(tables) == 1:
        return _from_csv(tables[0], base)
    if tables:
        names = ", ".join(table.name for table in tables)
        raise DataError(f"{where} has several CSV files ({names}); give the path of one")
    return _from_folders(where)


def _from_folders(where: Path) -> ImageList:
    folders = sorted(f for f in where.iterdir() if f.is_dir() and not f.name.startswith("."))
    paths: list[str] = []
    ids: list[int] = []
    for class_id, folder in enumerate(folders):
        images = sorted(
            f.relative_to(where).as_posix()
            for f in folder.rglob("*")
            if f.suffix.lower() in SUFFIXES and f.is_file()
        )
        if not images:
            raise DataError(
                f"{folder} holds no images ({', '.join(sorted(SUFFIXES))}); a folder of class "
                "folders needs some in each"
            )
        paths += images
        ids += [class_id] * len(images)
    if not folders:
        raise DataError(
            f"{where} is none of: a folder of class folders, a folder with one CSV file, a folder "
            f"with {IDS_FILE} and {LABELS_FILE}"
        )
    names = tuple(folder.name for folder in folders)
    return ImageList(where.resolve().name, where, tuple(paths), tuple(ids), names, ids_given=False)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as exc:
        raise DataError(f"{file} is missing") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"{file} can't be read as UTF-8 text: {exc}") from exc


def _column(header: Sequence[str], wanted: Sequence[str]) -> int | None:
    return next((header.index(name) for name in wanted if name in header), None)


def _class_id(text: str, file: Path, line: int) -> int:
    try:
        value = int(text)
    except ValueError as exc:
        raise DataError(
            f"{file}, line {line}: a class id must be a whole number, got {text!r}"
        ) from exc
    if value < 0:
        raise DataError(f"{file}, line {line}: a class id must be at least 0, got {value}")
    return value


def _table(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file with their line numbers."""
    reader = csv.reader(_lines(file))
    try:
        for cells in reader:
            yield reader.line_num, cells
    except csv.Error as exc:
        raise DataError(f"{file}, line {reader.line_num}: not CSV: {exc}") from exc


def _from_csv(file: Path, root: Path | None) -> ImageList:
    reader = _table(file)
    header = [cell.strip().lower() for cell in next(reader, (1, []))[1]]
    image, ids, names = (_column(header, c) for c in (IMAGE_COLUMNS, ID_COLUMNS, CLASS_COLUMNS))
    if image is None or (ids is None and names is None):
        raise DataError(
            f"{file}, line 1: the header needs a column {' or '.join(IMAGE_COLUMNS)} and one of "
            f"{', '.join(ID_COLUMNS + CLASS_COLUMNS)}; got {', '.join(header) or 'nothing'}"
        )
    rows: list[tuple[int, str, str, str]] = []
    for line, cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(header):
            raise DataError(f"{file}, line {line}: {len(header)} columns wanted, got {len(cells)}")
        row = (
            cells[image].strip(),
            "" if ids is None else cells[ids].strip(),
            "" if names is None else cells[names].strip(),
        )
        if not row[0] or not (row[1] or row[2]):
            raise DataError(f"{file}, line {line}: an image and a class are wanted, got {cells}")
        rows.append((line, *row))
    if not rows:
        raise DataError(f"{file} lists no images")
    class_ids, class_names, given = _csv_classes(file, rows, ids is not None)
    return _existing(
        ImageList(
            file.stem if file.stem != "labels" else file.resolve().parent.name,
            root or file.parent,
            tuple(row[1] for row in rows),
            class_ids,
            class_names,
            given,
        )
    )


def _csv_classes(
    file: Path, rows: Sequence[tuple[int, str, str, str]], have_ids: bool
) -> tuple[tuple[int, ...], tuple[str, ...], bool]:
    """Ids, names and whether the ids stand in the file, from (line, image, id, name)."""
    if have_ids:
        ids = [_class_id(row[2], file, row[0]) for row in rows]
        by_id: dict[int, str] = {}
        for class_id, (line, _, _, name) in zip(ids, rows, strict=True):
            if name and by_id.setdefault(class_id, name) != name:
                raise DataError(
                    f"{file}, line {line}: class {class_id} is called {name!r} here and "
                    f"{by_id[class_id]!r} before"
                )
        return tuple(ids), _names_in_order(by_id, max(ids) + 1), True
    if all(row[3].lstrip("-").isdigit() for row in rows):
        return tuple(_class_id(row[3], file, row[0]) for row in rows), (), True
    names = sorted({row[3] for row in rows})
    position = {name: index for index, name in enumerate(names)}
    return tuple(position[row[3]] for row in rows), tuple(names), False


def _names_in_order(by_id: dict[int, str], count: int) -> tuple[str, ...]:
    # Names with holes can't be told from a shorter list, so they count as unknown.
    return tuple(by_id[i] for i in range(count)) if len(by_id) == count else ()


def _from_wsol(folder: Path, root: Path | None) -> ImageList:
    labels: dict[str, int] = {}
    file = folder / LABELS_FILE
    for line, text in enumerate(_lines(file), start=1):
        if text.strip():
            path, comma, class_id = text.strip().rpartition(",")
            if not comma or not path:
                raise DataError(f'{file}, line {line}: "path,class_id" wanted, got {text!r}')
            labels[path] = _class_id(class_id, file, line)
    file = folder / IDS_FILE
    paths = []
    for line, text in enumerate(_lines(file), start=1):
        if text.strip():
            if text.strip() not in labels:
                raise DataError(
                    f"{file}, line {line}: {text.strip()} has no class in {LABELS_FILE}"
                )
            paths.append(text.strip())
    if not paths:
        raise DataError(f"{file} lists no images")
    base = root or _wsol_root(folder, paths[0])
    names = _class_file(folder, base)
    return _existing(
        ImageList(base.resolve().name, base, tuple(paths), tuple(labels[p] for p in paths), names)
    )


def _wsol_root(folder: Path, first: str) -> Path:
    """The nearest folder upwards of the text files that has the first image."""
    around = (folder, *list(folder.resolve().parents)[:3])
    return next((base for base in around if (base / first).is_file()), folder)


def _class_file(folder: Path, root: Path) -> tuple[str, ...]:
    for file in (folder / "classes.txt", root / "classes.txt"):
        if file.is_file():
            return tuple(line.strip() for line in _lines(file) if line.strip())
    return ()


def _existing(data: ImageList) -> ImageList:
    missing = _missing(data.root, data.paths)
    if missing:
        raise missing_images(data.root, missing, len(data))
    return data


def _missing(root: Path, paths: Iterable[str]) -> list[str]:
    return [path for path in paths if not (root / path).is_file()]
