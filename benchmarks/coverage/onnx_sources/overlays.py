"""Overlays of a Keras network's map by its own framework, beside those of the exported file.

    python -m benchmarks.coverage.onnx_sources.overlays NAME IMAGE... --python PYTHON
        [--folder DIR] [--out sheet.png]

NAME is a row of the Keras files, whose folder must have been made. PYTHON's environment has
tensorflow-cpu. Each image's middle is cut out at the network's size; GradientTape's Grad-CAM in the
one and the artifact's in the other get the same pixels. A line for each image says how well the
two agree; the sheet shows the image, the framework's map and the artifact's. No sheet is part of
the project: the images aren't ours.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from benchmarks.coverage.jobs import ROOT
from benchmarks.coverage.onnx_sources import check
from benchmarks.coverage.onnx_sources.makers import common
from sigcam import ExportOptions, build_classifier, export_artifact

_SHOWN = 224


def middle(path: Path, size: tuple[int, int], channels: int) -> Any:
    """Returns the middle of an image, RGB or grey, uint8 [H, W, C]."""
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
    if image is None:
        raise click.ClickException(f"{path} is no image")
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    cut = cv2.resize(image[top : top + side, left : left + side], size[::-1],
                     interpolation=cv2.INTER_AREA)  # fmt: skip
    return cut[..., None] if channels == 1 else cut[..., ::-1]


def overlay(pixels: Any, cam: Any) -> Any:
    """Paints a map over an image, BGR."""
    cam = cv2.resize(cam.astype(np.float32), (_SHOWN, _SHOWN), interpolation=cv2.INTER_LINEAR)
    spread = float(np.ptp(cam))
    shares = (cam - cam.min()) / spread if spread > 0 else np.zeros_like(cam)
    colours = cv2.applyColorMap((shares * 255).astype(np.uint8), cv2.COLORMAP_JET)
    return cv2.addWeighted(shown(pixels), 0.5, colours, 0.5, 0)


def shown(pixels: Any) -> Any:
    """Returns the network's input as it is shown, BGR."""
    image = np.repeat(pixels, 3, 2) if pixels.shape[2] == 1 else pixels[..., ::-1]
    return cv2.resize(np.ascontiguousarray(image), (_SHOWN, _SHOWN))


@click.command()
@click.argument("name")
@click.argument("images", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--python", "python", required=True, help="Of the environment with TensorFlow.")
@click.option("--folder", default="/tmp/onnx-sources", type=click.Path(path_type=Path))
@click.option("--out", default="sheet.png", type=click.Path(path_type=Path))
def main(name: str, images: tuple[Path, ...], python: str, folder: Path, out: Path) -> None:
    """Maps of a Keras network, by itself and as sigcam exports it."""
    about = json.loads((folder / name / common.ABOUT).read_text())
    own = folder / name / common.MODEL
    built = build_classifier(str(own), mean=about["mean"], std=about["std"], size=about["size"])
    pixels = np.stack([middle(p, tuple(about["size"]), built.dual.channels) for p in images])
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "pixels.npy", pixels)
        module = f"{common.__package__}.keras_files"
        subprocess.run(
            [python, "-m", module, name, str(folder / name), f"{scratch}/pixels.npy"],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
        )  # fmt: skip
        theirs, logits = (np.load(Path(scratch) / f"{n}.npy") for n in ("maps", "logits"))
        artifact = Path(scratch) / "explained.onnx"
        export_artifact(built, artifact, ExportOptions(method="gradcam", branch="softmax"))
        found = check.run(artifact, pixels)
    rows = []
    for i, path in enumerate(images):
        ours = found["cams"][i, 0]
        error = np.abs(ours - theirs[i]).max() / max(1e-30, theirs[i].max())
        correlation = np.corrcoef(ours.ravel(), theirs[i].ravel())[0, 1]
        click.echo(
            f"{path.name}: class {logits[i].argmax()} and {found['class_ids_out'][i, 0]}, "
            f"correlation {correlation:.6f}, largest difference {error:.1e}"
        )
        rows.append(np.hstack([shown(pixels[i]), overlay(pixels[i], theirs[i]),
                               overlay(pixels[i], ours)]))  # fmt: skip
    cv2.imwrite(str(out), np.vstack(rows))


if __name__ == "__main__":
    main()
