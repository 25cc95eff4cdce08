"""Reads masks as arrays, the way of the reference (wsolevaluation, Choe et al. 2020).

There, a mask is read in grey, resized to 224x224 with INTER_NEAREST, and what is over 0.5 is the
object: files with 0 and 1 and files with 0 and 255 mean the same. Several masks are joined; the
ignore mask counts where the object isn't. More than there: a trimap's border (`ignore_level`)
is ignored, and masks may be drawn in the annotations.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import cv2
import numpy as np

from sigcam.core.errors import DataError, UsageError
from sigcam.core.types import Array
from sigcam.data.dataset import Mask, Sample
from sigcam.data.segmentation import draw
from sigcam.images.decode import quiet_opencv

REFERENCE_SIZE = (224, 224)


def read_masks(
    sample: Sample, size: tuple[int, int] | None = REFERENCE_SIZE
) -> tuple[Array, Array]:
    """Reads where the object of a sample is, and what is ignored.

    >>> from sigcam.data import Place
    >>> from sigcam.data.dataset import Polygons
    >>> place = Place(Path("list.json"))
    >>> left_half = Polygons((np.array([[0, 0], [2, 0], [2, 2], [0, 2]]),))
    >>> sample = Sample("a", Path("a.png"), place, masks=(left_half,), size=(4, 2))
    >>> inside, ignored = read_masks(sample, (4, 2))
    >>> inside.astype(int)
    array([[1, 1, 0, 0],
           [1, 1, 0, 0]])
    >>> ignored.any()
    np.False_

    Args:
        sample: with masks.
        size: (width, height) of the result; None for the image's.

    Returns:
        Object and ignored, bool [height, width] each; no pixel is in both. What is in neither is
        background.

    Raises:
        DataError: a mask is missing or damaged.
        UsageError: the sample has no masks.
    """
    if sample.masks is None:
        raise UsageError(f"{sample.name} has no masks")
    wanted = size or sample.size
    if wanted is None:
        raise UsageError(f"the size of {sample.name} is unknown; open it with open_dataset")
    inside = np.zeros(wanted[::-1], bool)
    ignored = np.zeros(wanted[::-1], bool)
    for mask in sample.masks:
        grey = _read(mask, sample, wanted)
        if sample.ignore_level is not None:
            border = grey == sample.ignore_level
            ignored |= border
            inside |= (grey > 0) & ~border
        else:
            inside |= grey > 0
    for mask in sample.ignore:
        ignored |= _read(mask, sample, wanted) > 0
    return inside, ignored & ~inside


def _read(mask: Mask, sample: Sample, size: tuple[int, int]) -> Array:
    """Reads a mask in grey, uint8 [height, width] of `size`."""
    if isinstance(mask, Path):
        grey = _decode(mask)
    else:
        if sample.size is None:
            raise UsageError(f"the size of {sample.name} is unknown; open it with open_dataset")
        grey = draw(mask, sample.size).astype(np.uint8)
    if grey.shape == size[::-1]:
        return grey
    return cast("Array", cv2.resize(grey, size, interpolation=cv2.INTER_NEAREST))


def _decode(path: Path) -> Array:
    broken = (
        f"the mask {path} can't be decoded; if other programs show it, save it as PNG, else it is "
        "damaged: get it again"
    )
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        with quiet_opencv():
            grey = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE) if data.size else None
    except OSError as exc:
        raise DataError(f"the mask {path} can't be read: {exc.strerror or exc}") from exc
    except cv2.error as exc:
        raise DataError(broken) from exc
    if grey is None:
        raise DataError(broken)
    return cast("Array", grey)
