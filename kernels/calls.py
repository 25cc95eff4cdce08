"""Calls of the CUDA driver through cuda.bindings; errors say what is missing or failed."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Protocol

from sigcam.kernels.errors import CudaUnavailableError, KernelError

INSTALL = (
    'pip install "cuda-bindings==13.*" for a driver of CUDA 13, "cuda-bindings==12.*" for one '
    "of CUDA 12 (nvidia-smi shows which)"
)


@dataclass(frozen=True)
class DeviceInfo:
    """What is known of a GPU.

    Attributes:
        ordinal: the GPU's number, as CUDA counts them.
        name: the driver's name for it.
        capability: compute capability, (major, minor).
        multiprocessors: how many it has.
        pools: whether memory can be allocated in the order of a stream.
        integrated: whether CPU and GPU share their memory, as on Jetson: page-locked memory then
            needs no copies.
    """

    ordinal: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    pools: bool = True
    integrated: bool = False


class HasHandle(Protocol):
    """A stream, known by the number of its handle."""

    handle: int


def handle_of(stream: HasHandle | int) -> int:
    """Returns the number of a stream's handle.

    Example:
        >>> handle_of(7)
        7
    """
    return stream if isinstance(stream, int) else stream.handle


@functools.cache
def bindings() -> ModuleType:
    """Returns the module cuda.bindings.driver.

    Raises:
        CudaUnavailableError: the package isn't installed.

    Example:
        stream = check(bindings().cuStreamCreate(0))
    """
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as exc:
        raise CudaUnavailableError(
            f"the package cuda-bindings is not installed; {INSTALL}"
        ) from exc


def check(result: tuple[Any, ...], name: str = "a CUDA call") -> Any:
    """Unwraps what a function of cuda.bindings returns: (status, *values).

    Args:
        result: what the function returned.
        name: the function's name, for the message.

    Returns:
        None, the value, or the tuple of values where there are several.

    Raises:
        KernelError: the status isn't success.

    Example:
        >>> check((0,)), check((0, 8)), check((0, 8, 6))
        (None, 8, (8, 6))
    """
    status, *values = result
    if int(status) != 0:
        raise KernelError(f"{name} failed: {_described(status)}")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def call(name: str, *arguments: Any) -> Any:
    """Calls a function of the driver by name and unwraps its result.

    Raises:
        KernelError: the call failed, or the installed driver doesn't have the function.
        CudaUnavailableError: cuda-bindings or the driver's library is missing.

    Example:
        call("cuDeviceGetCount")  # 1
    """
    function = getattr(bindings(), name)
    try:
        result = function(*arguments)
    except RuntimeError as exc:  # no library, or an older one without this function
        available()
        raise KernelError(f"{name} can't be called with the installed driver: {exc}") from exc
    return check(result, name)


def available() -> None:
    """Checks that CUDA can be used here; initialises the driver, which is harmless to repeat.

    Raises:
        CudaUnavailableError: the package cuda-bindings, the driver's library or a device is
            missing; says which.

    Example:
        try:
            available()
        except CudaUnavailableError as exc:
            print(f"on the CPU, as {exc}")
    """
    cuda = bindings()
    try:
        status = cuda.cuInit(0)[0]
    except RuntimeError as exc:
        raise CudaUnavailableError(
            "the driver's library libcuda (nvcuda.dll) was not found: install NVIDIA's driver, "
            f"or give a container access to the GPU ({exc})"
        ) from exc
    if int(status) != 0:
        raise CudaUnavailableError(
            f"CUDA can't start: cuInit gave {_described(status)}; nvidia-smi should list a GPU "
            "(in a container: start it with access to the GPU)"
        )
    if call("cuDeviceGetCount") == 0:
        raise CudaUnavailableError(
            "the driver sees no GPU; look at nvidia-smi and at CUDA_VISIBLE_DEVICES"
        )


def driver_version() -> tuple[int, int]:
    """Returns the newest CUDA version that the driver knows, e.g. (13, 0)."""
    version = int(call("cuDriverGetVersion"))
    return version // 1000, version % 1000 // 10


def devices() -> list[DeviceInfo]:
    """Lists every GPU that the driver shows.

    Example:
        [gpu.name for gpu in devices()]
    """
    available()
    return [device(ordinal) for ordinal in range(call("cuDeviceGetCount"))]


def device(ordinal: int) -> DeviceInfo:
    """Returns a GPU by its number.

    Raises:
        CudaUnavailableError: there is no such GPU.

    Example:
        device(0).capability  # (8, 6)
    """
    available()
    count = call("cuDeviceGetCount")
    if not 0 <= ordinal < count:
        raise CudaUnavailableError(
            f"there is no GPU {ordinal}; the driver shows {count}, numbered from 0"
        )
    return _info(ordinal)


def current_device() -> DeviceInfo:
    """Returns the GPU of the context that is current in this thread.

    Raises:
        CudaUnavailableError: CUDA can't be used here.
        KernelError: no context is current.

    Example:
        with retain_primary_context(1):
            current_device().name  # of GPU 1
    """
    available()
    if int(call("cuCtxGetCurrent")) == 0:
        raise KernelError(
            "no CUDA context is current in this thread; make one current (torch: any CUDA "
            "tensor; PyCUDA: pycuda.autoprimaryctx; or driver.retain_primary_context)"
        )
    return _info(int(call("cuCtxGetDevice")))


def _info(ordinal: int) -> DeviceInfo:
    handle = call("cuDeviceGet", ordinal)
    kinds = bindings().CUdevice_attribute
    major, minor, multiprocessors, pools, integrated = (
        int(call("cuDeviceGetAttribute", getattr(kinds, f"CU_DEVICE_ATTRIBUTE_{name}"), handle))
        for name in (
            "COMPUTE_CAPABILITY_MAJOR",
            "COMPUTE_CAPABILITY_MINOR",
            "MULTIPROCESSOR_COUNT",
            "MEMORY_POOLS_SUPPORTED",
            "INTEGRATED",
        )
    )
    name = call("cuDeviceGetName", 256, handle).split(b"\0")[0].decode("utf-8", "replace")
    return DeviceInfo(ordinal, name, (major, minor), multiprocessors, bool(pools), bool(integrated))


def _described(status: Any) -> str:
    """Returns CUDA's name and text of a status."""
    cuda = bindings()
    parts = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        try:
            failed, text = function(status)
        except RuntimeError:  # the driver's library is gone
            break
        if int(failed) == 0 and text:
            parts.append(text.decode("utf-8", "replace"))
    return f"{parts[0]} ({parts[1]})" if len(parts) == 2 else str(status)
