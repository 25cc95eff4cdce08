"""Plans which launches of clamp_combine.cu make the heatmaps of a batch, with what arguments.

This is pure arithmetic: nothing here needs a GPU, a driver or NumPy.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from math import gcd, isqrt

from sigcam.kernels.arguments import Axis, CombineArguments, HeatmapArguments, Place
from sigcam.kernels.shapes import (
    CHUNK_CHANNELS,
    CLASS_TILE,
    MAX_GRID,
    MAX_INT,
    Cams,
    Heatmaps,
    Inputs,
)

WARP = 32
THREADS = 256
"""Threads of a block; a multiple of WARP."""

ENLARGE_THREADS = 64
"""Most threads of a block of `enlarge`: small heatmaps then reach more multiprocessors."""

COLUMNS = 4
"""Columns of a thread of `enlarge` and `extremes_bicubic`; it has BYTE_COLUMNS where it makes
bilinear heatmaps of bytes. COLUMNS in the source."""

BYTE_COLUMNS = 8

STRIP_ROWS = (16, 64)
"""Fewest and most pixel rows of a warp. What a warp does before its first row costs as many
instructions as ten rows or so; short strips give a small batch more warps."""

BLOCKS_PER_PROCESSOR = 4
"""Blocks that keep a multiprocessor busy while others wait for memory."""

WARPS_PER_PROCESSOR = 16
"""The same of warps, where a thread has registers for that many."""

MAX_CHUNKS = 64
"""Most parts that the channels are cut into; the last block of a heatmap adds them up."""

PARTS_AHEAD = 8
"""Parts that a thread of the last block reads side by side."""

ALIGNMENT = 256
"""Bytes to which the parts of the workspace are aligned."""

HEADER = 8
"""Floats at the beginning of shared memory; HEADER in the source."""


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
        cams: where the CAMs begin, float32 [B, K, h, w]; nothing lies there where CAMs are given.
        bounds: where the heatmaps' smallest and largest values begin, float32 [B, K, 2].
        partial: where the partial sums and extremes of blocks begin.
        places: where the images' places begin, if each has its own.
        size: size of all parts together.
    """

    arrived: int
    counters: int
    cams: int
    bounds: int
    partial: int
    places: int
    size: int


@dataclass(frozen=True)
class Plan:
    """The launches for a batch, and all of their arguments but the addresses.

    Attributes:
        inputs, heatmaps: what was planned for.
        combine, extremes, enlarge: the launches, in this order. There is no `combine` for
            CAMs, and `extremes` only for them and for bicubic heatmaps.
        workspace: device memory that they share.
        fields: the numbers of `CombineArguments`; empty for CAMs.
        places: where the heatmaps of each image lie, if each has a place of its own; else None.
        pixels: number of pixels of all heatmaps.
    """

    inputs: Inputs | Cams
    heatmaps: Heatmaps
    combine: Launch | None
    extremes: Launch | None
    enlarge: Launch
    workspace: Workspace
    fields: dict[str, int]
    places: ctypes.Array[Place] | None
    pixels: int
    _combine: CombineArguments | None = field(repr=False)  # without addresses
    _heatmap: HeatmapArguments = field(repr=False)

    def arguments(
        self,
        *,
        heatmaps: int,
        valid: int,
        workspace: int,
        features: int = 0,
        weights: int = 0,
        cams: int = 0,
        places: int | None = None,
    ) -> tuple[CombineArguments | None, HeatmapArguments]:
        """Returns the arguments of the launches.

        Args:
            heatmaps: address that the heatmaps are written to.
            valid: address that the flags are written to, uint8 [B, K].
            workspace: address of `workspace.size` bytes, aligned to 256.
            features: address of the features; of a plan for `Inputs`.
            weights: address of the CAM weights; of a plan for `Inputs`.
            cams: address of the CAMs; of a plan for `Cams`.
            places: address of a copy of `places` on the device, a multiple of 8; None where it
                is in the workspace, at `workspace.places`.

        Returns:
            The argument of `combine`, None where there is no such launch, and the one of
            `extremes` and `enlarge`.

        Raises:
            ValueError: an address that isn't aligned as the plan takes it to be.
        """
        parts, given = self.workspace, self.inputs
        alignment = given.alignment if isinstance(given, Inputs) else 4
        if (features | weights | cams) % alignment or heatmaps % self.heatmaps.alignment:
            self._refuse(alignment, features=features, weights=weights, cams=cams)
            self._refuse(self.heatmaps.alignment, heatmaps=heatmaps)
        listed = 0
        if self.places is not None:
            listed = workspace + parts.places if places is None else places
            if listed % ctypes.alignment(Place):
                raise ValueError(f"places must lie at a multiple of 8, got {listed:#x}")
        combine = None
        if self._combine is not None:
            cams = workspace + parts.cams
            combine = CombineArguments.from_buffer_copy(self._combine)
            combine.features, combine.weights = features, weights
            combine.partial, combine.cams = workspace + parts.partial, cams
            combine.bounds, combine.valid = workspace + parts.bounds, valid
            combine.arrived, combine.places = workspace + parts.arrived, listed
        enlarge = HeatmapArguments.from_buffer_copy(self._heatmap)
        enlarge.cams, enlarge.bounds, enlarge.valid = cams, workspace + parts.bounds, valid
        enlarge.partial, enlarge.arrived = workspace + parts.partial, workspace + parts.arrived
        enlarge.heatmaps, enlarge.places = heatmaps, listed
        return combine, enlarge

    def launches(
        self, combine: CombineArguments | None, heatmap: HeatmapArguments
    ) -> list[tuple[Launch, ctypes.Structure]]:
        """Returns the launches in order, each with its one of the `arguments`."""
        found: list[tuple[Launch, ctypes.Structure]] = []
        if self.combine is not None and combine is not None:
            found.append((self.combine, combine))
        if self.extremes is not None:
            found.append((self.extremes, heatmap))
        found.append((self.enlarge, heatmap))
        return found

    def images(self) -> list[tuple[int, tuple[int, int, int]]]:
        """Returns for each image the number of pixels before its heatmaps, and their [K, H, W].

        Example:
            >>> from sigcam.kernels.arguments import whole
            >>> cams, axes = Cams(2, 5, 7, 7), [whole(20, 7), whole(30, 7)]
            >>> plan(cams, Heatmaps(axes, axes), processors=84).images()
            [(0, (5, 20, 20)), (2000, (5, 30, 30))]
        """
        axes = self.heatmaps.axes()
        found, start = [], 0
        for rows, columns in axes if self.heatmaps.ragged else axes * self.inputs.batch:
            found.append((start, (self.inputs.classes, rows.size, columns.size)))
            start += self.inputs.classes * rows.size * columns.size
        return found

    @staticmethod
    def _refuse(alignment: int, **addresses: int) -> None:
        for name, address in addresses.items():
            if address % alignment:
                raise ValueError(
                    f"{name} was planned for addresses that are multiples of {alignment}, got "
                    f"{address:#x}; plan with the alignment that it has"
                )


def plan(
    inputs: Inputs | Cams, heatmaps: Heatmaps, *, processors: int, threads: int = THREADS
) -> Plan:
    """Plans the launches for a batch.

    Args:
        inputs: the features and weights, or the CAMs, that there are.
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
        ('combine_odd_f32_v4_k1', 'enlarge_bilinear_f32')
    """
    axes = heatmaps.axes()
    sizes = [(rows.size, columns.size) for rows, columns in axes]
    _check(inputs, heatmaps, axes, processors, threads)
    strip = _strip(inputs, heatmaps, sizes, processors)
    count = inputs.batch * inputs.classes
    fields, combine = {}, None
    if isinstance(inputs, Inputs):
        vector = _vector(inputs, threads)
        fields = _fields(inputs, vector, processors, threads)
        fields["bilinear"] = int(heatmaps.interpolation == "bilinear")
        combine = _combine(inputs, vector, fields, threads)
    extremes = None
    if combine is None or heatmaps.interpolation == "bicubic":
        extremes = _extremes(heatmaps, axes, count, strip, processors, threads)
    enlarge = _enlarge(heatmaps, sizes, count, strip, threads)
    places = heatmaps.places(inputs.classes)
    ragged = (Place * inputs.batch)(*places) if heatmaps.ragged else None
    common = Place() if heatmaps.ragged else places[0]
    together = _columns(heatmaps) * (1 if heatmaps.bytes_ else 4)  # bytes
    heatmap = HeatmapArguments(
        classes=inputs.classes, strip=strip, aligned=heatmaps.alignment % together == 0,
        place=common,
    )  # fmt: skip
    each = inputs.classes * sum(height * width for height, width in sizes)
    return Plan(
        inputs, heatmaps, combine, extremes, enlarge,
        workspace=_workspace(inputs, fields, combine, extremes, heatmaps),
        fields=fields, places=ragged,
        pixels=each if heatmaps.ragged else each * inputs.batch,
        _combine=CombineArguments(place=common, **fields) if fields else None, _heatmap=heatmap,
    )  # fmt: skip


def _check(
    inputs: Inputs | Cams,
    heatmaps: Heatmaps,
    axes: list[tuple[Axis, Axis]],
    processors: int,
    threads: int,
) -> None:
    """Refuses arguments of `plan` that don't fit together, or fit no launch."""
    if threads < WARP or threads % WARP or processors < 1:
        raise ValueError(
            f"threads must be a multiple of {WARP} and processors at least 1, got {threads} "
            f"and {processors}"
        )
    if heatmaps.ragged and len(axes) != inputs.batch:
        raise ValueError(f"there are axes for {len(axes)} images, and {inputs.batch} images")
    for rows, columns in axes:
        cells = (rows.cells, columns.cells)
        if cells != (inputs.height, inputs.width):
            raise ValueError(
                f"the heatmaps' axes are for a CAM of {cells[0]} x {cells[1]}, the features "
                f"have {inputs.height} x {inputs.width}"
            )
    count, warps = inputs.batch * inputs.classes, min(threads, ENLARGE_THREADS) // WARP
    size = (max(rows.size for rows, _ in axes), max(columns.size for _, columns in axes))
    limit = (MAX_GRID * warps * STRIP_ROWS[0], MAX_GRID * WARP * COLUMNS)
    if count > MAX_INT or size[0] > limit[0] or size[1] > limit[1]:
        raise ValueError(
            f"at most {MAX_INT} heatmaps of {limit[0]} x {limit[1]} pixels fit one launch, got "
            f"{count} of {size[0]} x {size[1]}; split the batch"
        )


def _combine(inputs: Inputs, vector: int, fields: dict[str, int], threads: int) -> Launch:
    """Returns the launch that makes the CAMs."""
    classes = 1 if inputs.classes == 1 else CLASS_TILE
    kind = "_positions" if inputs.per_position else "_odd" if fields["group"] > 1 else ""
    # The weights make room for the sums, of as many classes at a time as the source has room for.
    staged = 0 if inputs.per_position else classes * fields["chunk_groups"] * fields["group"]
    sums = threads * vector * min(classes, 16 // vector)
    return Launch(
        kernel=f"combine{kind}_{'f16' if inputs.half else 'f32'}_v{vector}_k{classes}",
        grid=(fields["chunks"] * fields["tiles"], _class_tiles(inputs), inputs.batch),
        block=threads,
        shared=4 * (HEADER + max(sums, staged)),
    )


def _extremes(
    heatmaps: Heatmaps,
    axes: list[tuple[Axis, Axis]],
    count: int,
    strip: int,
    processors: int,
    threads: int,
) -> Launch:
    """Returns the launch that finds the extremes of `count` heatmaps."""
    if heatmaps.interpolation == "bicubic":
        # A warp takes strips of the crop box.
        tile = WARP * COLUMNS
        strips = max(
            -(-(rows.high - rows.low) // strip) * -(-(columns.high - columns.low) // tile)
            for rows, columns in axes
        )
        wanted = -(-BLOCKS_PER_PROCESSOR * processors // count)
        blocks = min(-(-strips * WARP // threads), MAX_CHUNKS, wanted)
    else:
        # A warp takes rows of 32 samples, and is given 16 of them: few cells need few threads.
        down, across = (2 * axis.cells + 2 for axis in axes[0])
        threads = min(threads, WARP * -(-down * -(-across // WARP) // 16))
        blocks = 1
    shared = 4 * (HEADER + 2 * threads // WARP)
    return Launch(f"extremes_{heatmaps.interpolation}", (count, blocks, 1), threads, shared)


def _enlarge(
    heatmaps: Heatmaps, sizes: list[tuple[int, int]], count: int, strip: int, threads: int
) -> Launch:
    """Returns the launch that writes `count` heatmaps."""
    threads, tile = min(threads, ENLARGE_THREADS), WARP * _columns(heatmaps)
    rows, columns = (max(size) for size in zip(*sizes, strict=True))
    return Launch(
        kernel=f"enlarge_{heatmaps.interpolation}_{'u8' if heatmaps.bytes_ else 'f32'}",
        grid=(count, -(-rows // (strip * threads // WARP)), -(-columns // tile)),
        block=threads,
        shared=0,
    )


def _columns(heatmaps: Heatmaps) -> int:
    """Returns the columns of a thread of `enlarge`."""
    eight = heatmaps.bytes_ and heatmaps.interpolation == "bilinear"
    return BYTE_COLUMNS if eight else COLUMNS


def _strip(
    inputs: Inputs | Cams, heatmaps: Heatmaps, sizes: list[tuple[int, int]], processors: int
) -> int:
    """Returns the pixel rows of a warp: as many as leave warps enough for the GPU."""
    images = 1 if heatmaps.ragged else inputs.batch
    tile = WARP * _columns(heatmaps)
    rows = sum(height * -(-width // tile) for height, width in sizes)
    wanted: int = images * inputs.classes * rows // (WARPS_PER_PROCESSOR * processors)
    return max(STRIP_ROWS[0], min(wanted, STRIP_ROWS[1]))


def _vector(inputs: Inputs, threads: int) -> int:
    """Returns how many elements a thread reads at once: 16 bytes where all addresses allow it."""
    vector = 16 // inputs.itemsize
    # Every image, and for weights per position every class, must begin on 16 bytes.
    starts = inputs.channels * inputs.positions
    one_only = inputs.batch == 1 and not (inputs.per_position and inputs.classes > 1)
    if inputs.alignment < 16 or (starts % vector and not one_only):
        return 1
    # A vector goes over the end of one channel at most.
    if inputs.positions < vector:
        return 1
    group, units = _group(inputs.positions, vector)
    return vector if group == 1 or units <= threads else 1


def _group(positions: int, vector: int) -> tuple[int, int]:
    """Returns the fewest channels whose elements fill whole vectors, and the number of these."""
    group = vector // gcd(vector, positions)
    return group, group * positions // vector


def _class_tiles(inputs: Inputs) -> int:
    """Returns how many blocks share the classes."""
    return -(-inputs.classes // CLASS_TILE)


def _fields(inputs: Inputs, vector: int, processors: int, threads: int) -> dict[str, int]:
    """Returns the numbers of `CombineArguments`: how channels and positions are divided."""
    class_tiles = _class_tiles(inputs)
    tile_classes = -(-inputs.classes // class_tiles)
    group, units = _group(inputs.positions, vector)
    tiles = -(-units // threads)
    tile_units = -(-units // tiles)
    groups = -(-inputs.channels // group)
    lanes = min(threads // tile_units, groups)
    # As many parts as keep the GPU busy, but none with less than one round of its lanes, and no
    # more than make the last block read as many partial sums as each has read features.
    wanted = -(-BLOCKS_PER_PROCESSOR * processors // (inputs.batch * class_tiles * tiles))
    balanced = isqrt(inputs.channels * inputs.itemsize // (4 * tile_classes))
    chunks = max(1, min(wanted, balanced, MAX_CHUNKS, groups // lanes))
    if chunks > PARTS_AHEAD:
        chunks -= chunks % PARTS_AHEAD
    chunk_groups = min(-(-groups // chunks), CHUNK_CHANNELS // group)
    return {
        "channels": inputs.channels,
        "positions": inputs.positions,
        "classes": inputs.classes,
        "tile_classes": tile_classes,
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


def _workspace(
    inputs: Inputs | Cams,
    fields: dict[str, int],
    combine: Launch | None,
    extremes: Launch | None,
    heatmaps: Heatmaps,
) -> Workspace:
    """Lays out the parts, each aligned to `ALIGNMENT`."""
    count = inputs.batch * inputs.classes
    counters = combine.grid[1] * combine.grid[2] if combine else 0
    partial = count * fields["chunks"] * inputs.positions if combine else 0
    if extremes is not None:
        counters = max(counters, count)
        # As much for all sizes of heatmaps, so that their plans may share a workspace.
        blocks = MAX_CHUNKS if heatmaps.interpolation == "bicubic" else 1
        partial = max(partial, 3 * count * blocks)
    cams = 4 * count * inputs.positions if combine else 0
    places = ctypes.sizeof(Place) * inputs.batch if heatmaps.ragged else 0
    starts = [0]
    for size in (4 * counters, cams, 8 * count, 4 * partial, places):
        starts.append(-(-(starts[-1] + size) // ALIGNMENT) * ALIGNMENT)
    return Workspace(starts[0], 4 * counters, *starts[1:])
