"""Images and heatmaps that stay on the GPU, in a CuPy program.

    python examples/device_cupy.py MODEL

MODEL is an .onnx file or an engine of sigcam. Needs an NVIDIA GPU, CuPy (`pip install
cupy-cuda13x`) and `pip install "sigcam[gpu]"`. Exits with 3 where one of them is missing.

Random images of two sizes stand for a program's own. From the heatmaps, CuPy makes a mask of where
the evidence is, on the same stream.
"""

from __future__ import annotations

import sys

import sigcam
from sigcam.core.errors import BackendUnavailableError

NOT_HERE = 3
SIZES = ((480, 640), (333, 500))


def main(model: str) -> int:
    """Explains a list of images on a stream of CuPy's; returns the exit code."""
    try:
        import cupy
    except ImportError as exc:
        return absent(f"CuPy is missing ({exc})")
    try:
        if cupy.cuda.runtime.getDeviceCount() < 1:
            return absent("CuPy finds no GPU")
    except cupy.cuda.runtime.CUDARuntimeError as exc:
        return absent(f"CuPy finds no GPU ({exc})")
    try:
        session = sigcam.load(model, "tensorrt" if model.endswith(".engine") else "ort-cuda")
    except BackendUnavailableError as exc:
        return absent(str(exc))
    with session, cupy.cuda.Stream(non_blocking=True) as stream:
        n = session.spec.preprocessing.channels
        images = [cupy.random.randint(0, 256, (*size, n)).astype(cupy.uint8) for size in SIZES]
        found = session.explain_device(images, stream=stream)
        for size, heatmaps in zip(SIZES, found.heatmaps, strict=True):
            mask = cupy.from_dlpack(heatmaps) >= 0.5
            print(f"{size[0]} x {size[1]}: {int(mask[0].sum())} pixels are at least 0.5")
    return 0


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and CuPy: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "model.onnx"))
