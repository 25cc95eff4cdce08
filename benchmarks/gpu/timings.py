"""Times of the map kernels by CUDA events: over shapes, from cold caches, and around them.

Each figure is a median. What is timed is launched many times inside one CUDA graph, so that the
host's time for a launch, which `host` measures, isn't in it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sigcam.kernels import driver
from sigcam.kernels.arguments import whole
from sigcam.kernels.arrays import DeviceArray
from sigcam.kernels.clamp_combine import ClampCombine
from sigcam.kernels.pool import KEPT
from sigcam.kernels.shapes import Heatmaps, Inputs

SHAPES = ((2048, 7, 7), (2048, 14, 14), (512, 14, 14), (1024, 28, 28))
"""N, h, w: ResNets at the ends of both their strides, VGG-16, and a layer below the last."""

COUNTS = ((1, 1), (1, 5), (8, 5), (32, 5), (1, 100), (1, 1000), (32, 100))
"""Images and classes."""

SIZES = ((224, 224), (480, 640), (1024, 1024))
ONE = (2048, 14, 14)
"""What single calls are timed with."""

LAUNCHES, ROUNDS = 20, 7
CALLS, WARM_UP = 200, 20
COLD = 160_000_000
"""Bytes of features that are read in turn, so that none are in the L2 cache when they are."""


class Case:
    """The memory of one plan on the device; `copies` sets of features that take turns."""

    def __init__(
        self, kernel: ClampCombine, inputs: Inputs, heatmaps: Heatmaps, copies: int = 1
    ) -> None:
        self.kernel, self.stream = kernel, driver.Stream()
        self.plan = kernel.plan(inputs, heatmaps)
        kind = np.float16 if inputs.half else np.float32
        random = np.random.default_rng(0)
        shape = (inputs.batch, inputs.channels, inputs.height, inputs.width)
        features = random.standard_normal(shape).clip(0).astype(kind)
        weights = random.standard_normal((inputs.batch, inputs.classes, inputs.channels))
        count = inputs.batch * inputs.classes
        pixels = heatmaps.rows.size * heatmaps.columns.size * (1 if heatmaps.bytes_ else 4)
        self.bytes_in, self.bytes_out = features.nbytes, count * pixels
        self.features = [driver.DeviceBuffer(features.nbytes) for _ in range(copies)]
        sizes = (count * inputs.channels * kind().itemsize, self.bytes_out, count)
        self.weights, self.heatmaps, self.valid = map(driver.DeviceBuffer, sizes)
        self.workspace = driver.DeviceBuffer(self.plan.workspace.size)
        for buffer in self.features:
            driver.copy_to_device(buffer.address, features, features.nbytes, self.stream)
        values = weights.astype(kind)
        driver.copy_to_device(self.weights.address, values, values.nbytes, self.stream)
        kernel.prepare_workspace(self.plan, self.workspace.address, self.stream)
        self.stream.synchronize()

    def launch(self, turn: int = 0) -> None:
        """Enqueues the kernels."""
        self.kernel.launch(
            self.plan,
            features=self.features[turn % len(self.features)].address,
            weights=self.weights.address,
            heatmaps=self.heatmaps.address,
            valid=self.valid.address,
            workspace=self.workspace.address,
            stream=self.stream,
        )

    def microseconds(self, launches: int = LAUNCHES) -> float:
        """The time of one launch among `launches` in a CUDA graph."""
        self.launch()
        self.stream.synchronize()
        with driver.Graph.capture(self.stream) as graph:
            for turn in range(launches):
                self.launch(turn)
        found = between(lambda: graph.launch(self.stream), self.stream) / launches
        graph.close()
        return found

    def close(self) -> None:
        """Frees the memory."""
        others = (self.weights, self.heatmaps, self.valid, self.workspace, self.stream)
        for one in (*self.features, *others):
            one.close()


def between(work: Callable[[], object], stream: driver.Stream) -> float:
    """The median microseconds between two events around what `work` enqueues."""
    first, second = driver.Event(timing=True), driver.Event(timing=True)
    found = []
    work()
    for _ in range(ROUNDS):
        first.record(stream)
        work()
        second.record(stream)
        second.synchronize()
        found.append(1e3 * second.milliseconds_since(first))
    return statistics.median(found)


def timed(
    kernel: ClampCombine, inputs: Inputs, size: tuple[int, int], **more: Any
) -> dict[str, Any]:
    """The row of one case: what it is, its time, and the bytes that it reads and writes."""
    copies = more.pop("copies", 1)
    axes = whole(size[0], inputs.height), whole(size[1], inputs.width)
    case = Case(kernel, inputs, Heatmaps(*axes, **more), copies)
    try:
        took = case.microseconds(max(LAUNCHES, copies))
        moved = case.bytes_in + case.bytes_out
    finally:
        case.close()
    return {
        "shape": [inputs.batch, inputs.channels, inputs.height, inputs.width],
        "classes": inputs.classes,
        "size": list(size),
        "half": inputs.half,
        **more,
        "us": round(took, 2),
        "gb_s": round(moved / took / 1e3, 1),
    }


def check_times() -> dict[str, Any]:
    """All shapes and counts to 224 x 224, in float32 and float16."""
    rows = []
    with driver.retain_primary_context(0):
        kernel = ClampCombine()
        for channels, height, width in SHAPES:
            for batch, classes in COUNTS:
                for half in (False, True):
                    inputs = Inputs(batch, channels, height, width, classes, half=half)
                    rows.append(timed(kernel, inputs, (224, 224)))
    return {"rows": rows}


def check_combine() -> dict[str, Any]:
    """The sums alone, from a warm and a cold L2 cache: to heatmaps of 8 x 8 pixels."""
    rows = []
    with driver.retain_primary_context(0):
        kernel = ClampCombine()
        for batch, classes in ((1, 1), (1, 5), (8, 5), (32, 5)):
            inputs = Inputs(batch, 2048, 14, 14, classes)
            copies = max(2, COLD // (4 * batch * 2048 * 14 * 14))
            rows.append({**timed(kernel, inputs, (8, 8)), "cold": False})
            rows.append({**timed(kernel, inputs, (8, 8), copies=copies), "cold": True})
    return {"rows": rows}


def check_enlarge() -> dict[str, Any]:
    """Large heatmaps of few channels, where enlarging takes nearly all of the time."""
    rows = []
    with driver.retain_primary_context(0):
        kernel = ClampCombine()
        for size in SIZES:
            for batch, classes in ((1, 1), (8, 5)):
                for bytes_ in (False, True):
                    for way in ("bilinear", "bicubic"):
                        inputs = Inputs(batch, 8, 14, 14, classes)
                        rows.append(timed(kernel, inputs, size, bytes_=bytes_, interpolation=way))
    return {"rows": rows}


def check_host() -> dict[str, Any]:
    """The host's time to enqueue the kernels once, without waiting for them."""
    with driver.retain_primary_context(0):
        axes = whole(480, ONE[1]), whole(640, ONE[2])
        case = Case(ClampCombine(), Inputs(1, *ONE, 5), Heatmaps(*axes))
        for _ in range(WARM_UP):
            case.launch()
        case.stream.synchronize()
        found = []
        for _ in range(CALLS):
            start = time.perf_counter()
            case.launch()
            found.append(1e6 * (time.perf_counter() - start))
            case.stream.synchronize()
        case.close()
    return {"us": round(statistics.median(found), 1), "calls": CALLS}


def check_pool() -> dict[str, Any]:
    """A call that allocates, waited for each time: with the pool's memory kept, and given back."""
    found = {}
    with driver.retain_primary_context(0):
        for name, kept in (("kept", KEPT), ("given back", 0)):
            kernel, stream = ClampCombine(kept=kept), driver.Stream()
            features, weights = (
                on_device(np.ones(shape, np.float32), stream)
                for shape in ((1, *ONE), (1, 5, ONE[0]))
            )
            took = []
            for _ in range(WARM_UP + CALLS):
                start = time.perf_counter()
                made = kernel(features, weights, size=(480, 640), stream=stream)
                took.append(1e6 * (time.perf_counter() - start))
                del made
                stream.synchronize()
            found[name] = round(statistics.median(took[WARM_UP:]), 1)
    return {"us": found}


def on_device(values: Any, stream: driver.Stream) -> DeviceArray:
    """A copy of an array on the device."""
    buffer = driver.DeviceBuffer(values.nbytes)
    driver.copy_to_device(buffer.address, values, values.nbytes, stream)
    return DeviceArray(buffer, values.shape, values.dtype, stream.handle, 0)


def check_copies() -> dict[str, Any]:
    """Bandwidth: device to page-locked and to pageable memory, and back."""
    size = 64 << 20
    with driver.retain_primary_context(0):
        stream = driver.Stream()
        device, pinned = driver.DeviceBuffer(size), driver.PinnedBuffer(size)
        pageable = np.zeros(size, np.uint8)
        ways: dict[str, Callable[[], object]] = {
            "to page-locked": lambda: driver.copy_to_host(
                pinned.address, device.address, size, stream
            ),
            "to pageable": lambda: driver.copy_to_host(pageable, device.address, size, stream),
            "from page-locked": lambda: driver.copy_to_device(
                device.address, pinned.address, size, stream
            ),
        }
        found = {name: round(size / between(way, stream) / 1e3, 1) for name, way in ways.items()}
        for one in (device, pinned, stream):
            one.close()
    return {"gb_s": found}
