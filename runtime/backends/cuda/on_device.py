"""One call for images that lie on a GPU: the results stay there, on the stream of the caller.

The caller's stream prepares the inputs. The backend's own stream waits for it and runs the network;
the caller's stream waits for that, copies the scores out of the backend's memory and makes the
heatmaps; and the backend's next run waits for that. The host waits for none of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.images.preprocess import Placement, place
from sigcam.kernels import driver
from sigcam.kernels.arrays import DeviceArray, View, stream_handle, taken
from sigcam.kernels.errors import KernelError
from sigcam.kernels.plan import Plan
from sigcam.kernels.prepare import Images
from sigcam.kernels.prepare import plan as plan_of
from sigcam.kernels.shapes import Heatmaps
from sigcam.runtime.backends.base import HeatmapOptions, HeatmapRequest
from sigcam.runtime.backends.cuda.heatmaps import axes_of, check_limit
from sigcam.runtime.backends.cuda.preparation import input_axis, values_of
from sigcam.runtime.backends.cuda.source import DeviceTensor, source_of

if TYPE_CHECKING:
    from sigcam.kernels.clamp_combine import ClampCombine


class DeviceRunner(Protocol):
    """A backend that runs a network on memory of the device."""

    def device_context(self) -> AbstractContextManager[None]:
        """Makes the GPU's context current inside the block; raises CUDA's errors as ours."""
        ...

    def device_kernels(self) -> ClampCombine:
        """Returns the kernels, loaded at the first time; the context must be current."""
        ...

    def device_run(
        self, image: DeviceTensor, class_ids: Array | None, names: Sequence[str], stream: int
    ) -> AbstractContextManager[dict[str, DeviceTensor]]:
        """Runs the network behind what is on a stream of the caller's.

        Args:
            image: the network's input, which stays until `stream` has come to the results.
            class_ids: the input of that name, if there is one.
            names: of the outputs.
            stream: of the caller; it waits for the network.

        Returns:
            The outputs, in memory of the backend's, which work that is enqueued on `stream` inside
            the block may read.
        """
        ...


@dataclass(frozen=True)
class DeviceQuestion:
    """What is asked of images on the device.

    Attributes:
        images: uint8 arrays; see `Session.explain_device`.
        layout: "NHWC", "NCHW" or None.
        stream: the caller's.
        class_ids: ids and ranks that every image is asked for; None where the graph chooses.
        preprocessing: of the model.
        classes: number of classes of each image.
        outputs: names of the graph's outputs: scores, and what CAMs come from.
        clamp, signed: as for `HeatmapRequest`.
        options: how heatmaps are made.
    """

    images: Any
    layout: str | None
    stream: Any
    class_ids: tuple[int, ...] | None
    preprocessing: Preprocessing
    classes: int
    outputs: tuple[str, ...]
    clamp: bool
    signed: bool
    options: HeatmapOptions


@dataclass(frozen=True)
class DeviceAnswer:
    """What was made of them.

    Attributes:
        placements: where each input lies in its image.
        inputs, scores, cams, valid: see `DeviceExplanations`; scores by the outputs' names.
        heatmaps: [B, K, H, W], or [K, H, W] of each image of a list; None where none are asked for.
    """

    placements: tuple[Placement, ...]
    inputs: DeviceArray
    scores: dict[str, DeviceArray]
    cams: DeviceArray
    valid: DeviceArray
    heatmaps: DeviceArray | tuple[DeviceArray, ...] | None


def answer(runner: DeviceRunner, question: DeviceQuestion) -> DeviceAnswer:
    """Enqueues all work for images on the device, and waits for nothing.

    Raises:
        UsageError: images or a stream that don't fit, or heatmaps beyond the limit.
        ArtifactError: outputs that don't belong together.
        BackendError: the backend or a CUDA call failed.
    """
    with runner.device_context(), ExitStack() as held:
        kernels = runner.device_kernels()
        work = _Work(kernels, question, held)
        try:
            inputs = work.prepared()
            ids = None
            if question.class_ids is not None:
                ids = np.tile(np.array(question.class_ids, np.int64), (inputs.shape[0], 1))
            image = DeviceTensor(inputs.address, inputs.dtype, inputs.shape)
            with runner.device_run(image, ids, question.outputs, work.handle) as outputs:
                return work.answered(inputs, outputs)
        except BaseException:
            # What was allocated goes back now; nothing may be at work in it.
            with suppress(KernelError):
                driver.synchronize(work.handle)
            raise


class _Work:
    """One call's images, memory and launches on the caller's stream."""

    def __init__(self, kernels: ClampCombine, question: DeviceQuestion, held: ExitStack) -> None:
        self._kernels, self._question = kernels, question
        self._device = kernels.device.ordinal
        with _usage():
            self.handle = stream_handle(question.stream)
        _check_stream(self.handle, self._device)
        self._several = isinstance(question.images, (list, tuple))
        given = list(question.images) if self._several else [question.images]
        with _usage():
            views = [
                held.enter_context(taken(one, self._name(i), self.handle, self._device))
                for i, one in enumerate(given)
            ]
        self._images = [self._sizes(view, self._name(i)) for i, view in enumerate(views)]
        self._addresses = [view.address for view in views]
        if not views:
            raise UsageError("images must hold at least one image, got an empty list")
        preprocessing = question.preprocessing
        placed = [place(preprocessing, one.height, one.width) for one in self._images]
        self.placements = tuple(
            where for one, where in zip(self._images, placed, strict=True)
            for _ in range(one.batch)
        )  # fmt: skip
        self._request = HeatmapRequest(
            self.placements, question.clamp, question.signed, question.options
        )
        if question.options.made != "lazy":
            check_limit(self._request, question.classes)

    def prepared(self) -> DeviceArray:
        """Enqueues the making of the network's inputs."""
        preprocessing = self._question.preprocessing
        values = values_of(preprocessing)
        size, n = (preprocessing.height, preprocessing.width), preprocessing.channels
        dtype, shape = (np.uint8, (*size, n)) if values.scale is None else (np.float32, (n, *size))
        inputs = self._allocate((len(self.placements), *shape), dtype)
        first = 0
        for images, address in zip(self._images, self._addresses, strict=True):
            where = self.placements[first]
            with _usage():
                plan = plan_of(images, input_axis(where.rows), input_axis(where.columns), values)
            offset = first * inputs.nbytes // len(self.placements)
            self._kernels.prepare(
                plan, images=address, inputs=inputs.address + offset, stream=self.handle
            )
            first += images.batch
        return inputs

    def answered(self, inputs: DeviceArray, outputs: Mapping[str, DeviceTensor]) -> DeviceAnswer:
        """Enqueues the copies of the scores, and the heatmaps."""
        kept = [name for name in outputs if name not in ("features", "cam_weights")]
        scores = {name: self._copied(outputs[name]) for name in kept}
        cams = scores.pop("cams", None)
        source = source_of(outputs, len(self.placements))
        placements, options = self.placements, self._request.options
        given, lazy = source.inputs(0, len(placements), self._request), options.made == "lazy"
        alike = placements[:1] if len(set(placements)) == 1 else placements
        rows, columns = axes_of(() if lazy else alike, given.height, given.width)
        plan = self._kernels.plan(given, Heatmaps(rows, columns, bytes_=options.made == "uint8"))
        pixel = np.dtype(np.uint8 if options.made == "uint8" else np.float32)
        whole = self._allocate((plan.pixels,), pixel)
        valid = self._allocate((given.batch, given.classes), bool)
        workspace = self._buffer(plan.workspace.size)
        self._kernels.prepare_workspace(plan, workspace.address, self.handle)
        self._kernels.launch(
            plan, heatmaps=whole.address, valid=valid.address, workspace=workspace.address,
            stream=self.handle, **source.addresses(0),
        )  # fmt: skip
        if cams is None:  # they lie in the workspace, which they keep
            shape = (given.batch, given.classes, given.height, given.width)
            offset = plan.workspace.cams
            cams = DeviceArray(workspace, shape, np.float32, self.handle, self._device, offset)
        heatmaps = None if lazy else self._heatmaps(plan, whole)
        return DeviceAnswer(placements, inputs, scores, cams, valid, heatmaps)

    def _heatmaps(self, plan: Plan, whole: DeviceArray) -> DeviceArray | tuple[DeviceArray, ...]:
        """Returns the heatmaps as one array, or those of each image of a list."""
        images = plan.images()
        if not self._several:
            return whole.part(0, (len(images), *images[0][1]))
        return tuple(whole.part(start, shape) for start, shape in images)

    def _sizes(self, view: View, name: str) -> Images:
        """Returns the sizes of what was given, in the model's channels."""
        n, layout = self._question.preprocessing.channels, self._question.layout
        if view.dtype != np.uint8:
            raise UsageError(
                f"{name} must be uint8, levels from 0 to 255, got {view.dtype}; the session "
                "normalises them itself"
            )
        axes = 3 if self._several else 4
        wanted = f"[H, W, {n}] or [{n}, H, W]"
        if not self._several:
            wanted = f"[B, H, W, {n}] or [B, {n}, H, W], or a list of arrays without B"
        if len(view.shape) != axes or 0 in view.shape:
            raise UsageError(f"{name} must be {wanted}, got {list(view.shape)}")
        batch, sizes = (1, view.shape) if self._several else (view.shape[0], view.shape[1:])
        can = [kind for kind, at in (("NHWC", 2), ("NCHW", 0)) if sizes[at] == n]
        if len(can) == 2 and layout is None:
            raise UsageError(
                f"{name} can be read as NHWC and as NCHW, as it is {list(view.shape)}; say which, "
                'by layout="NHWC" or layout="NCHW"'
            )
        if (layout or next(iter(can), None)) not in can:
            asked = "" if layout is None else f" in the layout {layout}"
            raise UsageError(f"{name} must be {wanted}{asked}, got {list(view.shape)}")
        planar = (layout or can[0]) == "NCHW"
        height, width = sizes[1:] if planar else sizes[:2]
        return Images(batch, height, width, n, planar)

    def _name(self, number: int) -> str:
        return f"images[{number}]" if isinstance(self._question.images, (list, tuple)) else "images"

    def _copied(self, output: DeviceTensor) -> DeviceArray:
        """Enqueues a copy of an output to memory of the caller's."""
        made = self._allocate(output.shape, output.dtype)
        if output.nbytes:
            driver.copy_on_device(made.address, output.address, output.nbytes, self.handle)
        return made

    def _allocate(self, shape: tuple[int, ...], dtype: Any) -> DeviceArray:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        return DeviceArray(self._buffer(size), shape, dtype, self.handle, self._device)

    def _buffer(self, size: int) -> driver.DeviceBuffer | driver.StreamBuffer:
        return driver.allocate(size, self.handle, self._kernels.pool, keep=self._question.stream)


@contextmanager
def _usage() -> Iterator[None]:
    """Turns the kernels' complaints about arguments into the runtime's."""
    try:
        yield
    except (TypeError, ValueError) as exc:
        raise UsageError(str(exc)) from exc


def _check_stream(stream: int, device: int) -> None:
    """Refuses a stream that the work can't be enqueued on.

    Raises:
        UsageError: it belongs to another context, or is being captured.
    """
    try:
        driver.check_stream(stream)
    except KernelError as exc:
        raise UsageError(
            f"the stream {stream:#x} doesn't belong to the context of this session, which is the "
            f"primary one of GPU {device}; pass a stream that was made there (torch and CuPy: with "
            f"device {device} current; PyCUDA: after `Device({device}).retain_primary_context()"
            ".push()`), or load the model with device= of the stream's GPU"
        ) from exc
    if driver.is_capturing(stream):
        raise UsageError(
            f"the stream {stream:#x} is being captured into a graph, which a call that allocates "
            "must not be; end the capture first, or pass another stream"
        )
