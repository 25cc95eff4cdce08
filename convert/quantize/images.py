"""Chooses which of the user's images calibrate, and which are held out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sigcam.core.errors import DataError, ImageError, UsageError
from sigcam.core.inputs import keep
from sigcam.core.progress import Report
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.images.listing import Listing, described, list_images
from sigcam.images.preprocess import Placement, read_input
from sigcam.images.suffixes import SUFFIXES_TEXT

FEWEST = 8
"""The fewest images that either set may have: fewer say nothing."""


@dataclass(frozen=True)
class Chosen:
    """Two disjoint sets of images, no image twice, none of one colour.

    Attributes:
        calibration: paths of those that ranges are taken from.
        held_out: paths of those that the result is measured on.
        unread: why files that were drawn couldn't be read.
        left_out: what else lies in the folder, in lines for a person.
    """

    calibration: tuple[Path, ...]
    held_out: tuple[Path, ...]
    unread: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def choose(
    folder: Path,
    preprocessing: Preprocessing,
    calibration: int,
    held_out: int,
    seed: int,
    report: Report,
) -> Chosen:
    """Draws images by a seeded shuffle of the folder, subfolders included.

    Each is decoded once here, so that no set has a file that can't be read, or the same
    image twice; one image is in memory at a time.

    Args:
        folder: of the images.
        preprocessing: of the artifact; two images are equal if the network sees the same.
        calibration: how many calibrate; 0, or at least `FEWEST`.
        held_out: how many are held out; at least `FEWEST`.
        seed: of the shuffle.
        report: called with the images chosen and the number wanted.

    Raises:
        UsageError: too small a number.
        DataError: the folder is missing, or has too few usable images.

    Example:
        chosen = choose(
            Path("images"), spec.preprocessing, calibration=64, held_out=100, seed=0,
            report=lambda done, count: None,
        )
    """
    for name, count, zero in (("calibration", calibration, True), ("held-out", held_out, False)):
        if count < FEWEST and not (zero and count == 0):
            raise UsageError(f"there must be at least {FEWEST} {name} images, got {count}")
    listing = _listed(folder)
    paths = list(listing.images)
    keep(paths)
    random.Random(seed).shuffle(paths)  # noqa: S311 (a choice of images is no secret)
    wanted = calibration + held_out
    kept: list[Path] = []
    seen: set[bytes] = set()
    refused: Counter[str] = Counter()
    unread: list[str] = []
    for path in paths:
        if len(kept) == wanted:
            break
        try:
            tensor, _ = prepared(path, preprocessing)
        except ImageError as exc:
            unread.append(str(exc))
            continue
        digest = hashlib.sha256(tensor.data).digest()
        if digest in seen:
            refused["equal to another"] += 1
        elif _is_plain(tensor, preprocessing):
            refused["of a single colour"] += 1
        else:
            kept.append(path)
            report(len(kept), wanted)
        seen.add(digest)
    if len(kept) < wanted:
        refused["unreadable"] = len(unread)
        why = ", ".join(f"{count} {reason}" for reason, count in refused.items() if count)
        raise DataError(
            f"{folder} must have {wanted} different images ({calibration} to calibrate, "
            f"{held_out} held out), but has {len(kept)} usable ones of {len(paths)}"
            f"{f' ({why})' if why else ''}; add images of the kind that the model will see, or "
            "lower the numbers"
        )
    told = tuple(described(listing.left_out, folder))
    return Chosen(tuple(kept[:calibration]), tuple(kept[calibration:]), tuple(unread), told)


def prepared(path: Path, preprocessing: Preprocessing) -> tuple[Array, Placement]:
    """Makes the network's input of an image as a Session does, and says where it lies in it.

    Raises:
        ImageError: the file can't be read.

    Example:
        >>> import tempfile
        >>> import cv2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.png", np.zeros((10, 20, 3), np.uint8))
        ...     tensor, placement = prepared(Path(folder, "a.png"), Preprocessing(8, 8))
        >>> tensor.shape, placement.crop_box
        ((8, 8, 3), (5, 0, 15, 10))
    """
    read = read_input(path, preprocessing)
    return np.ascontiguousarray(read.tensor), read.placement


def feeds(paths: Sequence[Path], preprocessing: Preprocessing) -> Iterator[dict[str, Array]]:
    """Yields the graph's input `image` for one image after the other.

    Args:
        paths: the images' files.
        preprocessing: how the artifact takes images.

    Example:
        >>> import tempfile
        >>> import cv2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = cv2.imwrite(f"{folder}/a.png", np.zeros((10, 20, 3), np.uint8))
        ...     (feed,) = feeds([Path(folder, "a.png")], Preprocessing(8, 8))
        >>> feed["image"].shape
        (1, 8, 8, 3)
    """
    for path in paths:
        yield {"image": prepared(path, preprocessing)[0][None]}


def _is_plain(tensor: Array, preprocessing: Preprocessing) -> bool:
    axes = (1, 2) if preprocessing.layout == "float32_nchw" else (0, 1)
    return bool((tensor.min(axes) == tensor.max(axes)).all())


def _listed(folder: Path) -> Listing:
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "doesn't exist"
        raise DataError(f"{folder} {what}; pass a folder of images that the model will see")
    found = list_images(folder)
    if not found.images:
        told = "".join(f"; {line}" for line in described(found.left_out, folder))
        raise DataError(f"{folder} has no images ({SUFFIXES_TEXT}){told}; pass a folder that has")
    return found
