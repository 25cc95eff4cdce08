"""Where the maps of `sigcam explain` go: a name for each image, or the one file that was named."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sigcam.cli.explain.find import STANDARD_INPUT, Found
from sigcam.cli.explain.output import Plan
from sigcam.core.errors import UsageError
from sigcam.core.files import check_writable
from sigcam.core.inputs import refuse_input
from sigcam.images.suffixes import IMAGE_SUFFIXES

WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".npz", ".json")
"""The suffixes of files that `Explanation.save` writes."""

_LONGEST = 230
"""Most bytes of a name without class and suffix: file systems take 255 for the whole."""


@dataclass(frozen=True)
class Outputs:
    """The files of maps.

    Attributes:
        stems: of each image's files, the path without class and suffix.
        suffix: of the files, without a dot.
        labelled: whether the class's id stands in the name, as an image may have several maps.
        file: the one file that was named, for one map; None where a folder was.
    """

    stems: Sequence[Path]
    suffix: str
    labelled: bool
    file: Path | None = None

    def path(self, index: int, class_id: int) -> Path:
        """Returns the file for the map of a class of the image with this index."""
        if self.file is not None:
            return self.file
        stem = self.stems[index]
        label = f"-{class_id}" if self.labelled else ""
        return stem.with_name(f"{stem.name}{label}.{self.suffix}")


def file_named(out: Path | None) -> Path | None:
    """Returns `out` where it names a file and not a folder: it ends like one, and is no folder.

    Raises:
        UsageError: it ends like an image that isn't written.

    Example:
        >>> file_named(Path("maps")), file_named(Path("cat.png")).name
        (None, 'cat.png')
    """
    if out is None or out.is_dir():
        return None
    suffix = out.suffix.lower()
    if suffix in WRITABLE:
        return out
    if suffix in IMAGE_SUFFIXES:
        raise UsageError(
            f"--out {out}: maps aren't written as {suffix}, but as {', '.join(WRITABLE)}; name "
            "such a file, or a folder"
        )
    return None


def outputs_of(found: Found, plan: Plan, out: Path, suffix: str | None) -> Outputs:
    """Decides where every map goes, before any of them is made.

    Args:
        found: the images.
        plan: what is asked of them.
        out: as it was typed, a folder or a file.
        suffix: as it was typed (`--format`), without a dot.

    Raises:
        UsageError: one file for several maps, a file of another format than was asked for, or a
            place that would write over an image or add to the images of a folder.
        StorageError: nothing can be written there.
    """
    several = plan.count > 1 or plan.min_probability is not None
    file = file_named(out)
    if file is not None:
        if len(found.images) > 1 or several:
            what = "several images" if len(found.images) > 1 else "several maps of the image"
            raise UsageError(f"--out {out} names one file, and there are {what}; name a folder")
        if suffix is not None and suffix != file.suffix[1:].lower().replace("jpeg", "jpg"):
            raise UsageError(f"--out {out} is no {suffix}; leave out --format, or name another")
        check_writable(file)
        made = Outputs([file], file.suffix[1:], labelled=False, file=file)
        _check_apart(found, made, None)
        return made
    names = output_names(found.images, found.folders)
    outputs = Outputs([out / name for name in names], suffix or "png", several)
    _check_apart(found, outputs, out)
    check_writable(out / f"sigcam-map.{outputs.suffix}")
    for index in range(len(found.images)):
        refuse_input(outputs.path(index, 0))
    return outputs


def _check_apart(found: Found, outputs: Outputs, out: Path | None) -> None:
    """Refuses files that the next listing of the same folders would take for images.

    What lies in the folder `out` is left out of a listing.
    """
    places = {stem.parent.resolve() for stem in outputs.stems}
    for folder in found.folders:
        inside = folder.resolve()
        if out is not None and inside in (whole := out.resolve(), *whole.parents):
            continue
        if any(inside in (place, *place.parents) for place in places):
            raise UsageError(
                f"maps would lie among the images of {folder}, and count as such the next time; "
                "name another folder for them, which may be one in it"
            )


def output_names(paths: Sequence[Path], folders: Sequence[Path]) -> list[str]:
    """Gives each image a distinct name without suffix; inside of a listed folder its subpath.

    They are distinct also where large and small letters count as the same, and not too long for
    a file system.

    Example:
        >>> output_names([Path("a/cat.jpg"), Path("b/Cat.png"), Path("dog.jpg")], ())
        ['cat', 'Cat-2', 'dog']
        >>> output_names([Path("clip.gif#0"), Path("clip.gif#12")], ())
        ['clip#0', 'clip#12']
    """
    listed = set(folders)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        folder = next((f for f in reversed((*path.parents,)) if f in listed), path.parent)
        inside = path.relative_to(folder)
        stem = "stdin" if path is STANDARD_INPUT else _without_suffix(inside)
        name = base = str(inside.with_name(_shortened(stem)))
        count = 1
        while _folded(name) in taken:
            count += 1
            name = f"{base}-{count}"
        taken.add(_folded(name))
        names.append(name)
    return names


def _without_suffix(path: Path) -> str:
    """Takes the suffix off a name, and keeps the number of a frame or page behind it."""
    name, mark, index = path.name.rpartition("#")
    if mark and index.isdigit() and name:
        return f"{Path(name).stem}#{index}"
    return path.stem


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _shortened(stem: str) -> str:
    while len(os.fsencode(stem)) > _LONGEST:
        stem = stem[:-1]
    return stem
