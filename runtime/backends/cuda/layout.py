"""How a batch of heatmaps is cut into pieces that memory has room for, and laid out there.

One launch makes the heatmaps of images of any sizes, one after the other in memory, so a piece is
one launch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from sigcam.core.types import Array
from sigcam.images.preprocess import Placement
from sigcam.kernels.plan import ALIGNMENT, Plan

STAGED = 64 << 20
"""Bytes of results that are in memory at once, on the device and page-locked, for one caller.

One image's heatmaps may be more. 64 MB are 10 images' heatmaps of 5 classes at 480 x 640.
"""


@dataclass(frozen=True)
class Piece:
    """Neighbouring images of a batch with their launches, and where the results lie.

    Heatmaps lie at the beginning, those of all images one after the other.

    Attributes:
        first: number of the first image.
        plan: the launches.
        valid, cams: where the flags and the CAMs begin, in bytes.
        size: bytes of all results.
    """

    first: int
    plan: Plan
    valid: int
    cams: int
    size: int

    def results(self, memory: Array) -> tuple[list[Array], Array, Array]:
        """Returns each image's heatmaps [K, H, W], the flags [B, K] and the CAMs [B, K, h, w].

        Args:
            memory: uint8, the memory that holds the results; what is returned are views of it.
        """
        inputs, kind = self.plan.inputs, np.uint8 if self.plan.heatmaps.bytes_ else np.float32
        count = (inputs.batch, inputs.classes)
        pixels = memory[: self.valid].view(kind)
        images = [
            pixels[start : start + prod(shape)].reshape(shape)
            for start, shape in self.plan.images()
        ]  # fmt: skip
        valid = memory[self.valid : self.valid + count[0] * count[1]].reshape(count)
        cams = memory[self.cams : self.cams + cams_size(self.plan)].view(np.float32)
        return images, valid, cams.reshape(*count, inputs.height, inputs.width)


def piece(first: int, plan: Plan) -> Piece:
    """Lays out the results of a plan: heatmaps and flags, which lie on the device too, then CAMs.

    Args:
        first: number of the piece's first image.
        plan: its launches.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import plan
        >>> from sigcam.kernels.shapes import Heatmaps, Inputs
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> axes = [whole(224, 7), whole(100, 7)]
        >>> made = piece(0, plan(inputs, Heatmaps(axes, axes), processors=84))
        >>> made.valid, made.cams, made.size
        (240896, 241152, 241664)
    """
    valid = _aligned(plan.pixels * (1 if plan.heatmaps.bytes_ else 4))
    cams = valid + _aligned(plan.inputs.batch * plan.inputs.classes)
    return Piece(first, plan, valid, cams, cams + _aligned(cams_size(plan)))


def pieces_of(placements: Sequence[Placement], pixel: int) -> Iterator[tuple[int, int]]:
    """Cuts a batch into neighbours whose heatmaps take no more than `STAGED` bytes, or one image.

    Args:
        placements: those of the images.
        pixel: bytes of one pixel's heatmaps, those of all classes together.

    Yields:
        The number of a piece's first image, and how many it has.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> sizes = [(480, 640), (640, 480), (480, 640), (5000, 4000), (10, 10)]
        >>> placed = [place(Preprocessing(), *size) for size in sizes]
        >>> list(pieces_of(placed, pixel=100))
        [(0, 2), (2, 1), (3, 1), (4, 1)]
    """
    first, total = 0, 0
    for number, one in enumerate(placements):
        size = one.height * one.width * pixel
        if number > first and total + size > STAGED:
            yield first, number - first
            first, total = number, 0
        total += size
    yield first, len(placements) - first


def cams_size(plan: Plan) -> int:
    """Returns the bytes of a plan's CAMs.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import plan
        >>> from sigcam.kernels.shapes import Heatmaps, Inputs
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> cams_size(plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84))
        392
    """
    return 4 * plan.inputs.batch * plan.inputs.classes * plan.inputs.positions


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
