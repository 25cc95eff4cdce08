"""Images and heatmaps that stay on the GPU, in a PyCUDA program.

    python examples/device_pycuda.py MODEL

MODEL is an .onnx file or an engine of sigcam. Needs an NVIDIA GPU, PyCUDA (`pip install pycuda`,
which needs a CUDA toolkit: it comes as source) and `pip install "sigcam[gpu]"`. Exits with 3 where
one of them is missing.

A session works in the GPU's primary context, so PyCUDA takes that one, not one of its own.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import sigcam
from sigcam.core.errors import BackendUnavailableError

NOT_HERE = 3
SIZE = (480, 640)


def main(model: str) -> int:
    """Explains an image in PyCUDA's arrays; returns the exit code."""
    try:
        import pycuda.driver as cuda
    except ImportError as exc:
        return absent(f"PyCUDA is missing ({exc})")
    try:
        cuda.init()
        context = cuda.Device(0).retain_primary_context()
    except cuda.Error as exc:
        return absent(f"PyCUDA finds no GPU ({exc})")
    context.push()
    try:
        return explain(cuda, model)
    except BackendUnavailableError as exc:
        return absent(str(exc))
    finally:
        context.pop()


def explain(cuda: Any, model: str) -> int:
    """The same in the context that is current; everything on the device is freed at the end."""
    from pycuda import gpuarray

    with sigcam.load(model, "tensorrt" if model.endswith(".engine") else "ort-cuda") as session:
        n = session.spec.preprocessing.channels
        pixels = np.random.default_rng(0).integers(0, 256, (1, *SIZE, n), dtype=np.uint8)
        stream = cuda.Stream()
        # PyCUDA's arrays don't tell which stream they were made on: everything is on this one.
        images = gpuarray.to_gpu_async(pixels, stream=stream)
        found = session.explain_device(images, stream=stream)
        heatmaps = found.heatmaps.to_host()  # waits for the stream
        print(f"heatmaps {heatmaps.shape}, the largest value {heatmaps.max():.2f}")
        return 0 if heatmaps.shape[2:] == SIZE and heatmaps.max() <= 1 else 1


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and PyCUDA: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "model.onnx"))
