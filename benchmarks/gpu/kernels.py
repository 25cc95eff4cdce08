"""The map kernels against NumPy, on a GPU: values, repeated runs, several streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from benchmarks.gpu.report import CheckFailed
from sigcam.core.types import Array
from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.plan import Plan
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps, to_bytes
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs, Interpolation

# B, N, h, w, K and the maps' size.
SHAPES = (
    (1, 1280, 7, 7, 1, (224, 224)),
    (8, 1280, 7, 7, 5, (224, 224)),
    (1, 2048, 14, 14, 1, (480, 640)),
    (2, 1024, 28, 28, 3, (448, 448)),
    (3, 333, 9, 5, 7, (101, 67)),
    (1, 64, 7, 7, 1000, (56, 56)),
    (1, 512, 14, 14, 2, (1024, 1024)),
    (2, 1, 1, 1, 1, (3, 5)),
    (1, 17, 37, 41, 4, (13, 11)),
)
ROUNDING = 4e-6
"""Of a sum, relative to the sum of its terms' sizes."""
HEATMAP_ERROR = 3e-5
REPEATS = 50
STREAMS = 4


@dataclass(frozen=True)
class Case:
    """Inputs and the maps wanted of them."""

    inputs: Inputs | Cams
    heatmaps: Heatmaps

    def __str__(self) -> str:
        i, m = self.inputs, self.heatmaps
        sizes = ", ".join(f"[{rows.size}, {columns.size}]" for rows, columns in m.axes())
        wanted = f"{m.interpolation} to {'uint8' if m.bytes_ else 'float32'} {sizes}"
        if isinstance(i, Cams):
            return f"CAMs [{i.batch}, {i.classes}, {i.height}, {i.width}], {wanted}"
        kind = "float16" if i.half else "float32"
        positions = ", weights per position" if i.per_position else ""
        clamp = "" if i.clamp else ", not clamped"
        return (
            f"[{i.batch}, {i.channels}, {i.height}, {i.width}] {kind}, {i.classes} classes"
            f"{positions}{clamp}, {wanted}"
        )


@dataclass(frozen=True, eq=False)
class Made:
    """What the kernels left: maps [K, H, W] of each image, valid [B, K], CAMs [B, K, h, w]."""

    heatmaps: Sequence[Array]
    valid: Array
    cams: Array


Runner = Callable[[Case, dict[str, Array]], Made]


def cases() -> Iterator[Case]:
    """Every shape in every type, form, interpolation and kind of map that fits."""
    ways: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for shape, half, positions, way, bytes_ in product(
        SHAPES, (False, True), (False, True), ways, (False, True)
    ):
        batch, channels, height, width, classes, (rows, columns) = shape
        if positions and batch * classes * channels * height * width > 2**22:
            continue
        inputs = Inputs(
            batch=batch, channels=channels, height=height, width=width, classes=classes,
            half=half, per_position=positions, clamp=not (half and bytes_),
        )  # fmt: skip
        axes = _cropped(rows, height), whole(columns, width)
        yield Case(inputs, Heatmaps(*axes, bytes_=bytes_, interpolation=way))
        if positions or half:
            continue
        # The same from CAMs, and each image at a size of its own.
        given = Cams(batch, classes, height, width)
        yield Case(given, Heatmaps(*axes, bytes_=bytes_, interpolation=way))
        each = (
            [_cropped(rows + 3 * i, height) for i in range(batch)],
            [whole(columns + 4 * i * i, width) for i in range(batch)],
        )
        yield Case(inputs, Heatmaps(*each, bytes_=bytes_, interpolation=way))
        yield Case(given, Heatmaps(*each, bytes_=bytes_, interpolation=way))


def _cropped(size: int, cells: int) -> Axis:
    """An axis of which the first and the last eighth are outside the crop box."""
    low = size // 8
    inner = whole(size - 2 * low, cells)
    return Axis(size, low, size - low, cells, inner.scale, inner.offset - inner.scale * low)


def data(case: Case) -> dict[str, Array]:
    """Features like those after a ReLU and weights of both signs, or CAMs."""
    i = case.inputs
    if isinstance(i, Cams):
        rng = np.random.default_rng(i.batch * 7919 + i.classes)
        cams = rng.normal(size=(i.batch, i.classes, i.height, i.width)).clip(0)
        return {"cams": cams.astype(np.float32)}
    rng = np.random.default_rng(i.batch * 7919 + i.channels * 31 + i.classes)
    kind = np.float16 if i.half else np.float32
    features = rng.normal(size=(i.batch, i.channels, i.height, i.width)).clip(0)
    tail = (i.height, i.width) if i.per_position else ()
    weights = rng.normal(size=(i.batch, i.classes, i.channels, *tail))
    return {"features": features.astype(kind), "weights": weights.astype(kind)}


def compare(case: Case, runner: Runner) -> dict[str, float]:
    """Runs a case and compares it with NumPy.

    Raises:
        CheckFailed: a value is off by more than rounding explains.
    """
    given = data(case)
    made = runner(case, given)
    of_cams = 0.0
    if isinstance(case.inputs, Inputs):
        wide = [given[name].astype(np.float32) for name in ("features", "weights")]
        exact = clamp_combine(wide[0], wide[1], clamp=case.inputs.clamp)
        terms = clamp_combine(np.abs(wide[0]), np.abs(wide[1]), clamp=False)
        of_cams = float((np.abs(made.cams - exact) / np.maximum(terms, 1e-30)).max())
    of_heatmaps, wrong = _off(case, made)
    figures = {"cams": of_cams, "heatmaps": of_heatmaps}
    if not (of_cams <= ROUNDING and of_heatmaps <= HEATMAP_ERROR and wrong == 0):  # NaN fails too
        raise CheckFailed(
            f"{case}: CAMs are off by {of_cams:.2g} of their terms, maps by {of_heatmaps:.2g}, "
            f"{wrong} flags are wrong", figures,
        )  # fmt: skip
    return figures


def _off(case: Case, made: Made) -> tuple[float, int]:
    """By how much maps are off, and how many flags are wrong.

    From the kernel's own CAMs on: scaling to the range enlarges what the sums differ by.
    """
    m = case.heatmaps
    each = m.axes() if m.ragged else m.axes() * case.inputs.batch
    worst, wrong = [0.0], 0
    for image, axes in enumerate(each):
        want, valid = normalised_heatmaps(made.cams[image : image + 1], *axes, m.interpolation)
        if m.bytes_:
            levels = np.abs(to_bytes(want[0]).astype(int) - made.heatmaps[image].astype(int))
            worst.append(max(0.0, float(levels.max()) - 1) / 255)
        else:
            worst.append(float(np.abs(want[0] - made.heatmaps[image]).max()))
        wrong += int((made.valid[image] != valid[0].astype(np.uint8)).sum())  # not 1 is wrong
    return float(np.max(worst)), wrong


def check_values(runner: Runner) -> dict[str, Any]:
    """Compares every case; the first failures are named, none hides the others."""
    worst = {"cams": 0.0, "heatmaps": 0.0}
    failures = []
    count = 0
    for case in cases():
        count += 1
        try:
            for name, value in compare(case, runner).items():
                worst[name] = max(worst[name], value)
        except CheckFailed as exc:
            failures.append(str(exc))
    figures = {"cases": count, "failed": len(failures), "worst": worst}
    if failures:
        raise CheckFailed(f"{len(failures)} of {count} cases: {'; '.join(failures[:3])}", figures)
    return figures


def check_repeats(runner: Runner, repeats: int = REPEATS) -> dict[str, Any]:
    """The same input gives the same bits, run after run."""
    ways: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for way in ways:
        inputs = Inputs(4, 1280, 7, 7, 5)
        case = Case(inputs, Heatmaps(whole(224, 7), whole(224, 7), interpolation=way))
        given = data(case)
        first = runner(case, given)
        for step in range(repeats):
            again = runner(case, given)
            if not _same(first, again):
                raise CheckFailed(f"{case}: run {step + 2} gave other bits than the first")
    return {"runs": 2 * (repeats + 1)}


def _same(one: Made, other: Made) -> bool:
    return (
        all(map(np.array_equal, one.heatmaps, other.heatmaps))
        and np.array_equal(one.valid, other.valid)
        and np.array_equal(one.cams, other.cams)
    )


class OnGpu:
    """Runs cases with `ClampCombine`, in a context of its own.

    With `poison`, what the kernels must write is filled with 0xFF before: values that they
    left out then show, as in fresh memory the zeros or an earlier case's results may not.
    """

    def __init__(self, ordinal: int = 0, *, poison: bool = True) -> None:
        from sigcam.kernels import driver
        from sigcam.kernels.clamp_combine import ClampCombine

        self.driver = driver
        self.poison = poison
        self.context = driver.retain_primary_context(ordinal)
        with self.context:
            self.kernel = ClampCombine()
            self.stream = driver.Stream()

    def __call__(self, case: Case, given: dict[str, Array]) -> Made:
        """Runs a case, as `Runner` says."""
        with self.context:
            job = Job(self, case, given, self.stream)
            job.enqueue()
            self.stream.synchronize()
            try:
                return job.made()
            finally:
                job.close()

    def check_streams(self) -> dict[str, Any]:
        """Work on several streams at once gives the bits that it gives alone."""
        case = Case(Inputs(2, 1280, 7, 7, 5), Heatmaps(whole(480, 7), whole(640, 7)))
        given = data(case)
        alone = self(case, given)
        with self.context:
            streams = [self.driver.Stream() for _ in range(STREAMS)]
            jobs = [Job(self, case, given, stream) for stream in streams]
            for _ in range(REPEATS):
                for job in jobs:
                    job.enqueue()
            for stream in streams:
                stream.synchronize()
            found = [job.made() for job in jobs]
            for job, stream in zip(jobs, streams, strict=True):
                job.close()
                stream.close()
        wrong = [index for index, made in enumerate(found) if not _same(made, alone)]
        if wrong:
            raise CheckFailed(f"streams {wrong} of {STREAMS} gave other bits than one alone")
        return {"streams": STREAMS, "launches": STREAMS * REPEATS}


class Job:
    """The memory of one case on the device, of exactly its size; on one stream."""

    def __init__(self, gpu: OnGpu, case: Case, given: dict[str, Array], stream: Any) -> None:
        self.gpu, self.stream, self.given = gpu, stream, given
        self.plan: Plan = gpu.kernel.plan(case.inputs, case.heatmaps)
        i, m = case.inputs, case.heatmaps
        self.kind = np.dtype(np.uint8 if m.bytes_ else np.float32)
        sizes = {
            **{name: array.nbytes for name, array in given.items()},
            "heatmaps": self.kind.itemsize * self.plan.pixels,
            "valid": i.batch * i.classes,
            "workspace": self.plan.workspace.size,
        }
        driver = gpu.driver
        self.buffers = {name: driver.DeviceBuffer(size) for name, size in sizes.items()}
        self.addresses = {name: buffer.address for name, buffer in self.buffers.items()}
        if gpu.poison:  # NaN, and neither of a flag's values
            for name in ("heatmaps", "valid", "workspace"):
                driver.memset(self.addresses[name], 0xFF, sizes[name], stream)
        for name, array in given.items():
            driver.copy_to_device(self.addresses[name], array, array.nbytes, stream)
        gpu.kernel.prepare_workspace(self.plan, self.addresses["workspace"], stream)
        stream.synchronize()

    def enqueue(self) -> None:
        """Enqueues the kernels."""
        self.gpu.kernel.launch(self.plan, **self.addresses, stream=self.stream.handle)

    def made(self) -> Made:
        """The results; waits for them."""
        i, at = self.plan.inputs, self.addresses
        heatmaps = np.empty(self.plan.pixels, self.kind)
        valid = np.empty((i.batch, i.classes), np.uint8)
        targets = [(heatmaps, at["heatmaps"]), (valid, at["valid"])]
        cams = self.given.get("cams")
        if cams is None:
            cams = np.empty((i.batch, i.classes, i.height, i.width), np.float32)
            targets.append((cams, at["workspace"] + self.plan.workspace.cams))
        for target, address in targets:
            self.gpu.driver.copy_to_host(target, address, target.nbytes, self.stream)
        self.stream.synchronize()
        return Made(images_of(self.plan, heatmaps), valid, cams)

    def close(self) -> None:
        """Frees the memory."""
        for buffer in self.buffers.values():
            buffer.close()


def images_of(plan: Plan, heatmaps: Array) -> list[Array]:
    """The maps [K, H, W] of each image, of those of all of them one after the other."""
    pixels = heatmaps.reshape(-1)
    return [
        pixels[start : start + math.prod(shape)].reshape(shape) for start, shape in plan.images()
    ]


def check_compiling() -> dict[str, Any]:
    """Compiles the kernels for this GPU, past the cache, and loads them."""
    from sigcam.kernels import driver
    from sigcam.kernels.compile import architecture_of, compile_source, nvrtc_version, source

    info = driver.devices()[0]
    architecture = architecture_of(info.capability)
    cubin = compile_source(source(), architecture).cubin
    with driver.retain_primary_context(0):
        driver.Module(cubin).close()
    version = "{}.{}".format(*nvrtc_version())
    return {"architecture": f"sm_{architecture}", "nvrtc": version, "bytes": len(cubin)}


def small_cases() -> list[Case]:
    """The cases that are small enough for a sanitizer, in which a launch takes seconds."""
    return [case for case in cases() if np.prod([*_sizes(case)]) < 2**17]


def _sizes(case: Case) -> tuple[int, ...]:
    i = case.inputs
    pixels = max(rows.size * columns.size for rows, columns in case.heatmaps.axes())
    features = i.channels * i.positions if isinstance(i, Inputs) else i.positions
    return i.batch, i.classes, max(features, pixels)
