"""RISE: a pixel weighs as much as the class's probability in the random views that show it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.progress import Report
from sigcam.core.types import Array
from sigcam.runtime.model import ExportedModel, probabilities_of
from sigcam.runtime.multipass.base import NO_OPTIONS, MultiPass, Subject
from sigcam.runtime.multipass.masked_input import MaskedInput

_MOST_MASKS = 1_000_000


class Rise(MultiPass):
    """RISE of Petsiuk, Das and Saenko (2018), Eq. 6: S = sum_i p_c(x * M_i) M_i / (N keep).

    A mask M_i is a grid of `cells` x `cells` that are 1 with the chance `keep` and 0 otherwise,
    enlarged bilinearly to one cell more than the input each way, and cut to the input's size at
    a random place within a cell. p_c is the class's probability, as the prediction's.

    - The CAM has the input's resolution, [H, W]. Features, branches, weights and clamping have
      no part in it: logits are all that the artifact must give.
    - x * M_i is taken in normalised space, where 0 is the mean colour (`MaskedInput`).
    - Enlarging counts pixel centres and repeats the edge, as for the heatmaps. (The authors' code
      mirrors at the edge; the package openvino_xai enlarges cubically and cuts to [0, 1].)
    - Masks follow from the seed alone: they are the same for every image, class and batch size.

    Passes: one for the prediction and one for each mask. They serve all K classes at once.
    """

    name: ClassVar[str] = "rise"
    from_features: ClassVar[bool] = False
    needs_features: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, float]] = MappingProxyType(
        {"masks": 4000, "cells": 7, "keep": 0.5, "seed": 0}
    )

    def __init__(
        self, model: ExportedModel, batch_size: int, options: Mapping[str, float] = NO_OPTIONS
    ) -> None:
        super().__init__(model, batch_size, options)
        size = min(model.spec.preprocessing.height, model.spec.preprocessing.width)
        self._masks = self._whole("masks", 1, _MOST_MASKS)
        self._cells = self._whole("cells", 1, size)
        self._seed = self._whole("seed", 0, 2**63 - 1)
        self._keep = self.options["keep"]
        if not 0 < self._keep < 1:
            raise UsageError(
                f"keep is the share of cells that a mask shows, between 0 and 1, got {self._keep}"
            )

    @property
    def most_passes(self) -> int:
        """Returns the number of masks + 1."""
        return self._masks + 1

    def cams(self, subject: Subject, report: Report) -> tuple[Array, int]:
        """Makes the CAMs; see `MultiPass.cams`."""
        if subject.tensor is None:
            raise UsageError("rise runs the whole network, so it needs the image itself")
        preprocessing = self.model.spec.preprocessing
        height, width = preprocessing.height, preprocessing.width
        masked = MaskedInput(subject.tensor, preprocessing)
        masks = random_masks(height, width, self._cells, self._keep, self._seed)
        total = np.zeros((len(subject.class_ids), height, width))
        report(1, self.most_passes)
        for first in range(0, self._masks, self.batch_size):
            count = min(self.batch_size, self._masks - first)
            batch = [next(masks) for _ in range(count)]
            logits = self.model.run(masked(batch), wanted="logits").logits
            scores = probabilities_of(logits, self.model.spec.task)[:, subject.class_ids]
            # One by one, so that the sum's rounding doesn't depend on the batch size.
            for mask, row in zip(batch, scores, strict=True):
                total += row[:, None, None] * mask
            report(1 + first + count, self.most_passes)
        return (total / (self._masks * self._keep)).astype(np.float32), self.most_passes

    def _whole(self, name: str, least: int, most: int) -> int:
        value = self.options[name]
        if not (least <= value <= most and value == int(value)):
            raise UsageError(f"{name} must be a whole number from {least} to {most}, got {value}")
        return int(value)


def random_masks(height: int, width: int, cells: int, keep: float, seed: int) -> Iterator[Array]:
    """Yields masks, float32 [height, width] from 0 to 1, without end.

    Args:
        height: of the input in pixels.
        width: of the input in pixels.
        cells: of the grid that is enlarged, each way; at most the shorter side.
        keep: the chance of a cell to be 1.
        seed: what all of it follows from.

    Example:
        >>> mask = next(random_masks(12, 8, cells=4, keep=0.5, seed=0))
        >>> mask.shape, float(mask.min()) >= 0, float(mask.max()) <= 1
        ((12, 8), True, True)
    """
    random = np.random.default_rng(seed)
    tall, wide = -(-height // cells), -(-width // cells)  # a cell, in pixels
    size = (wide * (cells + 1), tall * (cells + 1))
    while True:
        grid = (random.random((cells, cells)) < keep).astype(np.float32)
        y, x = int(random.integers(tall)), int(random.integers(wide))
        whole = cv2.resize(grid, size, interpolation=cv2.INTER_LINEAR)
        yield whole[y : y + height, x : x + width]
