"""How the results of a batch of heatmaps are cut into launches and laid out in memory.

A launch makes heatmaps of one size, with one placement of the input in the image: neighbouring
images with the same placement are a run. Runs whose results lie in memory at the same time are a
group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from sigcam.images.preprocess import Placement
from sigcam.kernels.plan import ALIGNMENT, Plan

STAGED = 64 << 20
"""Bytes of results that are in memory at once, on the device and page-locked, for one caller.

One image's heatmaps may be more. 64 MB are 10 heatmaps of 5 classes at 480 x 640.
"""


@dataclass(frozen=True)
class Run:
    """Neighbouring images of a batch that share a launch.

    Attributes:
        first, count: number of the first image, and how many there are.
        placement: the placement of all of them; None where only CAMs are made.
    """

    first: int
    count: int
    placement: Placement | None


@dataclass(frozen=True)
class Part:
    """A run of images with its launches, and where its results lie.

    Attributes:
        run: the images.
        plan: the launches.
        heatmaps, valid, cams: where the results of each kind begin, in bytes.
    """

    run: Run
    plan: Plan
    heatmaps: int
    valid: int
    cams: int

    @property
    def shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Returns type and shape of each result by its name."""
        inputs, heatmaps = self.plan.inputs, self.plan.heatmaps
        count = (inputs.batch, inputs.classes)
        pixel = np.uint8 if heatmaps.bytes_ else np.float32
        return {
            "heatmaps": (pixel, (*count, heatmaps.rows.size, heatmaps.columns.size)),
            "valid": (np.uint8, count),
            "cams": (np.float32, (*count, inputs.height, inputs.width)),
        }


@dataclass(frozen=True)
class Group:
    """Parts whose results lie in memory at the same time.

    Attributes:
        parts: the parts.
        results: bytes of their heatmaps and flags, which lie on the device too.
        size: bytes of all of their results.
    """

    parts: tuple[Part, ...]
    results: int
    size: int


def runs_of(placements: Sequence[Placement], pixel: int = 4) -> list[Run]:
    """Cuts a batch into runs of neighbours with the same placement, in order.

    Args:
        placements: those of the images.
        pixel: bytes of one pixel's heatmaps, those of all classes together. A run has no more
            than `STAGED` bytes of them, or one image.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> tall, wide = (place(Preprocessing(), *size) for size in [(640, 480), (480, 640)])
        >>> [(run.first, run.count) for run in runs_of([tall, tall, wide, tall])]
        [(0, 2), (2, 1), (3, 1)]
        >>> [(run.first, run.count) for run in runs_of([tall] * 5, pixel=100)]
        [(0, 2), (2, 2), (4, 1)]
    """
    runs = []
    first = 0
    for placement, same in groupby(placements):
        left = len(list(same))
        most = max(1, STAGED // (placement.height * placement.width * pixel))
        while left:
            count = min(left, most)
            runs.append(Run(first, count, placement))
            first, left = first + count, left - count
    return runs


def groups_of(planned: Sequence[tuple[Run, Plan]]) -> tuple[Group, ...]:
    """Puts runs together whose heatmaps and flags are no more than `STAGED` bytes, in order.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import Heatmaps, Inputs, plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> made = plan(inputs, Heatmaps(whole(2000, 7), whole(3000, 7)), processors=84)
        >>> [len(group.parts) for group in groups_of([(Run(0, 2, None), made)] * 3)]
        [1, 1, 1]
    """
    groups: list[list[tuple[Run, Plan]]] = []
    size = STAGED + 1
    for run, plan in planned:
        own = heatmaps_size(plan)
        if size + own > STAGED:
            groups.append([])
            size = 0
        groups[-1].append((run, plan))
        size += own
    return tuple(layout(group) for group in groups)


def heatmaps_size(plan: Plan) -> int:
    """Returns the bytes of a run's heatmaps.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import Heatmaps, Inputs, plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> heatmaps_size(plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84))
        401408
    """
    wanted = plan.heatmaps
    count = plan.inputs.batch * plan.inputs.classes * wanted.rows.size * wanted.columns.size
    return int(count * (1 if wanted.bytes_ else 4))


def layout(planned: Sequence[tuple[Run, Plan]]) -> Group:
    """Lays out the results of runs: all heatmaps and flags, then all CAMs.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import Heatmaps, Inputs, plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> made = plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84)
        >>> group = layout([(Run(0, 2, None), made)])
        >>> [(part.heatmaps, part.valid, part.cams) for part in group.parts]
        [(0, 401408, 401664)]
        >>> group.results, group.size
        (401664, 402176)
    """
    at = 0
    places: list[list[int]] = []
    for _, plan in planned:
        valid = at + _aligned(heatmaps_size(plan))
        places.append([at, valid])
        at = valid + _aligned(plan.inputs.batch * plan.inputs.classes)
    results = at
    for (_, plan), place in zip(planned, places, strict=True):
        place.append(at)
        at += _aligned(cams_size(plan))
    parts = [Part(*one, *place) for one, place in zip(planned, places, strict=True)]
    return Group(tuple(parts), results, at)


def cams_size(plan: Plan) -> int:
    """Returns the bytes of a run's CAMs.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import Heatmaps, Inputs, plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> cams_size(plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84))
        392
    """
    return 4 * plan.inputs.batch * plan.inputs.classes * plan.inputs.positions


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
