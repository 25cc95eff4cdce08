"""Images and heatmaps that stay on the GPU, in a torch program.

    python examples/device_torch.py MODEL

MODEL is an .onnx file or an engine of sigcam. Needs an NVIDIA GPU, a torch with CUDA and `pip
install "sigcam[gpu]"`. Exits with 3 where one of them is missing.

Random images stand for a program's own. The CAMs are compared with those of a session on the CPU.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

import sigcam
from sigcam.core.errors import BackendUnavailableError

NOT_HERE = 3
ALLOWED = 0.02
"""Inputs may differ by one level of 255, and CAMs by a little more than that."""


def main(model: str) -> int:
    """Explains a batch on torch's stream; returns the exit code."""
    if not torch.cuda.is_available():
        return absent("torch.cuda.is_available() is False")
    try:
        session = sigcam.load(model, "tensorrt" if model.endswith(".engine") else "ort-cuda")
    except BackendUnavailableError as exc:
        return absent(str(exc))
    with session:
        n = session.spec.preprocessing.channels
        images = torch.randint(0, 256, (2, n, 480, 640), dtype=torch.uint8, device="cuda")
        # The session works on torch's current stream, so nothing has to be waited for.
        found = session.explain_device(images, stream=torch.cuda.current_stream())
        # Torch shares the memory, which goes back when the tensors are gone.
        heatmaps, cams = torch.from_dlpack(found.heatmaps), torch.from_dlpack(found.cams)
        print(f"heatmaps {tuple(heatmaps.shape)} on {heatmaps.device}")
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        return judge(model, list(pixels), cams.cpu().numpy())


def judge(model: str, images: list[Any], cams: Any) -> int:
    """Compares with a session on the CPU; returns the exit code."""
    source = model.removesuffix(".engine") + ".onnx" if model.endswith(".engine") else model
    with sigcam.load(source, "ort") as plain:
        want = np.stack([[one.cam for one in found] for found in plain.explain(images)])
    error = float(np.abs(cams[:, : want.shape[1]] - want).max() / max(1e-6, np.abs(want).max()))
    print(f"largest difference of a CAM from the CPU's {error:.1e} of the largest value")
    return 0 if error <= ALLOWED else 1


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and a torch with CUDA: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "model.onnx"))
