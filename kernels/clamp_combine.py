"""Runs clamp_combine.cu: `ClampCombine`, for whatever CUDA context is current.

Programs that manage their own memory call `plan`, `prepare_workspace` once, and `launch` as
often as they want. Everything else calls the object with arrays of torch, CuPy or PyCUDA.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any, Literal

from sigcam.kernels import checks, driver
from sigcam.kernels import compile as compiling
from sigcam.kernels import plan as planning
from sigcam.kernels.call_on_arrays import Call
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import Plan
from sigcam.kernels.pool import KEPT
from sigcam.kernels.prepare import PreparePlan
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs, Interpolation

KERNELS = (
    *(
        f"combine{form}_{vector}_k{classes}"
        for form in ("", "_odd", "_positions")
        for vector in ("f32_v1", "f32_v4", "f16_v1", "f16_v8")
        for classes in (1, 4)
        if form != "_odd" or not vector.endswith("v1")
    ),
    "extremes_bilinear",
    "extremes_bicubic",
    *(f"enlarge_{kind}_{pixel}" for kind in ("bilinear", "bicubic") for pixel in ("f32", "u8")),
    "prepare_u8",
    "prepare_f32",
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

    def plan(self, inputs: Inputs | Cams, heatmaps: Heatmaps) -> Plan:
        """Returns the launches for a batch on this GPU.

        Raises:
            ValueError: as `sigcam.kernels.plan.plan` does.
        """
        return planning.plan(inputs, heatmaps, processors=self.device.multiprocessors)

    def prepare_workspace(self, plan: Plan, workspace: int, stream: driver.Stream | int) -> None:
        """Enqueues the zeroing of the counters, which is needed once for a workspace.

        Every launch leaves them zero. Plans with equal `workspace` may take turns on one stream;
        after any other plan it must be prepared again, as other things lay where the counters
        are.

        Args:
            plan: the plan whose launches will use the workspace.
            workspace: address of `plan.workspace.size` bytes, aligned to 256.
            stream: the stream of the launches, or one that they wait for.
        """
        parts = plan.workspace
        if parts.counters:
            driver.memset(workspace + parts.arrived, 0, parts.counters, stream)

    def launch(
        self,
        plan: Plan,
        *,
        heatmaps: int,
        valid: int,
        workspace: int,
        stream: driver.Stream | int,
        features: int = 0,
        weights: int = 0,
        cams: int = 0,
        places: int | None = None,
    ) -> None:
        """Enqueues the plan's two or three kernels; allocates and waits for nothing.

        It may be captured into a graph, in which case `places` must be given where the plan has
        places. Two launches may only overlap in time with different workspaces.

        Args:
            plan: what `plan` returned; its `alignment`s must hold for the addresses.
            heatmaps: address of the float32 or uint8 [B, K, H, W] to write, or of the images'
                [K, H, W] one after the other, where `plan.places` says.
            valid: address of the uint8 [B, K] to write: 1 where a heatmap is one, else 0.
            workspace: address of `plan.workspace.size` bytes, prepared. Afterwards it holds
                the CAMs that `combine` made, float32 [B, K, h, w], at `plan.workspace.cams`.
            stream: the stream that the kernels are enqueued on.
            features: address of float32 or float16 [B, N, h, w], for a plan of `Inputs`.
            weights: address of the same type, [B, K, N] or [B, K, N, h, w].
            cams: address of float32 [B, K, h, w], for a plan of `Cams`.
            places: address of a copy of `plan.places` on the device, made before on the stream.
                None enqueues that copy, to the workspace.

        Raises:
            ValueError: an address that isn't aligned as the plan takes it to be, is missing or
                isn't the plan's.
            KernelError: a launch failed, or `places` is missing while the stream is captured.
        """
        missing = not cams if plan.combine is None else not (features and weights)
        if missing or bool(cams) == bool(features or weights):
            wanted = "cams" if plan.combine is None else "features and weights, and no cams"
            raise ValueError(f"the plan is for {plan.inputs}: launch it with {wanted}")
        arguments = plan.arguments(
            heatmaps=heatmaps, valid=valid, workspace=workspace,
            features=features, weights=weights, cams=cams, places=places,
        )  # fmt: skip
        if plan.places is not None and places is None:
            if driver.is_capturing(stream):
                raise KernelError(
                    "the stream is being captured into a graph, which must not read the plan's "
                    "places from host memory each time; copy `plan.places` to the device before "
                    "and give its address as `places`"
                )
            size = ctypes.sizeof(plan.places)
            source = ctypes.addressof(plan.places)
            driver.copy_to_device(workspace + plan.workspace.places, source, size, stream)
        for launch, argument in plan.launches(*arguments):
            self._launch(launch, argument, stream)

    def prepare(
        self, plan: PreparePlan, *, images: int, inputs: int, stream: driver.Stream | int
    ) -> None:
        """Enqueues the kernel that makes network inputs of images; waits for nothing.

        Args:
            plan: what `sigcam.kernels.prepare.plan` returned.
            images: address of the uint8 images, as the plan says.
            inputs: address of the uint8 [B, H, W, n] or float32 [B, n, H, W] to write; a multiple
                of 4 for float32.
            stream: the stream that the kernel is enqueued on.

        Raises:
            ValueError: an address that isn't aligned.
            KernelError: the launch failed.
        """
        self._launch(plan.launch, plan.arguments(images, inputs), stream)

    def __call__(
        self,
        features: Any,
        weights: Any,
        *,
        size: tuple[int, int] | None = None,
        rows: checks.Axes | None = None,
        columns: checks.Axes | None = None,
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
        allocated from `pool`, in the order of the stream; by `cuMemAlloc` where there is none.

        Args:
            features: float32 or float16 [B, N, h, w]: anything with `__dlpack__` or
                `__cuda_array_interface__`, C-contiguous. Whoever made them on another stream
                is waited for by `stream`, as the protocols say.
            weights: the same type, [B, K, N] or [B, K, N, h, w].
            size: (H, W) of heatmaps that show the CAM's whole extent.
            rows: how the heatmaps lie over the CAM, with `columns`, instead of `size`: one for
                all images, or a list with one for each.
            columns: the same for the other axis.
            clamp: NWC: negative weights count as 0.
            signed: leaves the weighted sum as it is; what is negative in it is 0 otherwise.
            interpolation: "bilinear" or "bicubic" (a = -0.75).
            dtype: of the heatmaps: "float32" (0 to 1) or "uint8" (0 to 255).
            out: an array to write the heatmaps to, of `dtype` [B, K, H, W]; with lists of axes,
                one dimension, with the images' [K, H, W] one after the other.
            valid_out: an array to write the flags to, bool or uint8 [B, K].
            stream: a stream of torch, CuPy or PyCUDA, which the results keep, or a handle,
                whose stream must outlive them; the legacy default stream when None.

        Returns:
            Heatmaps and flags: `out` and `valid_out` where they were given, else new
            `DeviceArray`s, the flags as bool; with lists of axes, a list with the heatmaps
            [K, H, W] of each image. A heatmap that isn't valid is 0 everywhere.

        Raises:
            TypeError, ValueError: arguments that don't fit, or arrays that lie elsewhere.
            KernelError: a CUDA call failed, or `stream` is being captured.
        """
        with Call(self, stream) as call:
            given, used = call.take(features, "features"), call.take(weights, "weights")
            inputs = checks.inputs(given, used, clamp, signed)
            axes = checks.axes(given.shape[2:], size, rows, columns)
            return call.made(
                inputs, {"features": given.address, "weights": used.address}, axes, dtype,
                interpolation, out, valid_out,
            )  # fmt: skip

    def heatmaps(
        self,
        cams: Any,
        *,
        size: tuple[int, int] | None = None,
        rows: checks.Axes | None = None,
        columns: checks.Axes | None = None,
        interpolation: Interpolation = "bilinear",
        dtype: Literal["float32", "uint8"] = "float32",
        out: Any = None,
        valid_out: Any = None,
        stream: Any = None,
    ) -> tuple[Any, Any]:
        """Makes normalised heatmaps from CAMs that lie on the GPU; enqueues only.

        With many classes, CAM weights times features is a matrix product that a library or an
        engine does best; this is what remains to be done. Everything but `cams` is as in a call.

        Args:
            cams: float32 [B, K, h, w], as `features` in a call.
            size: see `__call__`, as for all that follow.
            rows: along the height.
            columns: along the width.
            interpolation: "bilinear" or "bicubic".
            dtype: of the heatmaps.
            out: where the heatmaps go.
            valid_out: where the flags go.
            stream: where it happens.

        Returns:
            Heatmaps and flags.

        Raises:
            TypeError, ValueError: arguments that don't fit, or arrays that lie elsewhere.
            KernelError: a CUDA call failed, or `stream` is being captured.
        """
        with Call(self, stream) as call:
            given = call.take(cams, "cams")
            inputs = checks.cams(given)
            axes = checks.axes(given.shape[2:], size, rows, columns)
            return call.made(
                inputs, {"cams": given.address}, axes, dtype, interpolation, out, valid_out
            )

    def _launch(self, launch: planning.Launch, argument: Any, stream: driver.Stream | int) -> None:
        function = self._functions[launch.kernel]
        driver.launch(function, launch.grid, launch.block, launch.shared, stream, argument)

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
