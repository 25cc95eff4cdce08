"""Reads a folder of class folders: the class is the folder's name, in sorted order; no boxes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.core.inputs import identity
from sigcam.data.dataset import Dataset, Place, Problem, Sample
from sigcam.images.listing import (
    HIDDEN,
    SEEN,
    WRITTEN,
    LeftOut,
    Listing,
    described,
    entries_of,
    is_folder,
    is_litter,
    list_images,
    sorted_out,
)
from sigcam.images.suffixes import SUFFIXES_TEXT

BESIDE = "in no class folder"


def class_folders(folder: Path, written: Collection[Path] = ()) -> list[Path]:
    """Returns the folders in a folder, and those that links lead to, sorted by name.

    Hidden ones don't count, nor do those that the caller writes to, nor links that lead back.

    Args:
        folder: with the class folders.
        written: folders that the caller writes to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("hen", "dog", ".thumbnails"):
        ...         Path(folder, name).mkdir()
        ...     [one.name for one in class_folders(Path(folder))]
        ['dog', 'hen']
    """
    return _sorted_out(folder, written)[0]


def _sorted_out(folder: Path, written: Collection[Path]) -> tuple[list[Path], list[LeftOut]]:
    """Returns the class folders in a folder, and what else lies in it."""
    ours = {identity(one) for one in written} - {None}
    here = folder.absolute()
    above = {identity(one) for one in (here, here.resolve(), *here.parents)}
    classes, left_out, files = [], [], []
    for entry in entries_of(folder):
        path, found = folder / entry.name, identity(folder / entry.name)
        if not is_folder(entry):
            files.append(path)
        elif is_litter(entry.name):
            left_out.append(LeftOut(path, HIDDEN))
        elif found in ours:
            left_out.append(LeftOut(path, WRITTEN))
        elif found in above:
            left_out.append(LeftOut(path, SEEN))
        else:
            classes.append(path)
    beside = sorted_out(files)
    left_out += [LeftOut(path, BESIDE) for path in beside.images]
    return sorted(classes), sorted([*left_out, *beside.left_out])


def read_folders(
    folder: Path, *, multi_label: bool = False, written: Collection[Path] = ()
) -> Dataset:
    """Reads a folder of class folders.

    Args:
        folder: with a folder for each class; an image may lie in a subfolder of its class's.
        multi_label: whether the data is for a task with any number of classes an image; here each
            has one all the same.
        written: folders that the caller writes to, which are no classes.

    Returns:
        The data set. A class folder without images is a problem, and keeps its class id; notes
        count and name what isn't taken, such as images beside the class folders.

    Raises:
        DataError: there are no folders in it, or one that can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("hen", "dog"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "1.png").touch()
        ...     data = read_folders(Path(folder))
        >>> data.classes, [sample.name for sample in data.samples]
        (('dog', 'hen'), ['dog/1.png', 'hen/1.png'])
    """
    folders, left_out = _sorted_out(folder, written)
    if not folders:
        raise DataError(f"{folder} holds no folders; one for each class is wanted")
    samples, problems = [], []
    for label, inside in enumerate(folders):
        found: Listing = list_images(inside, written)
        if not found.images:
            problems.append(
                Problem(inside, None, f"no images in it ({SUFFIXES_TEXT}); each class needs some")
            )
        samples += [
            Sample(p.relative_to(folder).as_posix(), p, Place(inside), label) for p in found.images
        ]
        left_out += found.left_out
    return Dataset(
        folder.resolve().name,
        folder,
        "folders",
        tuple(inside.name for inside in folders),
        samples,
        tuple(problems),
        ids_given=False,
        notes=tuple(described(left_out, folder)),
        multi_label=multi_label,
    )
