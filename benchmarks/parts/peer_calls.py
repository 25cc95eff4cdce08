"""What is compared: a package and a session, each from the same JPEG files to maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.parts.peer_packages import Heatmaps
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import read_image
from sigcam.runtime.session import Session

TOLERANCE = 1e-3
"""By which maps in [0, 1] may differ to be the same map."""


def explain(session: Session, files: list[bytes]) -> Any:
    """Our maps, float32 [B, H, W]."""
    return np.stack([found[0].heatmap for found in session.explain(files)])


def theirs(heatmaps: Heatmaps, files: list[bytes], preprocessing: Preprocessing) -> Any:
    """A package's maps, float32 [B, H, W], decoding and normalising included."""
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1) for v in (preprocessing.mean, preprocessing.std)
    )
    pixels = np.stack([read_image(file) for file in files])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return heatmaps((tensor - mean) / std)
