"""Opens a data set of any form, finding out by looking which it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from sigcam.core.annotations import checked
from sigcam.core.errors import DataError, UsageError
from sigcam.data.checks import check_dataset
from sigcam.data.dataset import Dataset
from sigcam.data.readers.coco import read_coco
from sigcam.data.readers.csv_labels import read_csv
from sigcam.data.readers.folders import class_folders, read_folders
from sigcam.data.readers.voc import read_voc
from sigcam.data.readers.wsol import IDS_FILE, LABELS_FILE, read_wsol
from sigcam.images.listing import entries_of, is_litter
from sigcam.images.suffixes import is_image


@dataclass(frozen=True)
class _Request:
    path: Path
    metadata: Path | None = None
    split: str | None = None
    root: Path | None = None
    mask_root: Path | None = None
    first_pixel: int | None = None
    multi_label: bool = False
    written: tuple[Path, ...] = ()

    def options(self) -> set[str]:
        """Returns the names of the options that were given and that some formats lack."""
        common = ("path", "multi_label", "written")
        return {k for k, v in vars(self).items() if k not in common and v is not None}


@dataclass(frozen=True)
class _Format:
    """How to find and open one format.

    Attributes:
        wanted: what it looks like.
        options: of `open_dataset`, those that it understands.
        find: the file or folder to read; None if the path isn't of this format.
        read: reads what was found.
    """

    wanted: str
    options: frozenset[str]
    find: Callable[[_Request], Path | None]
    read: Callable[[Path, _Request], Dataset]


@checked
def open_dataset(
    path: str | Path,
    format: str = "auto",  # noqa: A002  (the name that callers and the command line use)
    *,
    metadata: str | Path | None = None,
    split: str | None = None,
    root: str | Path | None = None,
    mask_root: str | Path | None = None,
    first_pixel: int | None = None,
    multi_label: bool = False,
    skip_bad: bool = False,
    written: Collection[str | Path] = (),
) -> Dataset:
    """Opens a data set for training or evaluation and checks it (`check_dataset`).

    >>> import tempfile
    >>> import cv2, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("dog", "cat"):
    ...         Path(folder, name).mkdir()
    ...         grey = numpy.full((20, 30), 90, numpy.uint8)
    ...         _ = cv2.imwrite(str(Path(folder, name, "1.png")), grey)
    ...     data = open_dataset(folder)
    >>> data.format, data.classes
    ('folders', ('cat', 'dog'))
    >>> [(sample.name, sample.label, sample.size) for sample in data.samples]
    [('cat/1.png', 0, (30, 20)), ('dog/1.png', 1, (30, 20))]

    Args:
        path: a folder; or the CSV or JSON file itself.
        format: "wsol", "voc", "coco", "csv" or "folders"; "auto" takes the first of these, in
            this order, that the path looks like.
        metadata: wsol: the folder of text files; without it `path`/metadata, or `path`.
        split: wsol: folder in the folder of text files; voc: file in ImageSets/Main; coco: part
            of the JSON's name, as in instances_SPLIT.json; folders: folder with class folders.
        root: wsol, coco, csv: folder that the images are relative to, where it isn't found.
        mask_root: wsol: folder that masks are relative to, where it isn't the images'.
        first_pixel: voc: number of the first row and column in the boxes, 1 (VOC, the default)
            or 0 (ImageNet).
        multi_label: whether an image may have any number of classes: several rows, lines or
            marked columns of one image, or objects of several classes. If not, an image with two
            is a problem, or in VOC and COCO has the class of its largest box.
        skip_bad: whether samples with problems are left out instead of raising.
        written: folders that the caller writes to, which are no part of the data set where they
            lie in it.

    Returns:
        The data set, every sample with its size.

    Raises:
        DataError: nothing there, no format fits, a folder that can't be read, or there are
            problems, with file and line.
        UsageError: an unknown format, or an option that the format doesn't have.
    """
    if first_pixel not in (None, 0, 1):
        raise UsageError(f"first_pixel is 0 or 1, got {first_pixel}")
    request = _Request(
        Path(path), _path(metadata), split, _path(root), _path(mask_root), first_pixel, multi_label,
        tuple(Path(one) for one in written),
    )  # fmt: skip
    if format != "auto" and format not in FORMATS:
        raise UsageError(f"format must be auto, {', '.join(FORMATS)}, got {format!r}")
    for given in (request.path, request.metadata, request.root, request.mask_root):
        if given is not None and not given.exists():
            raise DataError(f"{given} doesn't exist; check the path")
    try:
        dataset = _with_note(_read(request, format))
    except OSError as exc:
        raise DataError(f"{exc.filename} can't be read: {exc.strerror or exc}") from exc
    return check_dataset(dataset, skip_bad)


def _with_note(dataset: Dataset) -> Dataset:
    """Adds how many images have none of the classes, which may be meant or forgotten."""
    without = sum(sample.label is None for sample in dataset.samples)
    if not dataset.multi_label or not without or without == len(dataset):
        return dataset
    note = f"images of none of the classes: {without}"
    return replace(dataset, notes=(*dataset.notes, note))


def _read(request: _Request, wanted: str) -> Dataset:
    name, found = _find(request, wanted)
    surplus = request.options() - FORMATS[name].options
    if surplus:
        raise UsageError(
            f"{request.path} is read as {name}, which has no {' or '.join(sorted(surplus))}; "
            "leave that out, or name another format"
        )
    return FORMATS[name].read(found, request)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _find(request: _Request, name: str) -> tuple[str, Path]:
    names = list(FORMATS) if name == "auto" else [name]
    for one in names:
        found = FORMATS[one].find(request)
        if found is not None:
            return one, found
    wanted = "".join(f"\n  {one}: {FORMATS[one].wanted}" for one in names)
    split = f" with the split {request.split!r}" if request.split is not None else ""
    raise DataError(
        f"{request.path}{split} is no data set of these forms:{wanted}\nIt has: "
        f"{_content(request.path)}"
    )


def _content(path: Path) -> str:
    if path.is_file():
        return f"it is a file, {path.name}"
    names = sorted(f.name + ("/" if f.is_dir() else "") for f in path.iterdir())
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") if names else "nothing"


def _find_wsol(request: _Request) -> Path | None:
    bases = [request.metadata] if request.metadata else [request.path / "metadata", request.path]
    for base in bases:
        folder = base / request.split if request.split is not None else base
        if (folder / IDS_FILE).is_file():
            return folder
    for base in bases:
        splits = [f.parent.name for f in sorted(base.glob(f"*/{IDS_FILE}"))]
        if splits:
            wanted = "give one as split" if request.split is None else f"no {request.split!r}"
            raise DataError(f"{base} has the splits {', '.join(splits)}; {wanted}")
    # A list of classes alone is half a data set; the reader says which file is missing.
    return next((base for base in bases if (base / LABELS_FILE).is_file()), None)


def _read_wsol(folder: Path, request: _Request) -> Dataset:
    # Where the text files lie beside the images, these are relative to the path itself.
    beside = request.metadata is not None or folder.is_relative_to(request.path / "metadata")
    root = request.root or (request.path if beside else None)
    return read_wsol(folder, root, request.mask_root, multi_label=request.multi_label)


def _find_voc(request: _Request) -> Path | None:
    folders = (request.path / "Annotations", request.path / "JPEGImages")
    return request.path if all(folder.is_dir() for folder in folders) else None


def _find_coco(request: _Request) -> Path | None:
    if request.path.is_file():
        return request.path if request.path.suffix.lower() == ".json" else None
    split = request.split or ""
    files = [
        file
        for folder in (request.path, request.path / "annotations")
        for file in sorted(folder.glob("*.json"))
        if not is_litter(file.name)
        and split in file.stem
        and not file.stem.startswith(("captions", "person_keypoints"))
    ]
    exact = [file for file in files if file.stem in (split, f"instances_{split}")]
    return _only(exact or files, "JSON files", request.path)


def _find_csv(request: _Request) -> Path | None:
    if request.path.is_file():
        return request.path if request.path.suffix.lower() == ".csv" else None
    files = sorted(file for file in request.path.glob("*.csv") if not is_litter(file.name))
    return _only(files, "CSV files", request.path)


def _only(files: list[Path], what: str, path: Path) -> Path | None:
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise DataError(f"{path} has several {what} ({names}); give the path of one, or a split")
    return files[0] if files else None


def _find_folders(request: _Request) -> Path | None:
    if request.path.is_file():
        return None
    folder = request.path / request.split if request.split is not None else request.path
    # Directly in them: a folder of whole data sets, or of splits, holds images further down.
    fits = folder.is_dir() and any(
        is_image(Path(entry.name)) and not is_litter(entry.name)
        for inside in class_folders(folder, request.written)
        for entry in entries_of(inside)
    )
    return folder if fits else None


FORMATS = {
    "wsol": _Format(
        f"{IDS_FILE} in the folder or in metadata/ (text files of wsolevaluation)",
        frozenset({"metadata", "split", "root", "mask_root"}),
        _find_wsol,
        _read_wsol,
    ),
    "voc": _Format(
        "Annotations/ with XML files beside JPEGImages/ (Pascal VOC)",
        frozenset({"split", "first_pixel"}),
        _find_voc,
        lambda found, r: read_voc(
            found,
            r.split,
            1 if r.first_pixel is None else r.first_pixel,
            multi_label=r.multi_label,
        ),
    ),
    "coco": _Format(
        "a JSON file, or one in the folder or in annotations/ (COCO instances)",
        frozenset({"split", "root"}),
        _find_coco,
        lambda found, r: read_coco(found, r.root, multi_label=r.multi_label),
    ),
    "csv": _Format(
        "a CSV file, or one in the folder, with columns of images and classes",
        frozenset({"root"}),
        _find_csv,
        lambda found, r: read_csv(found, r.root, multi_label=r.multi_label),
    ),
    "folders": _Format(
        "a folder of class folders with images, or of splits that are such (give the split)",
        frozenset({"split"}),
        _find_folders,
        lambda found, r: read_folders(found, multi_label=r.multi_label, written=r.written),
    ),
}
