"""Lists the images of a folder; nothing else decides which files count as such."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple, NoReturn

from sigcam.core.errors import DataError

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".npy")
)
"""How the names of image files end, in small letters."""

SUFFIXES_TEXT = ", ".join(sorted(IMAGE_SUFFIXES))
"""The same for messages."""


class Listing(NamedTuple):
    """The files of a folder and its subfolders, sorted.

    Attributes:
        images: those whose names end like an image's. Links that lead nowhere are among them, so
            that they are reported as missing and not passed over.
        others: the rest.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...]


def is_image(path: Path) -> bool:
    """Returns whether a file's name ends like that of an image, in large letters or small.

    Example:
        >>> is_image(Path("IMG_0001.JPG")), is_image(Path("notes.txt"))
        (True, False)
    """
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> Listing:
    """Lists the files of a folder and its subfolders; links to other folders aren't followed.

    Args:
        folder: may itself be a link.

    Returns:
        The images and the other files, as paths that begin with `folder`.

    Raises:
        DataError: the folder, or one in it, is missing or can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.JPG", "a.png", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = list_images(Path(folder))
        >>> [path.name for path in found.images], [path.name for path in found.others]
        (['a.png', 'b.JPG'], ['notes.txt'])
    """
    files = [
        Path(inside, name)
        for inside, _, names in os.walk(folder, onerror=_refuse)
        for name in names
    ]
    files.sort()
    return Listing(
        tuple(file for file in files if is_image(file)),
        tuple(file for file in files if not is_image(file)),
    )


def _refuse(error: OSError) -> NoReturn:
    raise DataError(
        f"the folder {error.filename} can't be listed: {error.strerror or error}; "
        "correct the path or its permissions"
    ) from error
