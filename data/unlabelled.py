"""Opens images whose classes don't matter: of any form, or a plain folder without any."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from sigcam.data.checks import check_dataset
from sigcam.data.dataset import Dataset, Place, Sample
from sigcam.data.open import open_dataset
from sigcam.data.readers.wsol import IDS_FILE, LABELS_FILE
from sigcam.images.listing import described, is_litter, list_images

_LISTS = (".csv", ".json")


def open_images(path: str | Path, **options: Any) -> Dataset:
    """Opens and checks images whose classes, if there are any, don't matter.

    A folder without lists (CSV or JSON files, wsolevaluation's text files, VOC's annotations),
    opened without options, is taken for a plain folder: every image in it and in its subfolders
    counts, whatever the subfolders mean; hidden ones don't. Anything else is opened as
    `open_dataset` does.

    Args:
        path: a folder, or what `open_dataset` takes.
        options: of `open_dataset`.

    Returns:
        The data set, every sample with its size. Of a plain folder it has no classes.

    Raises:
        DataError: as `open_dataset`; or a folder without images, or that can't be listed.
        UsageError: as `open_dataset`.

    Example:
        >>> import tempfile
        >>> import cv2, numpy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.png", "a.png"):
        ...         _ = cv2.imwrite(f"{folder}/{name}", numpy.zeros((20, 30, 3), numpy.uint8))
        ...     data = open_images(folder)
        >>> data.classes, [(sample.name, sample.label) for sample in data.samples]
        (None, [('a.png', None), ('b.png', None)])
    """
    folder = Path(path)
    skip_bad = bool(options.get("skip_bad", False))
    written = options.get("written", ())
    others = {k: v for k, v in options.items() if k not in ("skip_bad", "written")}
    plain = all(value in (None, "auto") for value in others.values())
    if plain and folder.is_dir() and not _has_lists(folder):
        return check_dataset(_read(folder, written), skip_bad)
    # Two classes of one image contradict nothing here.
    return open_dataset(path, **{**options, "multi_label": True})


def _has_lists(folder: Path) -> bool:
    """Returns whether something in a folder says which images it has; the usual places."""
    list_images(folder)  # a folder that can't be listed is a DataError
    places = [one for one in (folder, folder / "metadata", folder / "annotations") if one.is_dir()]
    return (folder / "Annotations").is_dir() or any(
        file.suffix.lower() in _LISTS or file.name in (IDS_FILE, LABELS_FILE)
        for place in places
        for file in [*place.iterdir(), *place.glob(f"*/{IDS_FILE}")]
        if not is_litter(file.name)
    )


def _read(folder: Path, written: Collection[Path]) -> Dataset:
    """Reads a plain folder; check_dataset refuses one without images."""
    found = list_images(folder, written)
    samples = [Sample(p.relative_to(folder).as_posix(), p, Place(p)) for p in found.images]
    notes = tuple(described(found.left_out, folder))
    return Dataset(folder.resolve().name, folder, "images", None, samples, notes=notes)
