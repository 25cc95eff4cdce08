"""Files in other precisions, made by what `sigcam quantize` runs."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness.backends import UnavailableError
from benchmarks.harness.networks import Network
from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
from sigcam.core.errors import SigcamError

LIMITS_OFF: dict[str, Any] = {"min_agreement": 0.0, "min_correlation": -1.0}
"""The gate lets everything through, and still measures it."""

ONLY_TIME: dict[str, Any] = {**LIMITS_OFF, "calibration": 16, "held_out": 8}
"""For fresh weights, which no precision can be true to: time doesn't depend on them."""


def quantized(network: Network, path: Path, images: Path, **options: Any) -> Path:
    """The artifact at `path` in another precision, its fidelity in its spec.

    Args:
        network: that the artifact is of.
        path: of the float32 artifact.
        images: folder; calibration and held-out ones are drawn from it, never the same.
        options: of `QuantizeOptions`.

    Raises:
        UnavailableError: there are no images, or it refuses.
    """
    if not images.is_dir():
        raise UnavailableError("needs the real images (--data)")
    chosen = QuantizeOptions(**options)

    def make(target: Path) -> None:
        try:
            quantize_artifact(path, images, target, chosen)
        except SigcamError as exc:
            raise UnavailableError(f"sigcam quantize refused: {exc}") from exc

    digest = hashlib.sha256(repr(sorted(asdict(chosen).items())).encode()).hexdigest()[:8]
    return network.made(f"{path.stem}-{chosen.precision}-{digest}.onnx", make)
