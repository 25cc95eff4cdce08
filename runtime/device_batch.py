"""How a batch of maps is cut into launches of the kernels, and where their results lie.

The kernels make maps of one size per launch, with one placement of the input in the picture.
So a batch is cut into runs of neighbouring pictures with the same placement, and each run is
launched at its part of the features and weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from sigcam.kernels.arguments import Axis as KernelAxis
from sigcam.kernels.plan import ALIGNMENT, Plan
from sigcam.runtime.errors import ArtifactError
from sigcam.runtime.geometry import Axis, Placement


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory.

    Attributes:
        address: of its first element.
        shape: it is C-contiguous.
        half: whether it is float16; float32 otherwise.
    """

    address: int
    shape: tuple[int, ...]
    half: bool


@dataclass(frozen=True)
class Run:
    """Neighbouring pictures of a batch that share a launch.

    Attributes:
        first, count: which pictures.
        placement: of all of them.
    """

    first: int
    count: int
    placement: Placement


@dataclass(frozen=True)
class Part:
    """A run, how it is launched, and where its results begin in the results, in bytes."""

    run: Run
    plan: Plan
    maps: int
    valid: int
    grids: int

    @property
    def shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of each result."""
        inputs, maps = self.plan.inputs, self.plan.maps
        count = (inputs.batch, inputs.classes)
        return {
            "maps": (np.float32, (*count, maps.rows.size, maps.columns.size)),
            "valid": (np.uint8, count),
            "grids": (np.float32, (*count, inputs.height, inputs.width)),
        }


def axis_of(axis: Axis, cells: int) -> KernelAxis:
    """A placement's axis as the kernels take it.

    Args:
        axis: how the input lies along an axis of the picture.
        cells: of the grid along it.

    Returns:
        Pixel i is at ((i + 0.5 - start) * shown / used + first) * cells / length - 0.5 in
        the grid, 0 being the first cell's centre; the window is [low, high).
    """
    step, share = axis.shown / axis.used, cells / axis.length
    offset = ((0.5 - axis.start) * step + axis.first) * share - 0.5
    return KernelAxis(axis.size, axis.low, axis.high, cells, step * share, offset)


def runs_of(placements: Sequence[Placement]) -> list[Run]:
    """The batch cut into runs of neighbours with the same placement, in order."""
    runs = []
    first = 0
    for placement, same in groupby(placements):
        count = len(list(same))
        runs.append(Run(first, count, placement))
        first += count
    return runs


def layout(planned: Sequence[tuple[Run, Plan]]) -> tuple[list[Part], int, int]:
    """Where the results of the runs lie: all maps and flags, then all grids.

    Returns:
        The parts; bytes of maps and flags, which lie on the device too; bytes of everything.
    """
    at = 0
    places: list[list[int]] = []
    for _, plan in planned:
        count = plan.inputs.batch * plan.inputs.classes
        valid = at + _aligned(4 * count * plan.maps.rows.size * plan.maps.columns.size)
        places.append([at, valid])
        at = valid + _aligned(count)
    results = at
    for (_, plan), place in zip(planned, places, strict=True):
        place.append(at)
        at += _aligned(grids_size(plan))
    parts = [Part(*one, *place) for one, place in zip(planned, places, strict=True)]
    return parts, results, at


def grids_size(plan: Plan) -> int:
    """Bytes of a run's grids."""
    return 4 * plan.inputs.batch * plan.inputs.classes * plan.inputs.positions


def address_of(tensor: DeviceTensor, picture: int) -> int:
    """The address of a picture's part of the batch."""
    elements = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return tensor.address + picture * elements * (2 if tensor.half else 4)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_tensors(features: DeviceTensor, weights: DeviceTensor, pictures: int) -> None:
    """Refuses tensors that the kernels don't take.

    Raises:
        ArtifactError: shapes or types that don't belong together.
    """
    shape, other = features.shape, weights.shape
    fits = len(shape) == 4 and len(other) in (3, 5) and shape[0] == other[0] == pictures
    if (
        not fits
        or other[2] != shape[1]
        or (len(other) == 5 and other[3:] != shape[2:])
        or features.half != weights.half
        or 0 in (*shape, *other)
    ):
        kinds = ["float16" if tensor.half else "float32" for tensor in (features, weights)]
        raise ArtifactError(
            f"the graph's outputs don't belong together: the weights must be [{pictures}, K, N] or "
            f"[{pictures}, K, N, h, w] for features [{pictures}, N, h, w] of the same type, got "
            f"{kinds[1]} {list(other)} and {kinds[0]} {list(shape)}; export the model again"
        )
