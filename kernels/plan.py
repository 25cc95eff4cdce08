"""Which launches of clamp_combine.cu make the heatmaps of a batch, and with what arguments.

Pure arithmetic: nothing here needs a GPU, a driver or NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

from sigcam.kernels.arguments import Axis, CombineArguments, HeatmapArguments

Interpolation = Literal["bilinear", "bicubic"]

WARP = 32
THREADS = 256
"""Threads of a block; a multiple of WARP."""

CHUNK_CHANNELS = 512
"""Most channels of a block, as their weights are staged in shared memory."""

CLASS_TILE = 4
"""Classes that a block makes from one reading of the features, where there are several."""

TILE_COLUMNS = 128
"""Pixels of a row that a warp of `enlarge` writes; TILE_COLUMNS in the source."""

BLOCKS_PER_PROCESSOR = 4
"""Blocks that keep a multiprocessor busy while others wait for memory."""

MAX_CHUNKS = 64
"""Most parts that the channels are cut into; the last block of a heatmap adds them up."""

ALIGNMENT = 256
"""Bytes to which the parts of the workspace are aligned."""

_MAX_GRID = 65535  # of a launch's y and z
_MAX_INT = 2**31 - 1  # the kernels count a block's elements in int


@dataclass(frozen=True)
class Inputs:
    """Shapes and types of features [B, N, h, w] and weights [B, K, N] or [B, K, N, h, w].

    Attributes:
        batch, channels, height, width: B, N, h, w.
        classes: K.
        half: whether both are float16; float32 otherwise.
        per_position: whether the weights have a value for each position.
        clamp: NWC: negative weights count as 0.
        alignment: the largest power of two, up to 16, that divides both addresses.
    """

    batch: int
    channels: int
    height: int
    width: int
    classes: int
    half: bool = False
    per_position: bool = False
    clamp: bool = True
    alignment: int = 16

    def __post_init__(self) -> None:
        for name in ("batch", "channels", "height", "width", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.positions * CHUNK_CHANNELS > _MAX_INT:
            raise ValueError(
                f"a CAM may have at most {_MAX_INT // CHUNK_CHANNELS} positions, got "
                f"{self.height} x {self.width}"
            )
        if self.batch > _MAX_GRID or -(-self.classes // CLASS_TILE) > _MAX_GRID:
            raise ValueError(
                f"at most {_MAX_GRID} images and {_MAX_GRID * CLASS_TILE} classes fit one "
                f"launch, got {self.batch} and {self.classes}; split the batch"
            )

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return 2 if self.half else 4

    @property
    def positions(self) -> int:
        """P = h * w."""
        return self.height * self.width


@dataclass(frozen=True)
class Heatmaps:
    """The heatmaps [B, K, H, W] that are wanted.

    Attributes:
        rows, columns: how they lie over the CAM.
        bytes_: whether they are uint8 (0 to 255); float32 (0 to 1) otherwise.
        interpolation: "bilinear" or "bicubic" (a = -0.75).
        alignment: as in `Inputs`, of the heatmaps' address.
    """

    rows: Axis
    columns: Axis
    bytes_: bool = False
    interpolation: Interpolation = "bilinear"
    alignment: int = 16

    def __post_init__(self) -> None:
        for name, axis in (("rows", self.rows), ("columns", self.columns)):
            if not 0 <= axis.low < axis.high <= axis.size or not axis.scale > 0:
                raise ValueError(
                    f"the {name} must have 0 <= low < high <= size and a scale above 0, got "
                    f"low {axis.low}, high {axis.high}, size {axis.size}, scale {axis.scale}"
                )


@dataclass(frozen=True)
class Launch:
    """A launch but for its argument.

    Attributes:
        kernel: name in the source.
        grid: blocks along x, y, z.
        block: threads of a block.
        shared: bytes of dynamic shared memory.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared: int


@dataclass(frozen=True)
class Workspace:
    """Where the parts of the workspace begin, in bytes, and how large it is.

    `counters` bytes from `arrived` must be 0 before the first launch; every launch
    leaves them so.
    """

    arrived: int
    counters: int
    cams: int
    bounds: int
    partial: int
    size: int


@dataclass(frozen=True)
class Plan:
    """All that is known before there are addresses.

    Attributes:
        inputs, heatmaps: what was planned for.
        combine, extremes, enlarge: the launches, in this order; `extremes` for bicubic only.
        workspace: device memory that they share.
        fields: the numbers of `CombineArguments`.
        vectors: whether heatmaps are stored four pixels at a time.
    """

    inputs: Inputs
    heatmaps: Heatmaps
    combine: Launch
    extremes: Launch | None
    enlarge: Launch
    workspace: Workspace
    fields: dict[str, int]
    vectors: bool

    def arguments(
        self, *, features: int, weights: int, heatmaps: int, valid: int, workspace: int
    ) -> tuple[CombineArguments, HeatmapArguments]:
        """The arguments of the launches, from device addresses.

        Raises:
            ValueError: an address that isn't aligned as the plan takes it to be.
        """
        for name, address, alignment in (
            ("features", features, self.inputs.alignment),
            ("weights", weights, self.inputs.alignment),
            ("heatmaps", heatmaps, self.heatmaps.alignment),
        ):
            if address % alignment:
                raise ValueError(
                    f"{name} was planned for addresses that are multiples of {alignment}, got "
                    f"{address:#x}; plan with the alignment that it has"
                )
        parts = self.workspace
        combine = CombineArguments(
            features=features,
            weights=weights,
            partial=workspace + parts.partial,
            cams=workspace + parts.cams,
            bounds=workspace + parts.bounds,
            valid=valid,
            arrived=workspace + parts.arrived,
            rows=self.heatmaps.rows,
            columns=self.heatmaps.columns,
            **self.fields,
        )
        enlarge = HeatmapArguments(
            cams=workspace + parts.cams,
            bounds=workspace + parts.bounds,
            valid=valid,
            partial=workspace + parts.partial,
            arrived=workspace + parts.arrived,
            heatmaps=heatmaps,
            count=self.inputs.batch * self.inputs.classes,
            vectors=self.vectors,
            rows=self.heatmaps.rows,
            columns=self.heatmaps.columns,
        )
        return combine, enlarge


def plan(inputs: Inputs, heatmaps: Heatmaps, *, processors: int, threads: int = THREADS) -> Plan:
    """The launches for a batch.

    Args:
        inputs: what there is.
        heatmaps: what is wanted.
        processors: multiprocessors of the GPU. The sums' order depends on it, so equal GPUs
            give equal bits.
        threads: of a block; a multiple of WARP.

    Raises:
        ValueError: a CAM of another size than the heatmaps' axes are for, or `threads`.
    """
    if threads < WARP or threads % WARP or processors < 1:
        raise ValueError(
            f"threads must be a multiple of {WARP} and processors at least 1, got {threads} "
            f"and {processors}"
        )
    if (heatmaps.rows.cells, heatmaps.columns.cells) != (inputs.height, inputs.width):
        raise ValueError(
            f"the heatmaps' axes are for a CAM of {heatmaps.rows.cells} x {heatmaps.columns.cells}, the "
            f"features have {inputs.height} x {inputs.width}"
        )
    count = inputs.batch * inputs.classes
    rows = -(-heatmaps.rows.size // (threads // WARP))
    if count > _MAX_INT or rows > _MAX_GRID:
        raise ValueError(
            f"at most {_MAX_INT} heatmaps of {_MAX_GRID * (threads // WARP)} rows fit one launch, got "
            f"{count} of {heatmaps.rows.size}; split the batch"
        )
    vector = _vector(inputs, threads)
    classes = 1 if inputs.classes == 1 else CLASS_TILE
    class_tiles = -(-inputs.classes // classes)
    fields = _fields(inputs, vector, class_tiles, processors, threads)
    fields["bilinear"] = int(heatmaps.interpolation == "bilinear")
    kind = "combine_positions" if inputs.per_position else "combine"
    staged = 0 if inputs.per_position else classes * fields["chunk_groups"] * fields["group"]
    combine = Launch(
        kernel=f"{kind}_{'f16' if inputs.half else 'f32'}_v{vector}_k{classes}",
        grid=(fields["chunks"] * fields["tiles"], class_tiles, inputs.batch),
        block=threads,
        shared=4 * (threads * vector + staged),
    )
    extremes = None
    if heatmaps.interpolation == "bicubic":
        height = heatmaps.rows.high - heatmaps.rows.low
        blocks = min(height, MAX_CHUNKS, -(-BLOCKS_PER_PROCESSOR * processors // count))
        extremes = Launch("extremes_bicubic", (count, blocks, 1), threads, 4 * 3 * threads // WARP)
    pixel = 1 if heatmaps.bytes_ else 4
    enlarge = Launch(
        kernel=f"enlarge_{heatmaps.interpolation}_{'u8' if heatmaps.bytes_ else 'f32'}",
        grid=(
            -(-heatmaps.columns.size // TILE_COLUMNS),
            rows,
            min(count, _MAX_GRID),
        ),
        block=threads,
        shared=0,
    )
    counters = 4 * max(inputs.batch * class_tiles, count if extremes else 0)
    partial = count * fields["chunks"] * inputs.positions
    if extremes is not None:
        partial = max(partial, count * extremes.grid[1] * 2)
    return Plan(
        inputs=inputs,
        heatmaps=heatmaps,
        combine=combine,
        extremes=extremes,
        enlarge=enlarge,
        workspace=_workspace(counters, 4 * count * inputs.positions, 8 * count, 4 * partial),
        fields=fields,
        vectors=heatmaps.columns.size % 4 == 0 and heatmaps.alignment % (4 * pixel) == 0,
    )


def _vector(inputs: Inputs, threads: int) -> int:
    """Elements that a thread reads at once: 16 bytes of them where all addresses allow it."""
    vector = 16 // inputs.itemsize
    # Every image, and for weights per position every class, must begin on 16 bytes.
    starts = inputs.channels * inputs.positions
    one_only = inputs.batch == 1 and not (inputs.per_position and inputs.classes > 1)
    if inputs.alignment < 16 or (starts % vector and not one_only):
        return 1
    group, units = _group(inputs.positions, vector)
    return vector if group == 1 or units <= threads else 1


def _group(positions: int, vector: int) -> tuple[int, int]:
    """The fewest channels whose elements fill whole vectors, and how many vectors that is."""
    group = vector // gcd(vector, positions)
    return group, group * positions // vector


def _fields(
    inputs: Inputs, vector: int, class_tiles: int, processors: int, threads: int
) -> dict[str, int]:
    group, units = _group(inputs.positions, vector)
    tiles = -(-units // threads)
    tile_units = -(-units // tiles)
    lanes = threads // tile_units
    groups = -(-inputs.channels // group)
    lanes = min(lanes, groups)
    # As many parts as keep the GPU busy, but none with less than one round of its lanes.
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // (inputs.batch * class_tiles * tiles))
    chunks = max(1, min(wanted, MAX_CHUNKS, groups // lanes))
    chunk_groups = min(-(-groups // chunks), CHUNK_CHANNELS // group)
    return {
        "channels": inputs.channels,
        "positions": inputs.positions,
        "classes": inputs.classes,
        "group": group,
        "units": units,
        "tile_units": tile_units,
        "lanes": lanes,
        "chunk_groups": chunk_groups,
        "chunks": -(-groups // chunk_groups),
        "tiles": tiles,
        "clamp": int(inputs.clamp),
    }


def _workspace(counters: int, cams: int, bounds: int, partial: int) -> Workspace:
    starts = [0]
    for size in (counters, cams, bounds, partial):
        starts.append(-(-(starts[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return Workspace(starts[0], counters, starts[1], starts[2], starts[3], starts[4])
