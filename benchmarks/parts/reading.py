"""JPEGs that are decoded smaller: what that saves, and what it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.agreement import agreement
from benchmarks.harness.backends import FP32, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import jpeg
from benchmarks.harness.targets import Reached
from sigcam.core.artifact import read_spec
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import open_image, read_image
from sigcam.images.preprocess import prepare, read_input
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session

Figures = dict[str, Any]

NETWORKS = QUICK = ("efficientnet_lite0",)
SIDES, QUICK_SIDES = (640, 1100, 2200), (640,)
IMAGES, QUICK_IMAGES = 60, 4

TEXT = """
A JPEG that is at least twice as large as the input is decoded at 1/2, 1/4 or 1/8 of its size.
Images enlarged to the shorter side given (Lanczos), quality 90. Against the same JPEG decoded
whole: `explain()` from its bytes to the result without the map; the levels (of 255) that the
network's input differs by; how often the most probable class is the same, and the correlation of
the CAMs (cam of the softmax branch, trained weights).
"""


def measure(context: Context) -> Figures:
    """Times and differences, by network and shorter side."""
    folder = context.data / "imagenet_samples" / "images"
    if not folder.is_dir():
        return {"unavailable": "needs the real images (--data)", "networks": {}}
    files = sorted(folder.iterdir())
    count = QUICK_IMAGES if context.quick else IMAGES
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(count, len(files)))]
    found: Figures = {}
    for name in context.chosen(NETWORKS, QUICK):
        weights = "DEFAULT" if name.startswith("efficientnet_lite") else "random"
        path = context.network(name, weights=weights).softmax_artifact("cam")
        backend = open_graph(FP32, path)
        with Session(ExportedModel(read_spec(path), backend)) as session:
            found[name] = {
                str(side): _side(context, session, backend, chosen, side)
                for side in context.some(SIDES, QUICK_SIDES)
            }
        context.say(f"  {name}: {', '.join(found[name])}")
    return {"networks": found}


def _side(
    context: Context, session: Session, backend: Backend, files: list[Path], side: int
) -> Figures:
    preprocessing = session.spec.preprocessing
    levels, smaller, whole = [], [], []
    for file in files:
        data = _enlarged(file, side)
        image = read_image(data)
        pair = read_input(data, preprocessing).tensor, prepare(image, preprocessing)[0]
        levels.append(np.abs(pair[0].astype(int) - pair[1]))
        for tensor, answers in zip(pair, (smaller, whole), strict=True):
            answers.append(backend.infer({"image": tensor[None]}))
    data = _enlarged(files[0], side)
    timed = time_calls(
        {
            "smaller": lambda: session.explain(data),
            "whole": lambda: session.explain(read_image(data)),
        },
        {"smaller": "whole"},
        context.effort,
    )
    return {
        "size": list(read_image(data).shape[1::-1]),
        "reduction": _reduction(data, preprocessing),
        "mean_levels": float(f"{np.mean([one.mean() for one in levels]):.3g}"),
        "most_levels": int(max(one.max() for one in levels)),
        **agreement(whole, smaller),
        **timed,
    }


def _enlarged(file: Path, side: int) -> bytes:
    image = read_image(file)
    scale = side / min(image.shape[:2])
    size = [round(scale * length) for length in image.shape[1::-1]]
    return jpeg(cv2.resize(image, size, interpolation=cv2.INTER_LANCZOS4))


def _reduction(data: bytes, preprocessing: Preprocessing) -> int:
    found = open_image(data)
    return found.coarsest(read_input(data, preprocessing).placement.reduction)


def section(figures: Figures) -> str:
    """One row for each network and side."""
    if "unavailable" in figures:
        return f"\nNot measured: {figures['unavailable']}.\n"
    rows = []
    for name, sides in figures["networks"].items():
        for side, row in sides.items():
            width, height = row["size"]
            rows.append([
                name, side, f"{width}x{height}, 1/{row['reduction']}",
                markdown.ms(row["ms"]["smaller"]), markdown.ms(row["ms"]["whole"]),
                markdown.ratio(row["ratios"]["smaller"]["ratio"]),
                f"{row['mean_levels']:.2f}", str(row["most_levels"]),
                f"{row['same_class']:.1%}", f"{row['mean']:.4f}", f"{row['worst']:.4f}",
            ])  # fmt: skip
    head = [
        "network", "shorter side", "timed image, decoded at", "smaller, ms", "whole, ms",
        "smaller over whole", "mean levels", "most levels", "same class", "mean correlation",
        "worst",
    ]  # fmt: skip
    title = "\n### End to end from a JPEG: decoded smaller against whole\n"
    return title + TEXT + markdown.table(head, rows)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """No target is of this part."""
    del figures
    return {}


def plots(figures: Figures, folder: Path) -> list[Path]:
    """The time against that of an image decoded whole."""
    cases = [
        (f"{name}\n{side}", row["ratios"]["smaller"]["ratio"])
        for name, sides in figures["networks"].items()
        for side, row in sides.items()
    ]
    if not cases:
        return []
    names, ratios = zip(*cases, strict=True)
    title = "End to end from a JPEG: decoded smaller, over decoded whole"
    series = {"by shorter side": ratios}
    return [
        drawing.bars(folder / "reading.png", title, "times whole", names, series, {"whole": 1.0})
    ]
