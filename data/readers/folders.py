"""Reads a folder of class folders: the class is the folder's name, in sorted order; no boxes."""

from __future__ import annotations

from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.data.dataset import Dataset, Place, Problem, Sample
from sigcam.images.listing import SUFFIXES_TEXT, list_images


def class_folders(folder: Path) -> list[Path]:
    """Returns the folders in a folder, sorted by name; hidden ones don't count.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("hen", "dog", ".thumbnails"):
        ...         Path(folder, name).mkdir()
        ...     [one.name for one in class_folders(Path(folder))]
        ['dog', 'hen']
    """
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def read_folders(folder: Path, *, multi_label: bool = False) -> Dataset:
    """Reads a folder of class folders.

    Args:
        folder: with a folder for each class; an image may lie in a subfolder of its class's.
        multi_label: whether the data is for a task with any number of classes an image; here each
            has one all the same.

    Returns:
        The data set. A class folder without images is a problem, and keeps its class id; a note
        counts the files that aren't images by their names, and those beside the class folders.

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
    folders = class_folders(folder)
    if not folders:
        raise DataError(f"{folder} holds no folders; one for each class is wanted")
    samples, problems = [], []
    others = [file for file in folder.iterdir() if not file.is_dir()]
    for label, inside in enumerate(folders):
        found = list_images(inside)
        if not found.images:
            problems.append(
                Problem(inside, None, f"no images in it ({SUFFIXES_TEXT}); each class needs some")
            )
        samples += [
            Sample(p.relative_to(folder).as_posix(), p, Place(inside), label) for p in found.images
        ]
        others += found.others
    return Dataset(
        folder.resolve().name,
        folder,
        "folders",
        tuple(inside.name for inside in folders),
        samples,
        tuple(problems),
        ids_given=False,
        notes=_passed_over(folder, sorted(others)),
        multi_label=multi_label,
    )


def _passed_over(folder: Path, others: list[Path]) -> tuple[str, ...]:
    others = [file for file in others if not file.name.startswith(".")]
    if not others:
        return ()
    shown = ", ".join(file.relative_to(folder).as_posix() for file in others[:3])
    more = ", ..." if len(others) > 3 else ""
    return (
        f"files passed over, no images by their names or in no class folder: {len(others)} "
        f"({shown}{more})",
    )
