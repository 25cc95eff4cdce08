"""Finds the files that a shell pattern means; what exists under the very name is taken as it is."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from sigcam.core.errors import DataError
from sigcam.core.inputs import identity
from sigcam.images.listing import entries_of, is_folder, is_litter


def is_pattern(text: str) -> bool:
    """Returns whether a text may be a pattern.

    Example:
        >>> is_pattern("shots/*.jpg"), is_pattern("shots/a.jpg")
        (True, False)
    """
    return any(character in text for character in "*?[")


def matches(pattern: Path) -> list[Path]:
    """Returns the files and folders that a pattern means, sorted; hidden ones only by name.

    `*`, `?` and `[...]` stand for characters within a name, and `**` for any folders, links
    included. A folder whose name has such characters is found under its own name first.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("shots [2024]", "shots 2"):
        ...         Path(folder, name).mkdir()
        ...         Path(folder, name, "a.jpg").touch()
        ...     [path.parent.name for path in matches(Path(folder, "shots [2024]", "*.jpg"))]
        ['shots [2024]']
    """
    parts = pattern.parts[1:] if pattern.anchor else pattern.parts
    found = [Path(pattern.anchor or ".")]
    for part in parts:
        found = list(_step(found, part))
    return sorted(dict.fromkeys(found))


def _step(folders: Iterable[Path], part: str) -> Iterator[Path]:
    """Goes one part further from each of the folders."""
    for folder in folders:
        if part == "**":
            yield from _below(folder)
        elif identity(folder / part) is not None:
            yield folder / part
        elif is_pattern(part):
            yield from _named(folder, part)


def _named(folder: Path, part: str) -> Iterator[Path]:
    for name in (entry.name for entry in _entries(folder)):
        # As in a shell: what is hidden must be asked for.
        shown = part.startswith(".") or not is_litter(name)
        if shown and fnmatch.fnmatchcase(name, part):
            yield folder / name


def _below(folder: Path) -> Iterator[Path]:
    """Yields a folder and all those that it leads to, each once."""
    waiting, seen = [folder], set()
    while waiting:
        one = waiting.pop(0)
        if identity(one) in seen or not one.is_dir():
            continue
        seen.add(identity(one))
        yield one
        inside = (entry for entry in _entries(one) if is_folder(entry))
        waiting += sorted(one / entry.name for entry in inside if not is_litter(entry.name))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return entries_of(folder)
    except DataError:  # a pattern passes over what it can't look into, as in a shell
        return []
