"""Picture arguments of the commands: files, folders and globs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigcam.runtime.errors import UsageError


def find_pictures(arguments: tuple[str, ...]) -> Iterator[Path]:
    """Files as they are, the pictures of folders (recursively) and of globs, sorted."""
    from sigcam.runtime.image import SUFFIXES

    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES]
        elif not path.exists() and any(c in argument for c in "*?["):
            anchor = Path(path.anchor or ".")
            pattern = str(path.relative_to(path.anchor)) if path.anchor else argument
            found = [p for p in anchor.glob(pattern) if p.is_file()]
        else:
            yield path
            continue
        if not found:
            raise UsageError(f"{argument} has no pictures; name files, folders or globs that have")
        yield from sorted(found)


def output_names(paths: list[Path], arguments: tuple[str, ...]) -> list[str]:
    """A distinct name without suffix per picture; inside a folder argument its subpath."""
    folders = [Path(a) for a in arguments if Path(a).is_dir()]
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        folder = next((f for f in folders if f in path.parents), path.parent)
        name = base = str(path.relative_to(folder).with_suffix(""))
        count = 1
        while name in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        names.append(name)
    return names
