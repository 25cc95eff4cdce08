"""Lists the images of a folder; nothing else decides which files count as such.

What isn't taken is named with its reason. Links are followed, each folder once: those that lie
in the folder itself come first, under their own names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sigcam.core.errors import DataError
from sigcam.core.inputs import identity
from sigcam.images.suffixes import UNREAD, VIDEO_SUFFIXES, is_image

NO_IMAGE = "no image by its name"
KIND_UNREAD = "an image of a kind that isn't read; convert it to JPEG or PNG"
VIDEO = "a video, which is explained by itself"
HIDDEN = "hidden, or left by another program"
SEEN = "a folder that is listed already, under another name"
WRITTEN = "the folder that is written to"

_LITTER_FOLDERS = frozenset(("@eadir", "__macosx", "#recycle", "$recycle.bin", "lost+found"))
_LITTER_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))
_NAMED = 3


class LeftOut(NamedTuple):
    """A file or folder that isn't taken.

    Attributes:
        path: of the file, or of a folder with all that is in it.
        reason: why, as words after its name.
    """

    path: Path
    reason: str


class Listing(NamedTuple):
    """The files of a folder and its subfolders, sorted.

    Attributes:
        images: those whose names end like an image's. Links that lead nowhere are among them, so
            that they are reported as missing and not passed over.
        left_out: the rest.
    """

    images: tuple[Path, ...]
    left_out: tuple[LeftOut, ...]


def is_litter(name: str) -> bool:
    """Returns whether a file or folder is hidden, or one that systems leave beside images.

    Example:
        >>> [is_litter(name) for name in ("._a.jpg", "@eaDir", "Thumbs.db", "a.jpg")]
        [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _LITTER_FOLDERS | _LITTER_FILES


def sorted_out(files: Iterable[Path]) -> Listing:
    """Sorts files into images and those that aren't taken, by their names.

    What systems leave beside images isn't mentioned, unless it is called like an image.

    Example:
        >>> found = sorted_out([Path("b.mp4"), Path("a.png")])
        >>> found.images, found.left_out[0].reason
        ((PosixPath('a.png'),), 'a video, which is explained by itself')
    """
    images, left_out = [], []
    for file in sorted(files):
        if is_litter(file.name) and not is_image(file):
            continue  # nobody asks where .DS_Store is
        reason = _reason(file)
        if reason is None:
            images.append(file)
        else:
            left_out.append(LeftOut(file, reason))
    return Listing(tuple(images), tuple(left_out))


def list_images(folder: Path, written: Iterable[Path] = ()) -> Listing:
    """Lists the files of a folder and of its subfolders, also of those that links lead to.

    Args:
        folder: may itself be a link.
        written: folders that the caller writes to, which aren't listed.

    Returns:
        The images, and what else there is, as paths that begin with `folder`.

    Raises:
        DataError: the folder, or one in it, is missing or can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.JPG", "a.png", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = list_images(Path(folder))
        >>> [path.name for path in found.images], [one.path.name for one in found.left_out]
        (['a.png', 'b.JPG'], ['notes.txt'])
    """
    walk = _Walk({place for one in written if (place := identity(one)) is not None})
    walk.enter(folder)
    found = sorted_out(walk.files)
    return Listing(found.images, tuple(sorted((*found.left_out, *walk.left_out))))


def described(left_out: Iterable[LeftOut], folder: Path | None = None) -> list[str]:
    """Says what was left out: a line for each reason, with the number and the first names.

    Args:
        left_out: in the order in which names are to be said.
        folder: that the names are relative to; None says whole paths.

    Example:
        >>> described([LeftOut(Path(f"{name}.txt"), NO_IMAGE) for name in "abcd"])
        ['left out, no image by its name: 4 (a.txt, b.txt, c.txt, ...)']
    """
    names: dict[str, list[str]] = {}
    for path, reason in left_out:
        shown = path if folder is None else path.relative_to(folder)
        names.setdefault(reason, []).append(shown.as_posix())
    return [
        f"left out, {reason}: {len(some)} ({', '.join(some[:_NAMED])}"
        f"{', ...' if len(some) > _NAMED else ''})"
        for reason, some in names.items()
    ]


class _Walk:
    """Goes through folders, each once, and through those behind links last."""

    def __init__(self, written: set[tuple[int, int]]) -> None:
        self.files: list[Path] = []
        self.left_out: list[LeftOut] = []
        self._written = written
        self._seen: set[tuple[int, int]] = set()

    def enter(self, folder: Path) -> None:
        """Lists a folder and all that it leads to."""
        links = [folder]
        while links:
            starts, links = sorted(links), []
            for start in starts:
                folders = [start]
                while folders:
                    inside, linked = self._list(folders.pop())
                    folders += inside
                    links += linked

    def _list(self, folder: Path) -> tuple[list[Path], list[Path]]:
        """Takes a folder's files; returns the folders in it, and the links to folders."""
        found = identity(folder)
        if found in self._written or (found is not None and found in self._seen):
            reason = WRITTEN if found in self._written else SEEN
            self.left_out.append(LeftOut(folder, reason))
            return [], []
        if found is not None:
            self._seen.add(found)
        folders: list[Path] = []
        links: list[Path] = []
        for entry in entries_of(folder):
            path = Path(folder, entry.name)
            if not is_folder(entry):
                self.files.append(path)
            elif is_litter(entry.name):
                self.left_out.append(LeftOut(path, HIDDEN))
            else:
                (links if entry.is_symlink() else folders).append(path)
        return folders, links


def entries_of(folder: Path) -> list[os.DirEntry[str]]:
    """Returns what lies in a folder.

    Raises:
        DataError: it is missing or can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     entries_of(Path(folder))
        []
    """
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError as exc:
        raise DataError(
            f"the folder {folder} can't be listed: {exc.strerror or exc}; "
            "correct the path or its permissions"
        ) from exc


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether an entry is a folder or a link to one; a link to itself is none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "cats").mkdir()
        ...     [is_folder(entry) for entry in entries_of(Path(folder))]
        [True]
    """
    try:
        return entry.is_dir()
    except OSError:
        return False


def _reason(file: Path) -> str | None:
    """Returns why a file isn't taken; None for an image."""
    suffix = file.suffix.lower()
    if is_litter(file.name):
        return HIDDEN
    if is_image(file):
        return None
    if suffix in UNREAD:
        return KIND_UNREAD
    return VIDEO if suffix in VIDEO_SUFFIXES else NO_IMAGE
