"""Heatmaps made on a GPU, from what a backend left there: features and CAM weights, or CAMs.

One launch makes the heatmaps of images of any sizes: it reads where each image's lie from a list in
device memory. Results go through memory of a fixed size, so a batch of large images is made piece
by piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.core.errors import BackendError, BackendUnavailableError, UsageError
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement
from sigcam.kernels import driver
from sigcam.kernels.arguments import Axis as KernelAxis
from sigcam.kernels.arguments import whole
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import Plan, Workspace
from sigcam.kernels.shapes import Heatmaps
from sigcam.runtime.backends.base import DeviceHeatmaps, HeatmapRequest
from sigcam.runtime.backends.cuda.layout import STAGED, Piece, cams_size, piece, pieces_of
from sigcam.runtime.backends.cuda.source import Source

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine

__all__ = [
    "HeatmapMaker",
    "Pending",
    "axes_of",
    "axis_of",
    "kernel_errors",
]

_MAX_KEPT = 64
"""Most plans, and most workspaces, that are kept for the next batch of the same shapes."""


_NO_MEMORY = (
    '; its memory is used up: load the model with a smaller batch_size, with heatmaps="uint8" or '
    '"lazy", ask for fewer classes, or end what else runs on the GPU (nvidia-smi shows it)'
)


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
        advice = _NO_MEMORY if "OUT_OF_MEMORY" in str(exc) else ""
        raise BackendError(f"the GPU failed: {exc}{advice}") from exc


class Pending:
    """Heatmaps that are being made; `collect` returns them once the stream was synchronised."""

    def __init__(self, maker: HeatmapMaker, work: Work) -> None:
        self._maker, self._work = maker, work

    def collect(self) -> DeviceHeatmaps:
        """Copies the heatmaps out of the memory that the next batch uses, and returns them.

        What didn't fit in that memory is made now, piece by piece, and waited for.

        Raises:
            BackendError: a CUDA call failed.
        """
        heatmaps, valid, cams = [], [], []
        for number, one in enumerate(self._work.pieces):
            if number:
                with kernel_errors():
                    self._maker.launch(self._work, one)
                    driver.synchronize(self._work.stream)
            images, flags, made = self._maker.results(one)
            # One array for each image: none keeps the heatmaps of another one alive.
            heatmaps += [] if self._work.lazy else [image.copy() for image in images]
            valid.append(flags.astype(bool))
            cams.append(made.copy())
        return DeviceHeatmaps(
            cams=np.concatenate(cams),
            heatmaps=None if self._work.lazy else tuple(heatmaps),
            valid=np.concatenate(valid),
        )


class HeatmapMaker:
    """Makes the heatmaps of batches on one stream, one batch at a time.

    The memory for results, on the device and page-locked on the host, holds `STAGED` bytes, or
    one image's heatmaps where these are more; batches that need more go through it piece by
    piece. It is kept for the next batch. Everything happens in the context that was current
    when the kernel was loaded, which the caller makes current.
    """

    def __init__(self, kernel: ClampCombine, *, shared: bool = False) -> None:
        """Takes the kernels.

        Args:
            kernel: loaded into the context that is current.
            shared: whether CPU and GPU share their memory: heatmaps then need no copies.
        """
        self._kernel, self._shared = kernel, shared
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._workspaces: dict[Workspace, driver.DeviceBuffer] = {}
        self._results: driver.DeviceBuffer | None = None
        self._host: driver.PinnedBuffer | None = None
        self._view: Array | None = None

    def enqueue(self, source: Source, request: HeatmapRequest, stream: int) -> Pending:
        """Enqueues the kernels and the copies of their results to the host.

        Nothing waits, unless memory must be made anew while it is in use. The tensors must stay
        until the results are collected.

        Args:
            source: what heatmaps are made of.
            request: the heatmaps to make.
            stream: handle of the stream that the tensors are made on.

        Raises:
            UsageError: the heatmaps are more than the request's limit.
            BackendError: a CUDA call failed, memory that is used up included.
        """
        lazy = request.options.made == "lazy"
        if not lazy:
            check_limit(request, source.classes)
        with kernel_errors():
            pieces = tuple(
                piece(first, self._plan(source, first, count, request))
                for first, count in self._cut(source, request)
            )
            work = Work(source, pieces, stream, lazy)
            self._grow(work)
            self.launch(work, work.pieces[0])
        return Pending(self, work)

    def launch(self, work: Work, one: Piece) -> None:
        """Enqueues the kernels of a piece, and the copies of its results."""
        target, memory = self._host if self._shared else self._results, self._view
        if target is None or memory is None:
            raise KernelError("the memory for heatmaps was freed")
        plan, stream = one.plan, work.stream
        workspace, given = self._workspace(plan, stream), work.source.addresses(one.first)
        self._kernel.launch(
            plan,
            heatmaps=target.address,
            valid=target.address + one.valid,
            workspace=workspace,
            stream=stream,
            **given,
        )
        size = cams_size(plan)
        cams = memory[one.cams : one.cams + size]
        made = given.get("cams", workspace + plan.workspace.cams)
        if self._shared:  # a network's CAMs may lie in page-locked memory
            driver.copy_on_device(cams.ctypes.data, made, size, stream)
        else:
            driver.copy_to_host(cams, made, size, stream)
            driver.copy_to_host(memory, target.address, one.cams, stream)

    def results(self, one: Piece) -> tuple[list[Array], Array, Array]:
        """Returns a piece's results in page-locked memory, which the next launch overwrites."""
        assert self._view is not None  # noqa: S101 (it was filled)
        return one.results(self._view)

    def close(self) -> None:
        """Frees the memory; the object can't be used afterwards."""
        self._free()
        for workspace in self._workspaces.values():
            workspace.close()
        self._workspaces.clear()

    def _cut(self, source: Source, request: HeatmapRequest) -> list[tuple[int, int]]:
        """Cuts a batch into pieces; CAMs alone are all made at once."""
        if request.options.made == "lazy":
            return [(0, len(request.placements))]
        pixel = source.classes * request.options.itemsize
        return list(pieces_of(request.placements, pixel))

    def _plan(self, source: Source, first: int, count: int, request: HeatmapRequest) -> Plan:
        """Plans a piece's launches, or takes the plan of an earlier one like it."""
        inputs = source.inputs(first, count, request)
        placements = request.placements[first : first + count]
        if request.options.made == "lazy":
            placements = ()  # CAMs don't depend on where the images lie
        elif len(set(placements)) == 1:
            placements = placements[:1]
        bytes_ = request.options.made == "uint8"
        key = (inputs, placements, bytes_)
        if key not in self._plans:
            if len(self._plans) >= _MAX_KEPT:
                self._plans.clear()
            rows, columns = axes_of(placements, inputs.height, inputs.width)
            self._plans[key] = self._kernel.plan(inputs, Heatmaps(rows, columns, bytes_=bytes_))
        return self._plans[key]

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
        return self._workspaces[plan.workspace].address

    def _grow(self, work: Work) -> None:
        """Makes the memory for results large enough."""
        results = max(one.cams for one in work.pieces)
        size = max(one.size for one in work.pieces)
        device, host = self._results, self._host
        enough = self._shared or (device is not None and device.size >= results)
        if not enough or host is None or host.size < size:
            # Both anew and half as large again, so that growing batches don't do this often.
            # The old ones first: there may not be room for both.
            self._free()
            if not self._shared:
                grown = min(results + results // 2, max(results, STAGED))
                self._results = driver.DeviceBuffer(grown)
            host = driver.PinnedBuffer(min(size + size // 2, max(size, 2 * STAGED)))
            self._host, self._view = host, host.view(np.uint8, (host.size,))

    def _free(self) -> None:
        buffers = (self._results, self._host)
        self._results = self._host = self._view = None
        for buffer in buffers:
            if buffer is not None:
                buffer.close()


@dataclass(frozen=True)
class Work:
    """What is done for one batch.

    Attributes:
        source: what heatmaps are made of.
        pieces: the batch, one piece after the other.
        stream: handle of the stream.
        lazy: whether only CAMs are wanted.
    """

    source: Source
    pieces: tuple[Piece, ...]
    stream: int
    lazy: bool


def axes_of(
    placements: Sequence[Placement], height: int, width: int
) -> tuple[KernelAxis, KernelAxis] | tuple[list[KernelAxis], list[KernelAxis]]:
    """Returns how heatmaps lie over CAMs: alike, each by itself, or for none as the CAMs do."""
    if not placements:
        return whole(height, height), whole(width, width)
    rows = [axis_of(one.rows, height) for one in placements]
    columns = [axis_of(one.columns, width) for one in placements]
    return (rows, columns) if len(placements) > 1 else (rows[0], columns[0])


def check_limit(request: HeatmapRequest, classes: int) -> None:
    """Refuses a batch whose heatmaps take more memory than they may.

    Raises:
        UsageError: they do; says how much, and what to do.

    Example:
        >>> from sigcam.core.spec import Preprocessing
        >>> from sigcam.images.preprocess import place
        >>> placed = tuple(place(Preprocessing(), 3000, 4000) for _ in range(8))
        >>> check_limit(HeatmapRequest(placed, clamp=True), classes=5)
        >>> check_limit(HeatmapRequest(placed, clamp=True), classes=9)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: the heatmaps of 8 images and 9 classes take 3.46 GB, ...
    """
    options = request.options
    pixels = sum(one.height * one.width for one in request.placements)
    needed = pixels * classes * options.itemsize
    if needed > options.limit:
        smaller = "" if options.made == "uint8" else 'heatmaps="uint8" (a quarter of it) or '
        raise UsageError(
            f"the heatmaps of {len(request.placements)} images and {classes} classes take "
            f"{needed / 1e9:.3g} GB, more than the limit of {options.limit / 1e9:.3g} GB: load the "
            f'model with {smaller}heatmaps="lazy" (each is made when it is asked for; `sigcam '
            "explain --heatmaps lazy`), with a smaller batch_size or with "
            f"heatmap_limit={needed}, or ask for fewer classes"
        )


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
