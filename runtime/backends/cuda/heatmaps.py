"""Heatmaps made on a GPU, from features and CAM weights that a backend left there.

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

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.types import Array
from sigcam.images.preprocess import Axis, Placement
from sigcam.kernels import driver
from sigcam.kernels.arguments import Axis as KernelAxis
from sigcam.kernels.arguments import whole
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import Plan, Workspace
from sigcam.kernels.shapes import Heatmaps, Inputs
from sigcam.runtime.backends.base import DeviceHeatmaps, HeatmapRequest
from sigcam.runtime.backends.cuda.layout import STAGED, Piece, cams_size, piece, pieces_of

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine

__all__ = [
    "DeviceOutput",
    "DeviceTensor",
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

    def enqueue(
        self, features: DeviceTensor, weights: DeviceTensor, request: HeatmapRequest, stream: int
    ) -> Pending:
        """Enqueues the kernels and the copies of their results to the host.

        Nothing waits, unless memory must be made anew while it is in use. The tensors must stay
        until the results are collected.

        Args:
            features: features [B, N, h, w].
            weights: CAM weights [B, K, N] or [B, K, N, h, w], of the same type.
            request: the heatmaps to make.
            stream: handle of the stream that the tensors are made on.

        Raises:
            ArtifactError: shapes or types that don't belong together.
            UsageError: the heatmaps are more than the request's limit.
            BackendError: a CUDA call failed, memory that is used up included.
        """
        check_tensors(features, weights, len(request.placements))
        if request.options.made != "lazy":
            check_limit(request, weights.shape[1])
        with kernel_errors():
            pieces = tuple(
                piece(first, self._plan(features, weights, first, count, request))
                for first, count in self._cut(features, weights, request)
            )
            lazy = request.options.made == "lazy"
            work = Work(features, weights, pieces, stream, lazy)
            self._grow(work)
            self.launch(work, work.pieces[0])
        return Pending(self, work)

    def launch(self, work: Work, one: Piece) -> None:
        """Enqueues the kernels of a piece, and the copies of its results."""
        target, memory = self._host if self._shared else self._results, self._view
        if target is None or memory is None:
            raise KernelError("the memory for heatmaps was freed")
        plan, stream = one.plan, work.stream
        workspace = self._workspace(plan, stream)
        self._kernel.launch(
            plan,
            features=address_of(work.features, one.first),
            weights=address_of(work.weights, one.first),
            heatmaps=target.address,
            valid=target.address + one.valid,
            workspace=workspace,
            stream=stream,
        )
        size = cams_size(plan)
        cams = memory[one.cams : one.cams + size]
        driver.copy_to_host(cams, workspace + plan.workspace.cams, size, stream)
        if not self._shared:
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

    def _cut(
        self, features: DeviceTensor, weights: DeviceTensor, request: HeatmapRequest
    ) -> list[tuple[int, int]]:
        """Cuts a batch into pieces; CAMs alone are all made at once."""
        if request.options.made == "lazy":
            return [(0, features.shape[0])]
        pixel = weights.shape[1] * request.options.itemsize
        return list(pieces_of(request.placements, pixel))

    def _plan(
        self,
        features: DeviceTensor,
        weights: DeviceTensor,
        first: int,
        count: int,
        request: HeatmapRequest,
    ) -> Plan:
        """Plans a piece's launches, or takes the plan of an earlier one like it."""
        addresses = address_of(features, first) | address_of(weights, first)
        alignment = min(16, addresses & -addresses)
        placements = request.placements[first : first + count]
        if request.options.made == "lazy":
            placements = ()  # CAMs don't depend on where the images lie
        elif len(set(placements)) == 1:
            placements = placements[:1]
        bytes_ = request.options.made == "uint8"
        key = (
            features.shape[1:], weights.shape[1:], features.half, count, placements,
            request.clamp, request.signed, alignment, bytes_,
        )  # fmt: skip
        if key not in self._plans:
            _, channels, height, width = features.shape
            inputs = Inputs(
                batch=count,
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
            if len(self._plans) >= _MAX_KEPT:
                self._plans.clear()
            rows, columns = axes_of(placements, height, width)
            heatmaps = Heatmaps(rows, columns, bytes_=bytes_)
            self._plans[key] = self._kernel.plan(inputs, heatmaps)
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
class DeviceOutput:
    """An output of a network in device memory.

    Attributes:
        address: where its first element lies.
        dtype, shape: as NumPy's; it is C-contiguous.

    Example:
        >>> DeviceOutput(0x1000, np.dtype(np.int64), (2, 5)).nbytes
        80
    """

    address: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Returns the bytes of all elements."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


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
class Work:
    """What is done for one batch.

    Attributes:
        features, weights: what heatmaps are made of.
        pieces: the batch, one piece after the other.
        stream: handle of the stream.
        lazy: whether only CAMs are wanted.
    """

    features: DeviceTensor
    weights: DeviceTensor
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


def address_of(tensor: DeviceTensor, image: int) -> int:
    """Returns where the part of the batch begins that belongs to an image.

    Example:
        >>> tensor = DeviceTensor(0x1000, (2, 3, 4), half=False)
        >>> address_of(tensor, image=1) - tensor.address  # 12 floats on
        48
    """
    elements = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return tensor.address + image * elements * (2 if tensor.half else 4)


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
