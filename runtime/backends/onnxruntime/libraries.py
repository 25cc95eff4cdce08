"""The libraries of ONNX Runtime's GPU providers: which they need, and what keeps them from loading.

ONNX Runtime prints the reason to standard error and raises nothing, so it is found out here.
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from sigcam.core.errors import BackendUnavailableError
from sigcam.core.versions import versions_of

FOR_CUDA_12 = '"onnxruntime-gpu>=1.24,<1.27" for one of CUDA 12 (`pip install "sigcam[gpu-cu12]"`)'
"""What fits drivers of CUDA 12: on PyPI, the builds from 1.27 on are for CUDA 13."""

_TENSORRT = re.compile(
    rb"(?:lib(?:nvinfer|nvonnxparser)\.so\.(\d+)|(?:nvinfer|nvonnxparser)_(\d+)\.dll)(?=\0)"
)
"""The libraries of TensorRT, with their major version, as they stand in a library's table."""

_WITH_CUDA_13 = 10
"""The major version of TensorRT that came to CUDA 13 with its 10.13."""

_DISTRIBUTIONS = (
    "tensorrt", "tensorrt-cu13", "tensorrt-cu13-libs", "tensorrt-cu12", "tensorrt-cu12-libs",
)  # fmt: skip


def provider_library(ort: Any, provider: str) -> Path | None:
    """Returns the library of a provider in an installed ONNX Runtime; None where there is none.

    Args:
        ort: the package onnxruntime.
        provider: the provider's name, "CUDAExecutionProvider".

    Example:
        >>> import onnxruntime
        >>> provider_library(onnxruntime, "CoreMLExecutionProvider") is None
        True
    """
    short = provider.removesuffix("ExecutionProvider").lower()
    found = (Path(ort.__file__).parent / "capi").glob(f"*onnxruntime_providers_{short}.*")
    return next(iter(sorted(found)), None)


def needed_tensorrt(library: Path) -> dict[str, int]:
    """Returns the libraries of TensorRT that a library was linked with, and their major version.

    Args:
        library: a provider's library, an ELF file or a DLL. Its table of names is searched for
            TensorRT's, so that no tool is needed that reads the format.

    Example:
        needed_tensorrt(provider_library(onnxruntime, "TensorrtExecutionProvider"))
        # {"libnvinfer.so.10": 10, "libnvonnxparser.so.10": 10}
    """
    with library.open("rb") as stream:
        if library.stat().st_size == 0:
            return {}
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            found = {one[0]: one[1] or one[2] for one in _TENSORRT.finditer(data)}
    return {name.decode(): int(major) for name, major in sorted(found.items())}


def load_tensorrt(ort: Any, provider: str) -> None:
    """Loads the libraries of TensorRT that ONNX Runtime's provider was linked with.

    The packages of TensorRT keep them in a folder of their own, where the system's loader
    doesn't look; their module `tensorrt_libs` loads them. A library that is loaded already is
    found by its name.

    Args:
        ort: the package onnxruntime.
        provider: the provider's name, "TensorrtExecutionProvider".

    Raises:
        BackendUnavailableError: one of them isn't there, or only in another version; says which
            versions belong together.

    Example:
        load_tensorrt(onnxruntime, "TensorrtExecutionProvider")
    """
    library = provider_library(ort, provider)
    wanted = {} if library is None else needed_tensorrt(library)
    with suppress(ImportError, OSError):  # TensorRT may also lie on the loader's path
        importlib.import_module("tensorrt_libs")
    for name, major in wanted.items():
        try:
            ctypes.CDLL(name)
        except OSError as exc:  # noqa: PERF203 (there are two)
            raise BackendUnavailableError(_no_tensorrt(ort, provider, name, major, exc)) from exc


def why_not(ort: Any, provider: str) -> str:
    """Returns what keeps a provider's library from loading, as the system's loader says it.

    Args:
        ort: the package onnxruntime.
        provider: the provider's name.

    Example:
        >>> import onnxruntime
        >>> why_not(onnxruntime, "CoreMLExecutionProvider")  # doctest: +ELLIPSIS
        'it was built for CUDA ..., and has no library for CoreML; install the matching ...'
    """
    built = getattr(ort, "cuda_version", "") or "of some version"
    needs = f"it was built for CUDA {built}"
    advice = (
        'install the matching CUDA and cuDNN libraries (`pip install "onnxruntime-gpu[cuda,cudnn]"`'
        f" brings them as wheels), or {FOR_CUDA_12}"
    )
    library = provider_library(ort, provider)
    if library is None:
        short = provider.removesuffix("ExecutionProvider")
        return f"{needs}, and has no library for {short}; {advice}"
    try:
        ctypes.CDLL(str(library))
    except OSError as exc:
        return f"{exc}; {needs}; {advice}"
    return f"its library loads, but the provider failed to start (see standard error); {needs}"


def _no_tensorrt(ort: Any, provider: str, name: str, major: int, exc: OSError) -> str:
    """Returns the message about a library of TensorRT that can't be loaded."""
    installed = versions_of(*_DISTRIBUTIONS)
    here = (
        ", ".join(f"{name} {version}" for name, version in installed.items())
        or "no package of TensorRT"
    )
    least = "10.13" if major == _WITH_CUDA_13 else str(major)
    end = "-cu12" if str(getattr(ort, "cuda_version", "")).startswith("12.") else ""
    return (
        f"ONNX Runtime {ort.__version__}'s {provider} was built for TensorRT {major}: it needs "
        f"{name}, which can't be loaded ({exc}); installed is {here}; install the version that "
        f'belongs to it, `pip install "tensorrt{end}>={least},<{major + 1}"` '
        f'(`pip install "sigcam[ort-tensorrt{end}]"` brings both)'
    )
