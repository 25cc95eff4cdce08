"""The map kernels inside a PyCUDA program: its context, its memory, its stream.

    python examples/pycuda_embed.py

Needs an NVIDIA GPU, PyCUDA (`pip install pycuda`, which needs a CUDA toolkit: it comes as
source) and `pip install "sigcam[gpu]"`. Exits with 3 where one of them is missing.

Random features stand for a network's. The maps are compared with the NumPy reference.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.kernels.arguments import whole
from sigcam.kernels.clamp_combine import ClampCombine
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps

Array = npt.NDArray[Any]

SHAPE = (2, 2048, 14, 14)  # ResNet-50's features for two images
CLASSES = 5
SIZE = (224, 224)
NOT_HERE = 3
ALLOWED = 1e-4


def main() -> int:
    """Makes the maps in PyCUDA's context and compares them; returns the exit code."""
    try:
        import pycuda.driver as cuda
    except ImportError as exc:
        return absent(f"PyCUDA is missing ({exc})")
    try:
        cuda.init()
        context = cuda.Device(0).make_context()
    except cuda.Error as exc:
        return absent(f"PyCUDA finds no GPU ({exc})")
    try:
        return compare(cuda)
    except CudaUnavailableError as exc:
        return absent(str(exc))
    finally:
        context.pop()


def compare(cuda: Any) -> int:
    """The same in the context that is current; everything on the device is freed at the end."""
    from pycuda import gpuarray

    random = np.random.default_rng(0)
    features = random.normal(size=SHAPE).clip(0).astype(np.float32)
    weights = random.normal(size=(SHAPE[0], CLASSES, SHAPE[1])).astype(np.float32)

    kernel = ClampCombine()  # loaded into PyCUDA's context, once
    stream = cuda.Stream()
    # PyCUDA's arrays don't tell which stream they were made on: everything is on this one.
    given = gpuarray.to_gpu_async(features, stream=stream)
    used = gpuarray.to_gpu_async(weights, stream=stream)
    heatmaps = gpuarray.empty((SHAPE[0], CLASSES, *SIZE), np.float32)
    valid = gpuarray.empty((SHAPE[0], CLASSES), np.uint8)
    kernel(given, used, size=SIZE, out=heatmaps, valid_out=valid, stream=stream)
    found = heatmaps.get_async(stream=stream)
    good = valid.get_async(stream=stream)
    stream.synchronize()
    return judge(features, weights, found, good)


def judge(features: Array, weights: Array, heatmaps: Array, valid: Array) -> int:
    """Compares with NumPy; returns the exit code."""
    axes = whole(SIZE[0], SHAPE[2]), whole(SIZE[1], SHAPE[3])
    want, flags = normalised_heatmaps(clamp_combine(features, weights), *axes)
    error = float(np.abs(heatmaps - want).max())
    print(f"{len(heatmaps)} x {CLASSES} maps, largest difference from NumPy {error:.1e}")
    return 0 if error <= ALLOWED and (valid.astype(bool) == flags).all() else 1


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and PyCUDA: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    sys.exit(main())
