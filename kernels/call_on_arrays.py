"""One call of the kernels on arrays of other libraries: taking them in, and allocating results."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from sigcam.kernels import arrays, checks, driver
from sigcam.kernels.arrays import DeviceArray, View
from sigcam.kernels.errors import KernelError
from sigcam.kernels.plan import Plan
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs


class Kernels(Protocol):
    """What a call needs of `ClampCombine`."""

    device: driver.DeviceInfo
    pool: driver.MemoryPool | None

    @property
    def plan(self) -> Callable[[Inputs | Cams, Heatmaps], Plan]:
        """Returns the function that plans the launches."""

    @property
    def prepare_workspace(self) -> Callable[[Plan, int, int], None]:
        """Returns the function that enqueues what a workspace needs once."""

    @property
    def launch(self) -> Callable[..., None]:
        """Returns the function that enqueues the launches."""


class Call:
    """A call on one stream; the arrays that it takes are held while it is entered.

    Args:
        kernel: the loaded kernels.
        stream: a stream of any library, its handle, or None for the legacy default stream.

    Raises:
        KernelError: the stream is being captured into a graph, which must not allocate; or it was
            made in another context.

    Example:
        with Call(kernel, stream) as call:
            given = call.take(features, "features")
    """

    def __init__(self, kernel: Kernels, stream: Any) -> None:
        self._kernel, self._stream = kernel, stream
        self._handle = arrays.stream_handle(stream)
        driver.check_stream(self._handle)
        if driver.is_capturing(self._handle):
            raise KernelError(
                "the stream is being captured into a graph, which a call that allocates must "
                "not be; use `plan` and `launch` with buffers of your own"
            )
        self._held = ExitStack()

    def __enter__(self) -> Call:  # noqa: PYI034 (Self needs Python 3.11)
        return self

    def __exit__(self, *exc: object) -> None:
        self._held.close()

    def take(self, array: Any, name: str) -> View:
        """Returns access to an array, until the call is left.

        Raises:
            TypeError, ValueError: as `arrays.taken` does.
        """
        block = arrays.taken(array, name, self._handle, self._kernel.device.ordinal)
        return self._held.enter_context(block)

    def made(
        self,
        inputs: Inputs | Cams,
        given: dict[str, int],
        axes: tuple[checks.Axes, checks.Axes],
        dtype: str,
        interpolation: str,
        out: Any,
        valid_out: Any,
    ) -> tuple[Any, Any]:
        """Enqueues the kernels; returns heatmaps and flags as `ClampCombine` does.

        Args:
            inputs: shapes and types of what is given.
            given: the addresses of that, by the names that `ClampCombine.launch` has for them.
            axes: how the heatmaps lie over the CAMs.
            dtype: of the heatmaps.
            interpolation: by its name.
            out: where the heatmaps go; None allocates.
            valid_out: where the flags go; None allocates.

        Raises:
            TypeError, ValueError: what was asked for doesn't fit, or `out` lies elsewhere.
            KernelError: a CUDA call failed.
        """
        pixel, way = checks.pixel(dtype), checks.interpolation_of(interpolation)
        flags = (inputs.batch, inputs.classes)
        target = None if out is None else self.take(out, "out")
        address = 16 if target is None else target.address
        wanted = Heatmaps(*axes, dtype == "uint8", way, checks.alignment(address))
        plan = self._kernel.plan(inputs, wanted)
        if target is not None:
            checks.writable(target, "out", _shape(plan), (pixel,))
        found: View | DeviceArray
        if valid_out is None:
            valid_out = found = self._allocate(flags, np.dtype(bool))
        else:
            kinds = (np.dtype(bool), np.dtype(np.uint8))
            found = checks.writable(self.take(valid_out, "valid_out"), "valid_out", flags, kinds)
        if target is None:
            whole = self._allocate(_shape(plan), pixel)
            out, address = self._images(plan, whole), whole.address
        self._launch(plan, given, address, found.address)
        return out, valid_out

    def _launch(self, plan: Plan, given: dict[str, int], heatmaps: int, valid: int) -> None:
        # Its memory goes back in the stream's order, so after the kernels.
        workspace = self._buffer(plan.workspace.size)
        try:
            self._kernel.prepare_workspace(plan, workspace.address, self._handle)
            self._kernel.launch(
                plan, heatmaps=heatmaps, valid=valid, workspace=workspace.address,
                stream=self._handle, **given,
            )  # fmt: skip
        finally:
            if self._kernel.pool is None:
                # Freed without the stream's order: that this waits isn't promised.
                driver.synchronize(self._handle)
            workspace.close()

    def _images(self, plan: Plan, whole: DeviceArray) -> DeviceArray | list[DeviceArray]:
        """Returns the heatmaps, each image's by itself where they have sizes of their own."""
        if plan.places is None:
            return whole
        return [whole.part(start, shape) for start, shape in plan.images()]

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> DeviceArray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        device = self._kernel.device.ordinal
        return DeviceArray(self._buffer(size), shape, dtype, self._handle, device)

    def _buffer(self, size: int) -> driver.DeviceBuffer | driver.StreamBuffer:
        return driver.allocate(size, self._handle, self._kernel.pool, keep=self._stream)


def _shape(plan: Plan) -> tuple[int, ...]:
    """Returns the shape of the array that all heatmaps of a plan are written to."""
    if plan.places is not None:
        return (plan.pixels,)
    ((rows, columns),) = plan.heatmaps.axes()
    return (plan.inputs.batch, plan.inputs.classes, rows.size, columns.size)
