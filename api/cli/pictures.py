"""Picture arguments of the commands: files, folders and globs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sigcam.runtime.errors import UsageError


def find_pictures(arguments: tuple[str, ...]) -> Iterator[Path]:
    """Files as they are, the pictures of folders (recursively) and of globs, sorted."""
    from sigcam.runtime.image import SUFFIXES

    for argument in arguments:
        if not argument:
            raise UsageError("a picture's name is empty; name files, folders or globs")
        path = Path(argument)
        if path.is_dir():
            found = [p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES]
        elif not path.exists() and any(c in argument for c in "*?["):
            found = _matches(path)
        else:
            yield path
            continue
        if not found:
            raise UsageError(f"{argument} has no pictures; name files, folders or globs that have")
        yield from sorted(found)


def _matches(pattern: Path) -> list[Path]:
    start = Path(pattern.anchor or ".")
    try:
        found = start.glob(str(pattern.relative_to(pattern.anchor)))
        return [path for path in found if path.is_file()]
    except (ValueError, NotImplementedError) as exc:
        raise UsageError(f"{pattern} is no usable glob: {exc}") from exc


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
