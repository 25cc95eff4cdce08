"""The images that the arguments of a command name: files, folders, globs, lists, `-`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from sigcam.cli.streams import read_standard_input
from sigcam.core.errors import UsageError
from sigcam.images.listing import WRITTEN, LeftOut, Listing, described, list_images, sorted_out
from sigcam.images.patterns import is_pattern, matches

STANDARD_INPUT = Path("-")
"""Stands for the image that comes on standard input; `./-` is a file, and another object."""


@dataclass
class Found:
    """What arguments name.

    Attributes:
        images: their files; `STANDARD_INPUT` for the image that comes there.
        folders: those that were listed.
        left_out: what isn't taken of folders and globs.
        empty: the arguments that have no images.
    """

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def add(self, argument: str, listing: Listing) -> None:
        """Adds what a folder or glob has; only the folder that is written to may have nothing."""
        self.images += listing.images
        self.left_out += listing.left_out
        if not listing.images and [one.reason for one in listing.left_out] != [WRITTEN]:
            self.empty.append(argument)

    def check(self) -> None:
        """Refuses arguments without images.

        Raises:
            UsageError: there are some; what was left out of them is said.
        """
        if not self.images and {one.reason for one in self.left_out} == {WRITTEN}:
            raise UsageError(
                f"{self.left_out[0].path} is the folder that is written to; name another one for "
                "what is written, which may be one in it"
            )
        if self.empty or not self.images:
            told = "".join(f"; {line}" for line in described(self.left_out))
            where = f"{', '.join(self.empty)}: " if self.empty else ""
            raise UsageError(f"{where}no images{told}; name files, folders or globs that have some")


def find_images(
    arguments: Iterable[str], names: Iterable[str] = (), written: Path | None = None
) -> Found:
    """Finds files as they are, and the images of folders (recursively) and of globs, sorted.

    Args:
        arguments: as they were typed; "-" is standard input.
        names: further files and folders, no globs.
        written: a folder that the command writes to, which is left out of the others.

    Raises:
        UsageError: an empty argument, or "-" twice.
        DataError: a folder that can't be listed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.jpg", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     found = find_images((folder, "c.jpg"))
        >>> [path.name for path in found.images], [one.path.name for one in found.left_out]
        (['a.jpg', 'b.png', 'c.jpg'], ['notes.txt'])
    """
    found = Found()
    skipped = () if written is None else (written,)
    for argument in arguments:
        if not argument:
            raise UsageError("an image's name is empty; name files, folders or globs")
        path = Path(argument)
        if argument == "-":
            if any(image is STANDARD_INPUT for image in found.images):
                raise UsageError("standard input is one image; give - once")
            found.images.append(STANDARD_INPUT)
        elif is_pattern(argument) and not os.path.lexists(path):
            found.add(argument, _of_pattern(found, path, skipped))
        else:
            _add_path(found, path, skipped)
    for name in names:
        _add_path(found, Path(name), skipped)
    return found


def _add_path(found: Found, path: Path, written: tuple[Path, ...]) -> None:
    """Adds a file as it is, or the images of a folder."""
    if _is_folder(path):
        found.add(str(path), _listed(found, path, written))
    else:
        found.images.append(path)


def _listed(found: Found, folder: Path, written: tuple[Path, ...]) -> Listing:
    found.folders.append(folder)
    return list_images(folder, written)


def _of_pattern(found: Found, pattern: Path, written: tuple[Path, ...]) -> Listing:
    """Lists what a pattern means: files, and the images of folders."""
    paths = matches(pattern)
    folders = {path for path in paths if _is_folder(path)}
    outermost = [path for path in paths if path in folders and folders.isdisjoint(path.parents)]
    ours = {folder.resolve() for folder in written}
    files = {path: not ours.isdisjoint(path.resolve().parents) for path in paths}
    listings = [
        sorted_out(path for path, is_ours in files.items() if path not in folders and not is_ours),
        *(_listed(found, path, written) for path in outermost),
    ]
    left_out = [LeftOut(path, WRITTEN) for path, is_ours in files.items() if is_ours]
    left_out += [left for one in listings for left in one.left_out]
    images = [image for one in listings for image in one.images]
    return Listing(tuple(dict.fromkeys(images)), tuple(dict.fromkeys(left_out)))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # its name is too long, say; whoever opens it says so
        return False


def names_from(file: str) -> list[str]:
    r"""Reads names, one a line; or with zero bytes between, as `find -print0` writes them.

    Args:
        file: a file, or "-" for standard input.

    Raises:
        UsageError: it has no names, or can't be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "list.txt")
        ...     _ = path.write_bytes(b"a.jpg\nb c.jpg\n")
        ...     names_from(str(path))
        ['a.jpg', 'b c.jpg']
    """
    try:
        data = read_standard_input() if file == "-" else Path(file).read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read the names in {file}: {exc.strerror or exc}") from exc
    lines = data.split(b"\0") if b"\0" in data else data.splitlines()
    names = [os.fsdecode(line) for line in lines if line.strip()]
    if not names:
        raise UsageError(f"{file} has no names of images; write one a line")
    return names
