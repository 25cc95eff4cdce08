"""The map kernels inside a torch program: its context, its tensors, its current stream.

    python examples/torch_embed.py

Needs an NVIDIA GPU, a torch with CUDA and `pip install "sigcam[gpu]"`. Exits with 3 where one
of them is missing.

Random features stand for a network's. The maps are compared with the NumPy reference, once as
new memory that torch shares and once in tensors of torch's own.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from sigcam.kernels.arguments import whole
from sigcam.kernels.clamp_combine import ClampCombine
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps

SHAPE = (2, 2048, 14, 14)  # ResNet-50's features for two images
CLASSES = 5
SIZE = (224, 224)
NOT_HERE = 3
ALLOWED = 1e-4


def main() -> int:
    """Makes the maps on torch's stream and compares them; returns the exit code."""
    if not torch.cuda.is_available():
        return absent("torch.cuda.is_available() is False")
    torch.manual_seed(0)
    features = torch.randn(SHAPE, device="cuda").clamp(min=0)
    weights = torch.randn((SHAPE[0], CLASSES, SHAPE[1]), device="cuda")
    try:
        kernel = ClampCombine()  # loaded into the context that torch made, once
    except CudaUnavailableError as exc:
        return absent(str(exc))

    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream()
        stream.wait_stream(torch.cuda.default_stream())  # which made the tensors
        # New memory, which torch shares and sigcam frees when the tensors are gone.
        heatmaps, valid = map(from_dlpack, kernel(features, weights, size=SIZE, stream=stream))
        # Torch's own memory.
        again = torch.empty_like(heatmaps)
        flags = torch.empty_like(valid)
        kernel(features, weights, size=SIZE, out=again, valid_out=flags, stream=stream)
        same = bool((heatmaps == again).all() & (valid == flags).all())  # waits for the stream
    axes = whole(SIZE[0], SHAPE[2]), whole(SIZE[1], SHAPE[3])
    want, good = normalised_heatmaps(
        clamp_combine(features.cpu().numpy(), weights.cpu().numpy()), *axes
    )
    error = float(np.abs(heatmaps.cpu().numpy() - want).max())
    print(f"{len(heatmaps)} x {CLASSES} maps, largest difference from NumPy {error:.1e}")
    right = error <= ALLOWED and bool((valid.cpu().numpy() == good).all())
    return 0 if same and right else 1


def absent(reason: str) -> int:
    """Says what is missing; returns the exit code."""
    print(f"this example needs an NVIDIA GPU and a torch with CUDA: {reason}", file=sys.stderr)
    return NOT_HERE


if __name__ == "__main__":
    sys.exit(main())
