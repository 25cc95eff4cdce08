"""Heatmaps made on a GPU, from features and CAM weights that a backend left there.

A launch of the kernels makes heatmaps of one size, with one placement of the input in the image.
So a batch is cut into runs of neighbouring images with the same placement, and each run is
launched at its part of the features and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.core.errors import ArtifactError, BackendError, BackendUnavailableError
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement
from sigcam.kernels import driver
from sigcam.kernels.arguments import Axis as KernelAxis
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import ALIGNMENT, Plan, Workspace
from sigcam.kernels.shapes import Heatmaps, Inputs
from sigcam.runtime.backends.base import DeviceHeatmaps, HeatmapRequest

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine

__all__ = ["DeviceTensor", "HeatmapMaker", "Pending", "axis_of", "kernel_errors"]

_MAX_KEPT = 64
"""Most plans, and most workspaces, that are kept for the next batch of the same shapes."""


@contextmanager
def kernel_errors() -> Iterator[None]:
    """Turns the kernels' errors inside the block into the runtime's.

    Raises:
        BackendUnavailableError: CUDA, or a package or device for it, is missing.
        BackendError: a CUDA call or a compilation failed.

    Example:
        >>> try:
        ...     with kernel_errors():
        ...         raise CudaUnavailableError("no device")
        ... except BackendUnavailableError as exc:
        ...     print(exc)
        the GPU can't be used: no device
    """
    try:
        yield
    except CudaUnavailableError as exc:
        raise BackendUnavailableError(f"the GPU can't be used: {exc}") from exc
    except KernelError as exc:
        raise BackendError(f"the GPU failed: {exc}") from exc


class Pending:
    """Heatmaps that are being made; `collect` returns them once the stream is synchronised.

    Where the work was captured in a CUDA graph, `collect` may be called after each launch
    of the graph, as long as the `generation` of the HeatmapMaker is the same.
    """

    def __init__(self, parts: Sequence[Part], memory: Any) -> None:
        self._parts = parts
        self._memory = memory

    def collect(self) -> DeviceHeatmaps:
        """Copies the heatmaps out of the memory that the next batch uses, and returns them."""
        found: dict[str, list[Array]] = {"heatmaps": [], "valid": [], "cams": []}
        for part in self._parts:
            for name, (kind, shape) in part.shapes.items():
                start = getattr(part, name)
                size = np.dtype(kind).itemsize * int(np.prod(shape))
                array = self._memory[start : start + size].view(kind).reshape(shape)
                found[name].append(array)
        return DeviceHeatmaps(
            cams=np.concatenate(found["cams"]),
            # One array for each image: none keeps the heatmaps of another one alive.
            heatmaps=tuple(image.copy() for heatmaps in found["heatmaps"] for image in heatmaps),
            valid=np.concatenate(found["valid"]).astype(bool),
        )


class HeatmapMaker:
    """Makes the heatmaps of batches on one stream, one batch at a time.

    The memory is kept for the next batch and grows with the largest one. Everything happens
    in the context that was current when the kernel was loaded, which the caller makes
    current.

    Attributes:
        generation: a number that grows whenever memory was allocated anew. CUDA graphs that
            were captured before then hold addresses that aren't valid any more.
    """

    def __init__(self, kernel: ClampCombine) -> None:
        self.generation = 0
        self._kernel = kernel
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._workspaces: dict[Workspace, driver.DeviceBuffer] = {}
        self._results: driver.DeviceBuffer | None = None
        self._host: driver.PinnedBuffer | None = None
        self._view: Array | None = None

    def enqueue(
        self, features: DeviceTensor, weights: DeviceTensor, request: HeatmapRequest, stream: int
    ) -> Pending:
        """Enqueues the kernels and the copies of their results to the host.

        Nothing waits. Memory is allocated if this batch needs more than those before it; a
        batch of shapes that was enqueued before needs none, so that it may be captured.

        Args:
            features: features [B, N, h, w].
            weights: CAM weights [B, K, N] or [B, K, N, h, w], of the same type.
            request: the heatmaps to make.
            stream: handle of the stream that the tensors are made on.

        Raises:
            ArtifactError: shapes or types that don't belong together.
            BackendError: a CUDA call failed, memory that is used up included.
        """
        check_tensors(features, weights, len(request.placements))
        with kernel_errors():
            parts, results, size = self._parts(features, weights, request)
            device, memory = self._grown(results, size)
            for part in parts:
                self._launch(part, features, weights, device.address, memory, stream)
            driver.copy_to_host(memory, device.address, results, stream)
        return Pending(parts, memory)

    def close(self) -> None:
        """Frees the memory; the object can't be used afterwards."""
        self._free()
        for workspace in self._workspaces.values():
            workspace.close()
        self._workspaces.clear()

    def _parts(
        self, features: DeviceTensor, weights: DeviceTensor, request: HeatmapRequest
    ) -> tuple[list[Part], int, int]:
        """Plans the batch's runs and lays out their results; returns what `layout` returns."""
        planned = [
            (run, self._plan(features, weights, run, request))
            for run in runs_of(request.placements)
        ]
        return layout(planned)

    def _plan(
        self, features: DeviceTensor, weights: DeviceTensor, run: Run, request: HeatmapRequest
    ) -> Plan:
        """Plans a run's launches, or takes the plan of an earlier run like it."""
        addresses = address_of(features, run.first) | address_of(weights, run.first)
        alignment = min(16, addresses & -addresses)
        shapes = (features.shape[1:], weights.shape[1:], features.half)
        key = (*shapes, run.count, run.placement, request.clamp, request.signed, alignment)
        if key not in self._plans:
            _, channels, height, width = features.shape
            inputs = Inputs(
                batch=run.count,
                channels=channels,
                height=height,
                width=width,
                classes=weights.shape[1],
                half=features.half,
                per_position=len(weights.shape) == 5,
                clamp=request.clamp,
                signed=request.signed,
                alignment=alignment,
            )
            rows, columns = run.placement.rows, run.placement.columns
            if len(self._plans) >= _MAX_KEPT:
                self._plans.clear()
            heatmaps = Heatmaps(axis_of(rows, height), axis_of(columns, width))
            self._plans[key] = self._kernel.plan(inputs, heatmaps)
        return self._plans[key]

    def _launch(
        self,
        part: Part,
        features: DeviceTensor,
        weights: DeviceTensor,
        results: int,
        memory: Array,
        stream: int,
    ) -> None:
        """Enqueues a run's kernels and the copy of its CAMs to the host."""
        plan, first = part.plan, part.run.first
        workspace = self._workspace(plan, stream)
        self._kernel.launch(
            plan,
            features=address_of(features, first),
            weights=address_of(weights, first),
            heatmaps=results + part.heatmaps,
            valid=results + part.valid,
            workspace=workspace,
            stream=stream,
        )
        size = cams_size(plan)
        cams = memory[part.cams : part.cams + size]
        driver.copy_to_host(cams, workspace + plan.workspace.cams, size, stream)

    def _workspace(self, plan: Plan, stream: int) -> int:
        """Returns memory for plans with this layout, whose counters are 0 between launches."""
        if plan.workspace not in self._workspaces:
            if len(self._workspaces) >= _MAX_KEPT:
                # They may be in use; that freeing waits for it is nothing to rely on.
                driver.synchronize(stream)
                for old in self._workspaces.values():
                    old.close()
                self._workspaces.clear()
            buffer = driver.DeviceBuffer(plan.workspace.size)
            self._kernel.prepare_workspace(plan, buffer.address, stream)
            self._workspaces[plan.workspace] = buffer
            self.generation += 1
        return self._workspaces[plan.workspace].address

    def _grown(self, results: int, size: int) -> tuple[driver.DeviceBuffer, Array]:
        """Returns at least `results` bytes of device memory, and `size` of pinned memory."""
        device, view = self._results, self._view
        if device is None or view is None or device.size < results or view.size < size:
            # Both anew and half as large again, so that growing batches don't do this often.
            # The old ones first: there may not be room for both.
            self._free()
            device = driver.DeviceBuffer(results + results // 2)
            host = driver.PinnedBuffer(size + size // 2)
            view = host.view(np.uint8, (host.size,))
            self._results, self._host, self._view = device, host, view
            self.generation += 1
        return device, view

    def _free(self) -> None:
        buffers = (self._results, self._host)
        self._results = self._host = self._view = None
        for buffer in buffers:
            if buffer is not None:
                buffer.close()


@dataclass(frozen=True)
class DeviceTensor:
    """A tensor in device memory.

    Attributes:
        address: where its first element lies.
        shape: its sizes; it is C-contiguous.
        half: whether it is float16 rather than float32.
    """

    address: int
    shape: tuple[int, ...]
    half: bool


@dataclass(frozen=True)
class Run:
    """Neighbouring images of a batch that share a launch.

    Attributes:
        first, count: number of the first image, and how many there are.
        placement: the placement of all of them.
    """

    first: int
    count: int
    placement: Placement


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
        inputs = self.plan.inputs
        ((rows, columns),) = self.plan.heatmaps.axes()
        count = (inputs.batch, inputs.classes)
        return {
            "heatmaps": (np.float32, (*count, rows.size, columns.size)),
            "valid": (np.uint8, count),
            "cams": (np.float32, (*count, inputs.height, inputs.width)),
        }


def axis_of(axis: Axis, cells: int) -> KernelAxis:
    """Converts an axis of a placement to the form that the kernels take.

    Args:
        axis: how the input lies along an axis of the image.
        cells: cells of the CAM along that axis.

    Returns:
        Pixel i is at ((i + 0.5 - start) * shown / used + first) * cells / length - 0.5 in
        the CAM, 0 being the first cell's centre; the crop box is [low, high).

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> placement = place(Preprocessing(224, 224, "crop", 256), 480, 640)
        >>> axis = axis_of(placement.columns, cells=7)
        >>> axis.low, axis.high, round(axis.scale, 4), round(axis.offset, 3)
        (110, 530, 0.0167, -2.325)
    """
    step, share = axis.shown / axis.used, cells / axis.length
    offset = ((0.5 - axis.start) * step + axis.first) * share - 0.5
    return KernelAxis(axis.size, axis.low, axis.high, cells, step * share, offset)


def runs_of(placements: Sequence[Placement]) -> list[Run]:
    """Cuts a batch into runs of neighbours with the same placement, in order.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> tall, wide = (place(Preprocessing(), *size) for size in [(640, 480), (480, 640)])
        >>> [(run.first, run.count) for run in runs_of([tall, tall, wide, tall])]
        [(0, 2), (2, 1), (3, 1)]
    """
    runs = []
    first = 0
    for placement, same in groupby(placements):
        count = len(list(same))
        runs.append(Run(first, count, placement))
        first += count
    return runs


def layout(planned: Sequence[tuple[Run, Plan]]) -> tuple[list[Part], int, int]:
    """Lays out the results of the runs: all heatmaps and flags, then all CAMs.

    Returns:
        The parts; the bytes of heatmaps and flags, which lie on the device too; and the bytes
        of everything.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> made = plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84)
        >>> (part,), results, total = layout([(Run(0, 2, None), made)])
        >>> part.heatmaps, part.valid, part.cams, results, total
        (0, 401408, 401664, 401664, 402176)
    """
    at = 0
    places: list[list[int]] = []
    for _, plan in planned:
        count = plan.inputs.batch * plan.inputs.classes
        valid = at + _aligned(4 * plan.pixels)
        places.append([at, valid])
        at = valid + _aligned(count)
    results = at
    for (_, plan), place in zip(planned, places, strict=True):
        place.append(at)
        at += _aligned(cams_size(plan))
    parts = [Part(*one, *place) for one, place in zip(planned, places, strict=True)]
    return parts, results, at


def cams_size(plan: Plan) -> int:
    """Returns the bytes of a run's CAMs.

    Example:
        >>> from sigcam.kernels.arguments import whole
        >>> from sigcam.kernels.plan import plan
        >>> inputs = Inputs(batch=2, channels=512, height=7, width=7, classes=1)
        >>> cams_size(plan(inputs, Heatmaps(whole(224, 7), whole(224, 7)), processors=84))
        392
    """
    return 4 * plan.inputs.batch * plan.inputs.classes * plan.inputs.positions


def address_of(tensor: DeviceTensor, image: int) -> int:
    """Returns where the part of the batch begins that belongs to an image.

    Example:
        >>> tensor = DeviceTensor(0x1000, (2, 3, 4), half=False)
        >>> address_of(tensor, image=1) - tensor.address  # 12 floats on
        48
    """
    elements = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return tensor.address + image * elements * (2 if tensor.half else 4)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def check_tensors(features: DeviceTensor, weights: DeviceTensor, images: int) -> None:
    """Refuses tensors that the kernels don't take.

    Raises:
        ArtifactError: shapes or types that don't belong together.

    Example:
        >>> features = DeviceTensor(0x1000, (2, 512, 7, 7), half=False)
        >>> check_tensors(features, DeviceTensor(0x9000, (2, 5, 512), half=False), images=2)
        >>> weights = DeviceTensor(0x9000, (2, 5, 256), half=False)
        >>> check_tensors(features, weights, images=2)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ArtifactError: the graph's outputs don't belong together: the ...
    """
    shape, other = features.shape, weights.shape
    fits = len(shape) == 4 and len(other) in (3, 5) and shape[0] == other[0] == images
    if (
        not fits
        or other[2] != shape[1]
        or (len(other) == 5 and other[3:] != shape[2:])
        or features.half != weights.half
        or 0 in (*shape, *other)
    ):
        kinds = ["float16" if tensor.half else "float32" for tensor in (features, weights)]
        raise ArtifactError(
            f"the graph's outputs don't belong together: the weights must be [{images}, K, N] or "
            f"[{images}, K, N, h, w] for features [{images}, N, h, w] of the same type, got "
            f"{kinds[1]} {list(other)} and {kinds[0]} {list(shape)}; export the model again"
        )
