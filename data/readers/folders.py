"""A folder of class folders: the class is the folder's name, in sorted order; no boxes."""

from __future__ import annotations

from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.data.dataset import (
    Dataset,
    Place,
    Problem,
    Sample,
)
from sigcam.images.decode import SUFFIXES


def class_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones don't count."""
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted."""
    return sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())


def read_folders(folder: Path) -> Dataset:
    """Reads a folder of class folders.

    A class folder without images is a problem, and keeps its class id.

    Raises:
        DataError: there are no folders in it.
    """
    folders = class_folders(folder)
    if not folders:
        raise DataError(f"{folder} holds no folders; one for each class is wanted")
    samples, problems = [], []
    for label, inside in enumerate(folders):
        images = images_in(inside)
        if not images:
            problems.append(
                Problem(inside, None, f"no images in it ({', '.join(sorted(SUFFIXES))})")
            )
        samples += [
            Sample(p.relative_to(folder).as_posix(), p, Place(inside), label) for p in images
        ]
    names = tuple(inside.name for inside in folders)
    return Dataset(
        folder.resolve().name, "folders", names, samples, tuple(problems), ids_given=False
    )
