"""A training set: images and their classes, and how its classes meet the model's."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sigcam.core.errors import DataError


@dataclass(frozen=True)
class ImageList:
    """Images with their classes.

    Attributes:
        name: what the set is called in reports, e.g. the folder's name.
        root: the folder that `paths` are relative to.
        paths: one per image, relative to `root`.
        class_ids: one per image, >= 0.
        class_names: name of class 0, 1, ...; empty if unknown.
        ids_given: whether the ids stand in the data itself. If not, they are positions
            in the sorted class names and may be matched to a model's names.
    """

    name: str
    root: Path
    paths: tuple[str, ...]
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    ids_given: bool = True

    def __post_init__(self) -> None:
        if not self.paths:
            raise DataError(f"{self.root}: the data set {self.name!r} has no images")
        if len(self.paths) != len(self.class_ids):
            raise DataError(
                f"{self.root}: {len(self.paths)} images but {len(self.class_ids)} classes"
            )
        if min(self.class_ids) < 0:
            raise DataError(f"{self.root}: class ids must be at least 0, got {min(self.class_ids)}")
        if self.class_names and max(self.class_ids) >= len(self.class_names):
            raise DataError(
                f"{self.root}: class {max(self.class_ids)} has no name; there are "
                f"{len(self.class_names)} names"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def file(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.paths[index]

    def fingerprint(self) -> str:
        """SHA-256 (hex) over every image's path, size in bytes and time of change, in order.

        Not over the contents: reading ImageNet once more costs longer than many an epoch.
        An image that is replaced changes its size or time; a copied data set counts as
        another one, which costs a recomputation, never a wrong result.

        Raises:
            DataError: images are missing.
        """
        digest = hashlib.sha256()
        missing = []
        for path in self.paths:
            try:
                stat = (self.root / path).stat()
            except OSError:
                missing.append(path)
                continue
            # File names may hold bytes that aren't UTF-8.
            digest.update(os.fsencode(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n"))
        if missing:
            raise missing_images(self.root, missing, len(self.paths))
        return digest.hexdigest()


def missing_images(root: Path, missing: Sequence[str], total: int) -> DataError:
    """The error for images that the data names and the disk doesn't have."""
    shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
    return DataError(
        f"{len(missing)} of {total} images are missing below {root}: {shown}; "
        "give the folder that the paths are relative to, or correct the list"
    )


def match_classes(data: ImageList, num_classes: int, class_names: Sequence[str] = ()) -> ImageList:
    """Gives every image the class id that the model uses.

    Ids that stand in the data are kept and checked. Ids made from class names are mapped
    through the model's class names, ignoring case and `_` for a space. If the model has
    no names, or not one is the same (ImageNet's folders are called n01440764, ...), the
    sorted order of the data's names is taken for the model's order, provided that there
    are as many as the model has classes.

    Args:
        data: the training set.
        num_classes: C of the model.
        class_names: the model's C names; empty if unknown.

    Raises:
        DataError: an id of C or more; names that the model doesn't have; a number of
            classes that leaves the order open.
    """
    if data.ids_given:
        if max(data.class_ids) >= num_classes:
            position = data.class_ids.index(max(data.class_ids))
            raise DataError(
                f"{data.paths[position]} in {data.root} has class {max(data.class_ids)}, but the "
                f"model's classes are 0..{num_classes - 1}; use the model's ids, or train with a "
                "replaced last layer for other classes"
            )
        return data
    table: dict[str, list[int]] = {}
    for index, name in enumerate(class_names):
        table.setdefault(_plain(name), []).append(index)
    found = {name: table.get(_plain(name), []) for name in data.class_names}
    if any(found.values()):
        _check_names(data, found, class_names)
        to_id = [found[name][0] for name in data.class_names]
        return replace(
            data,
            class_ids=tuple(to_id[i] for i in data.class_ids),
            class_names=tuple(class_names),
            ids_given=True,
        )
    if len(data.class_names) != num_classes:
        why = "has no class names" if not class_names else "has none of these names"
        raise DataError(
            f"{data.root} has {len(data.class_names)} classes ({', '.join(data.class_names[:3])}, "
            f"...), the model has {num_classes} and {why}; name the classes as the model does, "
            "give ids in a CSV, or train with a replaced last layer"
        )
    return replace(data, ids_given=True)


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _check_names(data: ImageList, found: dict[str, list[int]], names: Sequence[str]) -> None:
    for name, ids in found.items():
        if not ids:
            near = difflib.get_close_matches(name, names, n=3)
            hint = f"; near names: {', '.join(near)}" if near else ""
            raise DataError(f"{data.root}: the model has no class {name!r}{hint}")
        if len(ids) > 1:
            raise DataError(
                f"{data.root}: the model has {len(ids)} classes called {name!r} (ids {ids}); "
                "give ids in a CSV"
            )
