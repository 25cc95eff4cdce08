"""Runs clamp_combine.cu: `ClampCombine`, for whatever CUDA context is current.

Programs that manage their own memory call `plan`, `prepare_workspace` once, and `launch` as
often as they want. Everything else calls the object with arrays of torch, CuPy or PyCUDA.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sigcam.kernels import arrays, checks, driver
from sigcam.kernels import compile as compiling
from sigcam.kernels import plan as planning
from sigcam.kernels.arguments import Axis
from sigcam.kernels.arrays import DeviceArray, View
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import Heatmaps, Inputs, Interpolation, Plan
from sigcam.kernels.pool import KEPT

KERNELS = (
    *(
        f"combine{form}_{vector}_k{classes}"
        for form in ("", "_positions")
        for vector in ("f32_v1", "f32_v4", "f16_v1", "f16_v8")
        for classes in (1, 4)
    ),
    "extremes_bicubic",
    *(f"enlarge_{kind}_{pixel}" for kind in ("bilinear", "bicubic") for pixel in ("f32", "u8")),
)
"""The entry points of the source."""

VARIABLE = "SIGCAM_KERNELS"
"""The environment variable that names a file made by `sigcam kernels build`.

The file is then used instead of compiling.
"""


class ClampCombine:
    """The kernels, loaded into the context that is current when this is made.

    One object may be used from several threads, each with that context current and with
    workspaces and outputs of its own.

    Args:
        binary: a fat binary or cubin to load. None takes the file that the environment
            variable SIGCAM_KERNELS names, or else compiles for this GPU with NVRTC and keeps
            the result in the cache.
        kept: bytes of device memory that calls keep for the next one, of what they allocated
            and their results gave back.

    Attributes:
        device: the GPU of that context.
        pool: where the memory of calls comes from; None on GPUs without memory pools.

    Raises:
        CudaUnavailableError: CUDA, NVRTC or code for this GPU is missing; says which.
        KernelError: no context is current, or the driver refuses the code.
    """

    def __init__(self, binary: str | Path | None = None, *, kept: int = KEPT) -> None:
        self.device = driver.current_device()
        self.pool = driver.MemoryPool(self.device.ordinal, kept) if self.device.pools else None
        chosen = binary or os.environ.get(VARIABLE)
        if chosen:
            image, origin = _read(Path(chosen)), str(chosen)
        else:
            image, origin = compiling.cubin_for(self.device.capability), "compiled by NVRTC"
        try:
            self._module = driver.Module(image)
            # All of them now: a driver that loads lazily couldn't while a stream is captured.
            self._functions = {name: self._module.function(name) for name in KERNELS}
        except KernelError as exc:
            raise self._refused(origin, exc) from exc

    def plan(self, inputs: Inputs, heatmaps: Heatmaps) -> Plan:
        """Returns the launches for a batch on this GPU.

        Raises:
            ValueError: as `sigcam.kernels.plan.plan` does.
        """
        return planning.plan(inputs, heatmaps, processors=self.device.multiprocessors)

    def prepare_workspace(self, plan: Plan, workspace: int, stream: driver.Stream | int) -> None:
        """Enqueues the zeroing of the counters, which is needed once for a workspace and a plan.

        Every launch leaves them zero. A workspace that served another plan must be prepared
        again, as other things lay where the counters are.

        Args:
            plan: the plan whose launches will use the workspace.
            workspace: address of `plan.workspace.size` bytes, aligned to 256.
            stream: the stream of the launches, or one that they wait for.
        """
        parts = plan.workspace
        driver.memset(workspace + parts.arrived, 0, parts.counters, stream)

    def launch(
        self,
        plan: Plan,
        *,
        features: int,
        weights: int,
        heatmaps: int,
        valid: int,
        workspace: int,
        stream: driver.Stream | int,
    ) -> None:
        """Enqueues the plan's two or three kernels; allocates and waits for nothing.

        It may be captured into a graph. Two launches may only overlap in time with different
        workspaces.

        Args:
            plan: what `plan` returned; its `alignment`s must hold for the addresses.
            features: address of float32 or float16 [B, N, h, w].
            weights: address of the same type, [B, K, N] or [B, K, N, h, w].
            heatmaps: address of the float32 or uint8 [B, K, H, W] to write.
            valid: address of the uint8 [B, K] to write: 1 where a heatmap is one, else 0.
            workspace: address of `plan.workspace.size` bytes, prepared. Afterwards it holds
                the CAMs, float32 [B, K, h, w], at `plan.workspace.cams`.
            stream: the stream that the kernels are enqueued on.

        Raises:
            ValueError: an address that isn't aligned as the plan takes it to be.
            KernelError: a launch failed.
        """
        combine, enlarge = plan.arguments(
            features=features, weights=weights, heatmaps=heatmaps, valid=valid, workspace=workspace
        )
        self._launch(plan.combine, combine, stream)
        if plan.extremes is not None:
            self._launch(plan.extremes, enlarge, stream)
        self._launch(plan.enlarge, enlarge, stream)

    def __call__(
        self,
        features: Any,
        weights: Any,
        *,
        size: tuple[int, int] | None = None,
        rows: Axis | None = None,
        columns: Axis | None = None,
        clamp: bool = True,
        signed: bool = False,
        interpolation: Interpolation = "bilinear",
        dtype: Literal["float32", "uint8"] = "float32",
        out: Any = None,
        valid_out: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        """Makes normalised heatmaps from arrays on the GPU; enqueues only, waits for nothing.

        The results are there once `stream` has come to them. Memory that isn't given is
        allocated, in the order of the stream where the GPU can (`cuMemAllocAsync`).

        Args:
            features: float32 or float16 [B, N, h, w]: anything with `__dlpack__` or
                `__cuda_array_interface__`, C-contiguous. Whoever made them on another stream
                is waited for by `stream`, as the protocols say.
            weights: the same type, [B, K, N] or [B, K, N, h, w].
            size: (H, W) of heatmaps that show the CAM's whole extent.
            rows: how the heatmaps lie over the CAM; with `columns`, instead of `size`.
            columns: the same for the other axis.
            clamp: NWC: negative weights count as 0.
            signed: leaves the weighted sum as it is; what is negative in it is 0 otherwise.
            interpolation: "bilinear" or "bicubic" (a = -0.75).
            dtype: of the heatmaps: "float32" (0 to 1) or "uint8" (0 to 255).
            out: an array to write the heatmaps to, of `dtype` [B, K, H, W].
            valid_out: an array to write the flags to, bool or uint8 [B, K].
            stream: a stream of torch, CuPy or PyCUDA, which the results keep, or a handle,
                whose stream must outlive them; the legacy default stream when None.

        Returns:
            Heatmaps and flags: `out` and `valid_out` where they were given, else new
            `DeviceArray`s, the flags as bool. A heatmap that isn't valid is 0 everywhere.

        Raises:
            TypeError, ValueError: arguments that don't fit, or arrays that lie elsewhere.
            KernelError: a CUDA call failed, or `stream` is being captured.
        """
        handle = arrays.stream_handle(stream)
        driver.check_stream(handle)
        if driver.is_capturing(handle):
            raise KernelError(
                "the stream is being captured into a graph, which a call that allocates must "
                "not be; use `plan` and `launch` with buffers of your own"
            )
        with ExitStack() as stack:

            def take(array: Any, name: str) -> View:
                block = arrays.taken(array, name, handle, self.device.ordinal)
                return stack.enter_context(block)

            given, used = take(features, "features"), take(weights, "weights")
            wanted = checks.axes(given.shape, size, rows, columns)
            inputs = checks.inputs(given, used, clamp, signed)
            shape = (inputs.batch, inputs.classes, wanted[0].size, wanted[1].size)
            target: View | DeviceArray
            flags: View | DeviceArray
            if out is None:
                out = target = self._allocate(shape, checks.pixel(dtype), handle, stream)
            else:
                target = checks.writable(take(out, "out"), "out", shape, (checks.pixel(dtype),))
            if valid_out is None:
                valid_out = flags = self._allocate(shape[:2], np.dtype(bool), handle, stream)
            else:
                kinds = (np.dtype(bool), np.dtype(np.uint8))
                flags = checks.writable(take(valid_out, "valid_out"), "valid_out", shape[:2], kinds)
            heatmaps = Heatmaps(
                *wanted,
                dtype == "uint8",
                checks.interpolation_of(interpolation),
                checks.alignment(target.address),
            )
            plan = self.plan(inputs, heatmaps)
            # Its memory goes back in the stream's order, so after the kernels.
            workspace = self._buffer(plan.workspace.size, handle, stream)
            try:
                self.prepare_workspace(plan, workspace.address, handle)
                self.launch(
                    plan, features=given.address, weights=used.address, heatmaps=target.address,
                    valid=flags.address, workspace=workspace.address, stream=handle,
                )  # fmt: skip
            finally:
                if not self.device.pools:
                    # Freed without the stream's order: that this waits isn't promised.
                    driver.synchronize(handle)
                workspace.close()
        return out, valid_out

    def _launch(self, launch: planning.Launch, argument: Any, stream: driver.Stream | int) -> None:
        function = self._functions[launch.kernel]
        driver.launch(function, launch.grid, launch.block, launch.shared, stream, argument)

    def _allocate(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], handle: int, stream: Any
    ) -> DeviceArray:
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        buffer = self._buffer(size, handle, stream)
        return DeviceArray(buffer, shape, dtype, handle, self.device.ordinal)

    def _buffer(
        self, size: int, handle: int, stream: Any
    ) -> driver.DeviceBuffer | driver.StreamBuffer:
        if self.device.pools:
            return driver.StreamBuffer(size, handle, keep=stream, pool=self.pool)
        return driver.DeviceBuffer(size)

    def _refused(self, origin: str, exc: KernelError) -> KernelError:
        text = str(exc)
        where = (
            f"the kernels ({origin}) can't be loaded on {self.device.name}, compute capability "
            "{}.{}".format(*self.device.capability)
        )
        if "NO_BINARY_FOR_GPU" in text or "UNSUPPORTED_PTX" in text or "INVALID_IMAGE" in text:
            return CudaUnavailableError(
                f"{where}: no code in it suits this GPU and its driver (CUDA "
                f"{'.'.join(map(str, driver.driver_version()))}); build one for it with `sigcam "
                "kernels build`, or use NVRTC and cuda-bindings of the driver's major version "
                f"({text})"
            )
        return KernelError(f"{where}: {text}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CudaUnavailableError(
            f"the kernels can't be read from {path}: {exc.strerror or exc}; make the file with "
            f"`sigcam kernels build --out {path}`, or unset {VARIABLE}"
        ) from exc
