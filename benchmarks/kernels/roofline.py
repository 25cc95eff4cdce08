"""What the map kernels must move and compute, from plan.py's shapes. Arithmetic, no measuring."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

from benchmarks.kernels.machine_code import Code, Rows, rows_of
from sigcam.kernels.arguments import whole
from sigcam.kernels.plan import WARP, Plan, plan
from sigcam.kernels.shapes import CLASS_TILE, Cams, Heatmaps, Inputs

SCHEDULERS = 4
"""Instructions that a multiprocessor of these GPUs can begin in a cycle, each of a warp."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: what the tables call it.
        bandwidth: bytes a second between its memory and its multiprocessors.
        multiprocessors: how many it has.
        architecture: compute capability times ten.
        clock: cycles a second that are counted with.
    """

    name: str
    bandwidth: float
    multiprocessors: int
    architecture: int
    clock: float


GPUS = (
    Gpu("RTX A6000", 768e9, 84, 86, 1.8e9),
    Gpu("Jetson AGX Orin", 204.8e9, 16, 87, 1.3e9),
    Gpu("H100 SXM", 3.35e12, 132, 90, 1.7e9),
)

# The paper's networks: ResNet-50, VGG-16 and InceptionV3 of its localisation experiments
# with CAMs of 14 x 14, and VGG-16's plain last layer.
FEATURES = (
    ("ResNet-50", (2048, 14, 14)),
    ("VGG-16, InceptionV3", (1024, 14, 14)),
    ("VGG-16, plain", (512, 7, 7)),
)
CLASSES = (1, 5)
SIZES = ((224, 224), (480, 640))
ENLARGED = ((224, 224), (480, 640), (1024, 1024))
BATCHES = ((1, 1), (8, 5), (64, 5))  # images and classes

# Floating-point operations of a bilinear pixel: a multiplication and an addition, with limits.
# What is done for a whole row or line of cells is shared by the pixels of four columns.
PIXEL_OPERATIONS = 2

SINGLE = ("clamp", "matmul", "relu", "resize", "min", "max", "subtract", "divide")
"""The same from a library's operators, one launch each."""


@dataclass(frozen=True)
class Work:
    """Bytes between memory and chip, where every array is read or written once a launch."""

    inputs: int
    between: int
    heatmaps: int
    operations: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.inputs + self.between + self.heatmaps


def planned(
    shape: tuple[int, int, int], classes: int, half: bool, size: tuple[int, int], gpu: Gpu
) -> Plan:
    """The launches of a case: features [1, *shape], bilinear float32 maps of `size`."""
    channels, height, width = shape
    inputs = Inputs(1, channels, height, width, classes, half=half)
    heatmaps = Heatmaps(whole(size[0], height), whole(size[1], width))
    return plan(inputs, heatmaps, processors=gpu.multiprocessors)


def work(case: Plan) -> Work:
    """What the kernels move: the features once for each tile of classes."""
    i, m = _features(case), case.heatmaps
    count, grid = i.batch * i.classes, i.positions
    features = i.itemsize * i.batch * i.channels * grid
    weights = i.itemsize * count * i.channels
    partial = 4 * count * case.fields["chunks"] * grid
    return Work(
        inputs=features * -(-i.classes // CLASS_TILE) + weights,
        between=2 * partial + 2 * 4 * count * grid,
        heatmaps=case.pixels * (1 if m.bytes_ else 4),
        operations=2 * count * i.channels * grid + case.pixels * PIXEL_OPERATIONS,
    )


def _features(case: Plan) -> Inputs:
    """What a case is planned for, which is no CAMs."""
    if not isinstance(case.inputs, Inputs):
        raise TypeError(f"the case must have features and weights, got {case.inputs}")
    return case.inputs


def single_operators(case: Plan) -> int:
    """Bytes that `SINGLE` moves: each reads its inputs and writes its result once."""
    i = _features(case)
    count = i.batch * i.classes
    features = i.itemsize * i.batch * i.channels * i.positions
    weights = i.itemsize * count * i.channels
    cams = 4 * count * i.positions
    heatmaps = 4 * case.pixels
    small = 2 * weights + (features + weights + cams) + 2 * cams
    # resize: CAMs in, maps out; min and max: maps in; subtract and divide: in and out.
    return small + cams + heatmaps + 2 * heatmaps + 2 * 2 * heatmaps


def enlarge_times(case: Plan, rows: Rows, gpu: Gpu) -> tuple[float, float]:
    """Microseconds of `enlarge` by its bytes, and by the instructions that a GPU can begin.

    Of the multiprocessors, the one with the most blocks counts. Latencies don't.
    """
    ((down, _),) = case.heatmaps.axes()
    pixel = 1 if case.heatmaps.bytes_ else 4
    strip = min(case._heatmap.strip, down.size)
    of_warp = rows.once + strip * rows.row + math.ceil(strip * down.scale) * rows.line
    blocks = math.ceil(math.prod(case.enlarge.grid) / gpu.multiprocessors)
    instructions = blocks * case.enlarge.block // WARP * of_warp
    return (
        case.pixels * pixel / gpu.bandwidth * 1e6,
        instructions / SCHEDULERS / gpu.clock * 1e6,
    )


def enlarge_page(codes: dict[int, dict[str, Code]]) -> str:
    """The table of `enlarge`, as Markdown.

    Args:
        codes: the kernels' machine code by architecture, of those of `GPUS`.
    """
    head = ["map", "type", "maps", "bytes", *(gpu.name for gpu in GPUS)]
    rows = [head, ["---"] * len(head)]
    for size, bytes_, (batch, classes) in product(ENLARGED, (False, True), BATCHES):
        cells = []
        for gpu in GPUS:
            wanted = Heatmaps(whole(size[0], 14), whole(size[1], 14), bytes_)
            case = plan(Cams(batch, classes, 14, 14), wanted, processors=gpu.multiprocessors)
            counted = rows_of(codes[gpu.architecture][case.enlarge.kernel])
            if counted is None:
                raise ValueError(f"the rows of {case.enlarge.kernel} weren't found")
            moving, computing = enlarge_times(case, counted, gpu)
            share = min(1, moving / computing)
            cells.append(f"{moving:.2f} / {computing:.2f} ({share:.0%})")
        kind = "uint8" if bytes_ else "float32"
        size_of_all = _mb(case.pixels * (1 if bytes_ else 4))
        rows.append([f"{size[1]}x{size[0]}", kind, str(batch * classes), size_of_all, *cells])
    return _table(rows)


def page() -> str:
    """The two tables, as Markdown."""
    head = ["features", "K", "type", "map", "in", "between", "out", "operations"]
    rows = [[*head, *(gpu.name for gpu in GPUS)], ["---"] * (len(head) + len(GPUS))]
    saved = [["features", "K", "map", "launches", "bytes"], ["---"] * 5]
    for (name, shape), classes, half, size in product(FEATURES, CLASSES, (False, True), SIZES):
        case = planned(shape, classes, half, size, GPUS[0])
        moved = work(case)
        label = f"{name} {'x'.join(map(str, shape))}"
        large = f"{size[1]}x{size[0]}"
        times = [
            work(planned(shape, classes, half, size, gpu)).total / gpu.bandwidth * 1e6
            for gpu in GPUS
        ]
        rows.append(
            [label, str(classes), "fp16" if half else "fp32", large, _mb(moved.inputs),
             _mb(moved.between), _mb(moved.heatmaps), f"{moved.operations / 1e6:.1f} M",
             *(f"{time:.1f}" for time in times)]
        )  # fmt: skip
        if not half:
            ours, theirs = 2 if case.extremes is None else 3, single_operators(case)
            saved.append(
                [label, str(classes), large, f"{ours} for {len(SINGLE)}",
                 f"{_mb(moved.total)} for {_mb(theirs)}"]
            )  # fmt: skip
    return _table(rows) + "\n" + SAVED + "\n" + _table(saved)


SAVED = f"""The same with one operator after the other
({", ".join(SINGLE)}), fp32, planned for the {GPUS[0].name}: launches, and
megabytes moved.
"""


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f}"


def _table(rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
