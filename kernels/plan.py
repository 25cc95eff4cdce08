"""Plans which launches of clamp_combine.cu make the heatmaps of a batch, with what arguments.

This is pure arithmetic: nothing here needs a GPU, a driver or NumPy.
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
        """Returns the bytes of an element."""
        return 2 if self.half else 4

    @property
    def positions(self) -> int:
        """Returns P = h * w."""
        return self.height * self.width


@dataclass(frozen=True)
class Heatmaps:
    """The heatmaps [B, K, H, W] that are wanted.

    Attributes:
        rows, columns: how they lie over the CAM, along the height and the width.
        bytes_: whether they are uint8 (0 to 255) rather than float32 (0 to 1).
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
    """A launch of a kernel, without its argument.

    Attributes:
        kernel: the kernel's name in the source.
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
    """Where the parts of the workspace begin and how large it is, all in bytes.

    Attributes:
        arrived: where the counters begin. They must be 0 before the first launch, and every
            launch leaves them so.
        counters: size of the counters.
        cams: where the CAMs begin, float32 [B, K, h, w].
        bounds: where the heatmaps' smallest and largest values begin, float32 [B, K, 2].
        partial: where the partial sums and extremes of blocks begin.
        size: size of all parts together.
    """

    arrived: int
    counters: int
    cams: int
    bounds: int
    partial: int
    size: int


@dataclass(frozen=True)
class Plan:
    """The launches for a batch, and all of their arguments but the addresses.

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
        """Returns the arguments of the launches.

        Args:
            features: address of the features.
            weights: address of the CAM weights.
            heatmaps: address that the heatmaps are written to.
            valid: address that the flags are written to, uint8 [B, K].
            workspace: address of `workspace.size` bytes, aligned to 256.

        Returns:
            The argument of `combine`, and the one of `extremes` and `enlarge`.

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
    """Plans the launches for a batch.

    Args:
        inputs: the features and weights that there are.
        heatmaps: the heatmaps that are wanted of them.
        processors: multiprocessors of the GPU. The sums' order depends on it, so equal GPUs
            give equal bits.
        threads: threads of a block, a multiple of WARP.

    Raises:
        ValueError: a CAM of another size than the heatmaps' axes are for, more heatmaps than
            fit one launch, or a wrong number of threads or processors.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> inputs = Inputs(batch=1, channels=512, height=7, width=7, classes=1)
        >>> made = plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84)
        >>> made.combine.kernel, made.enlarge.kernel
        ('combine_f32_v4_k1', 'enlarge_bilinear_f32')
    """
    _check(inputs, heatmaps, processors, threads)
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
    count = inputs.batch * inputs.classes
    extremes = _extremes(heatmaps, count, processors, threads)
    counters = 4 * max(inputs.batch * class_tiles, count if extremes else 0)
    partial = count * fields["chunks"] * inputs.positions
    if extremes is not None:
        partial = max(partial, count * extremes.grid[1] * 2)
    pixel = 1 if heatmaps.bytes_ else 4
    return Plan(
        inputs=inputs,
        heatmaps=heatmaps,
        combine=combine,
        extremes=extremes,
        enlarge=_enlarge(heatmaps, count, threads),
        workspace=_workspace(counters, 4 * count * inputs.positions, 8 * count, 4 * partial),
        fields=fields,
        vectors=heatmaps.columns.size % 4 == 0 and heatmaps.alignment % (4 * pixel) == 0,
    )


def _check(inputs: Inputs, heatmaps: Heatmaps, processors: int, threads: int) -> None:
    """Refuses arguments of `plan` that don't fit together, or fit no launch."""
    if threads < WARP or threads % WARP or processors < 1:
        raise ValueError(
            f"threads must be a multiple of {WARP} and processors at least 1, got {threads} "
            f"and {processors}"
        )
    rows, columns = heatmaps.rows, heatmaps.columns
    if (rows.cells, columns.cells) != (inputs.height, inputs.width):
        raise ValueError(
            f"the heatmaps' axes are for a CAM of {rows.cells} x {columns.cells}, the features "
            f"have {inputs.height} x {inputs.width}"
        )
    count, warps = inputs.batch * inputs.classes, threads // WARP
    if count > _MAX_INT or _row_blocks(rows, threads) > _MAX_GRID:
        raise ValueError(
            f"at most {_MAX_INT} heatmaps of {_MAX_GRID * warps} rows fit one launch, got "
            f"{count} of {rows.size}; split the batch"
        )


def _extremes(heatmaps: Heatmaps, count: int, processors: int, threads: int) -> Launch | None:
    """Returns the launch that finds the extremes of `count` bicubic heatmaps; None otherwise."""
    if heatmaps.interpolation != "bicubic":
        return None
    height = heatmaps.rows.high - heatmaps.rows.low
    blocks = min(height, MAX_CHUNKS, -(-BLOCKS_PER_PROCESSOR * processors // count))
    return Launch("extremes_bicubic", (count, blocks, 1), threads, 4 * 3 * threads // WARP)


def _enlarge(heatmaps: Heatmaps, count: int, threads: int) -> Launch:
    """Returns the launch that writes `count` heatmaps."""
    columns = -(-heatmaps.columns.size // TILE_COLUMNS)
    return Launch(
        kernel=f"enlarge_{heatmaps.interpolation}_{'u8' if heatmaps.bytes_ else 'f32'}",
        grid=(columns, _row_blocks(heatmaps.rows, threads), min(count, _MAX_GRID)),
        block=threads,
        shared=0,
    )


def _row_blocks(rows: Axis, threads: int) -> int:
    """Returns how many blocks the rows of a heatmap take, one row for each warp."""
    rows_of_block = threads // WARP
    return int(-(-rows.size // rows_of_block))


def _vector(inputs: Inputs, threads: int) -> int:
    """Returns how many elements a thread reads at once: 16 bytes where all addresses allow it."""
    vector = 16 // inputs.itemsize
    # Every image, and for weights per position every class, must begin on 16 bytes.
    starts = inputs.channels * inputs.positions
    one_only = inputs.batch == 1 and not (inputs.per_position and inputs.classes > 1)
    if inputs.alignment < 16 or (starts % vector and not one_only):
        return 1
    group, units = _group(inputs.positions, vector)
    return vector if group == 1 or units <= threads else 1


def _group(positions: int, vector: int) -> tuple[int, int]:
    """Returns the fewest channels whose elements fill whole vectors, and the number of these."""
    group = vector // gcd(vector, positions)
    return group, group * positions // vector


def _fields(
    inputs: Inputs, vector: int, class_tiles: int, processors: int, threads: int
) -> dict[str, int]:
    """Returns the numbers of `CombineArguments`: how channels and positions are divided."""
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
        "keep_sign": int(inputs.signed),
    }


def _workspace(counters: int, cams: int, bounds: int, partial: int) -> Workspace:
    """Lays out parts of these sizes in bytes, each aligned to `ALIGNMENT`."""
    starts = [0]
    for size in (counters, cams, bounds, partial):
        starts.append(-(-(starts[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return Workspace(starts[0], counters, starts[1], starts[2], starts[3], starts[4])
