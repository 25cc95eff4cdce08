"""What the kernels are given and what is wanted of them: shapes, types, places. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sigcam.kernels.arguments import Axis, Place

Interpolation = Literal["bilinear", "bicubic"]

CHUNK_CHANNELS = 512
"""Most channels of a block of `combine`, as their weights are staged in shared memory."""

CLASS_TILE = 4
"""Most classes that a block makes from one reading of the features."""

MAX_GRID = 65535
"""Most blocks of a launch along y and z."""

MAX_INT = 2**31 - 1
"""Most blocks of a launch along x, and the largest number that the kernels count to."""


@dataclass(frozen=True)
class Inputs:
    """Shapes and types of features [B, N, h, w] and weights [B, K, N] or [B, K, N, h, w].

    Attributes:
        batch, channels, height, width: B, N, h, w.
        classes: K.
        half: whether both are float16 rather than float32.
        per_position: whether the weights have a value for each position.
        clamp: NWC: negative weights count as 0.
        signed: whether CAMs keep the sign of the weighted sum; if not, what is negative is 0.
        alignment: the largest power of two, up to 16, that divides both addresses.

    Example:
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1, half=True)
        >>> inputs.positions, inputs.itemsize
        (49, 2)
    """

    batch: int
    channels: int
    height: int
    width: int
    classes: int
    half: bool = False
    per_position: bool = False
    clamp: bool = True
    signed: bool = False
    alignment: int = 16

    def __post_init__(self) -> None:
        _check_sizes(self, ("batch", "channels", "height", "width", "classes"))
        if self.batch > MAX_GRID or -(-self.classes // CLASS_TILE) > MAX_GRID:
            raise ValueError(
                f"at most {MAX_GRID} images and {MAX_GRID * CLASS_TILE} classes fit one "
                f"launch, got {self.batch} and {self.classes}; split the batch"
            )

    @property
    def itemsize(self) -> int:
        """Returns the bytes of an element."""
        return 2 if self.half else 4

    @property
    def positions(self) -> int:
        """Returns P = h * w."""
        return self.height * self.width


@dataclass(frozen=True)
class Cams:
    """CAMs float32 [B, K, h, w] that something else made, as a graph of the profile "fused".

    Attributes:
        batch, classes, height, width: B, K, h, w.

    Example:
        >>> Cams(batch=2, classes=1000, height=7, width=7).positions
        49
    """

    batch: int
    classes: int
    height: int
    width: int

    def __post_init__(self) -> None:
        _check_sizes(self, ("batch", "classes", "height", "width"))

    @property
    def positions(self) -> int:
        """Returns P = h * w."""
        return self.height * self.width


@dataclass(frozen=True)
class Heatmaps:
    """The heatmaps that are wanted: [B, K, H, W], or [K, H, W] of each image at its own size.

    Attributes:
        rows, columns: how they lie over the CAM, along the height and the width: an axis for
            all images, or one for each.
        bytes_: whether they are uint8 (0 to 255) rather than float32 (0 to 1).
        interpolation: "bilinear" or "bicubic" (a = -0.75).
        alignment: as in `Inputs`, of the heatmaps' address.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> tall, wide = whole(640, 7), whole(480, 7)
        >>> Heatmaps((tall, wide), (wide, tall)).ragged
        True
    """

    rows: Axis | Sequence[Axis]
    columns: Axis | Sequence[Axis]
    bytes_: bool = False
    interpolation: Interpolation = "bilinear"
    alignment: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.rows, Axis) != isinstance(self.columns, Axis):
            raise ValueError("rows and columns must both be one axis, or one for each image")
        for name, axes in (("rows", self.rows), ("columns", self.columns)):
            for axis in self._listed(axes):
                if not 0 <= axis.low < axis.high <= axis.size or not axis.scale > 0:
                    raise ValueError(
                        f"the {name} must have 0 <= low < high <= size and a scale above 0, got "
                        f"low {axis.low}, high {axis.high}, size {axis.size}, scale {axis.scale}"
                    )

    @property
    def ragged(self) -> bool:
        """Returns whether each image has axes of its own."""
        return not isinstance(self.rows, Axis)

    def axes(self) -> list[tuple[Axis, Axis]]:
        """Returns rows and columns of each image, or the one pair for all of them."""
        rows, columns = self._listed(self.rows), self._listed(self.columns)
        if len(rows) != len(columns):
            raise ValueError(f"rows are for {len(rows)} images, columns for {len(columns)}")
        return list(zip(rows, columns, strict=True))

    def places(self, classes: int) -> list[Place]:
        """Returns where the heatmaps of each image lie, one after the other without gaps.

        Args:
            classes: heatmaps of each image.

        Example:
            >>> from sigcam.kernels.arguments import whole
            >>> axes = whole(20, 7), whole(30, 7)
            >>> [place.start for place in Heatmaps(axes, axes).places(classes=5)]
            [0, 2000]
        """
        found, start = [], 0
        for rows, columns in self.axes():
            found.append(Place(rows, columns, start))
            start += classes * rows.size * columns.size
        return found

    @staticmethod
    def _listed(axes: Axis | Sequence[Axis]) -> Sequence[Axis]:
        return (axes,) if isinstance(axes, Axis) else axes


def _check_sizes(given: Inputs | Cams, names: Sequence[str]) -> None:
    for name in names:
        if getattr(given, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(given, name)}")
    if given.positions * CHUNK_CHANNELS > MAX_INT:
        raise ValueError(
            f"a CAM may have at most {MAX_INT // CHUNK_CHANNELS} positions, got "
            f"{given.height} x {given.width}"
        )
