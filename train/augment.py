"""Crops and flips images at random, the same again for the same seed, image and view."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sigcam.core.annotations import check_fields
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import prepare

Pixels: TypeAlias = npt.NDArray[Any]
"""Raw pixels, [..., H, W, n]: uint8, or float32 for a model that takes no bytes."""

_TRIES = 10
_MAX_ASPECT = 4 / 3


@dataclass(frozen=True)
class Augmentation:
    """Which views of an image the head is trained on.

    View 0 is the image as it is prepared in use; of a file it is read as in use too, a large
    JPEG at a part of its size (`ViewReader`). Every other view is a random crop,
    resized to the input size, and flipped left to right half of the time.

    Attributes:
        views: how many views of each image are cached, view 0 included.
        crop_scale: smallest and largest share of the image's area that a crop keeps.
            0.35 rather than the 0.08 usual in training from scratch: the label must still
            be true of the crop, since the branch learns what is evidence for it.
        flip: whether crops may be flipped.
        seed: with the image's index and the view's index it settles the crop.

    Example:
        >>> image = np.zeros((40, 60, 3), np.uint8)
        >>> image[:, 30:] = 255
        >>> target = Preprocessing(8, 8, "stretch")
        >>> crop = Augmentation(seed=1).view(image, target, index=0, view=3)
        >>> crop.shape, bool((crop == Augmentation(seed=1).view(image, target, 0, 3)).all())
        ((8, 8, 3), True)
    """

    views: int = 12
    crop_scale: tuple[float, float] = (0.35, 1.0)
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.views < 1:
            raise UsageError(f"views must be at least 1, got {self.views}")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise UsageError(
                f"crop_scale must be (low, high), 0 < low <= high <= 1, got {self.crop_scale}"
            )
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed}")

    def view(self, image: Pixels, preprocessing: Preprocessing, index: int, view: int) -> Pixels:
        """Makes one view of an image.

        Args:
            image: [H, W, n], as it is read for the model.
            preprocessing: of the network's input; its layout isn't used.
            index: number of the image in its data set.
            view: 0 for the plain preparation; any other number for a random crop (it may
                be above `views`: on-the-fly training draws new ones every epoch).

        Returns:
            [preprocessing.height, preprocessing.width, n] of the image's type, C-contiguous.
        """
        if view == 0:
            return _prepared(image, preprocessing.raw)
        rng = np.random.default_rng([self.seed, index, view])
        top, left, height, width = self._rectangle(rng, image.shape[0], image.shape[1])
        crop = np.ascontiguousarray(image[top : top + height, left : left + width])
        made = _prepared(crop, replace(preprocessing.raw, rule="stretch", resize=None))
        # Drawn even if flips are off, so that the crops are the same with and without.
        flipped = rng.random() < 0.5
        return np.ascontiguousarray(made[:, ::-1]) if self.flip and flipped else made

    def _rectangle(
        self, rng: np.random.Generator, height: int, width: int
    ) -> tuple[int, int, int, int]:
        """Draws top, left, height and width of a crop, aspect between 3/4 and 4/3."""
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.crop_scale)
            aspect = math.exp(rng.uniform(-math.log(_MAX_ASPECT), math.log(_MAX_ASPECT)))
            h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < h <= height and 0 < w <= width:
                return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
        # A very long image: the largest crop of an allowed aspect, anywhere along it.
        h = min(height, max(1, round(width * _MAX_ASPECT)))
        w = min(width, max(1, round(height * _MAX_ASPECT)))
        return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w


def _prepared(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    made: Pixels = prepare(image, preprocessing)[0]
    return made
