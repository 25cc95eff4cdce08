"""The engines and precisions that this machine has, and what they change of the maps."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from harness import markdown
from harness import plots as drawing
from harness.context import Context
from harness.engines import ENGINES, FP32, THREADS, UnavailableError, check, open_engine
from harness.measure import measure as time_calls
from harness.networks import Network
from harness.quantize import quantized

from sigcam.runtime.geometry import prepare
from sigcam.runtime.image import read_image

Figures = dict[str, Any]

NETWORKS = ("efficientnet_lite0", "resnet50")
QUICK = ("efficientnet_lite0",)
PICTURES, QUICK_PICTURES = 100, 8
TARGET = 0.98

TEXT = f"""
The same artifact (gradcam of the sigmoid branch, which is fresh) in every engine and precision of
this machine, batch 1, {THREADS} threads, alternating; EfficientNet-Lite0 with its trained backbone.
Correlation is that of the grids with ONNX Runtime's fp32, over real pictures: mean and worst;
agreement is how often the predicted class is the same. The target is a mean of at least {TARGET}.
"""


def measure(context: Context) -> Figures:
    """Times, correlations and reasons, by network and engine."""
    if not (context.data / "imagenet_samples").is_dir():
        return {"unavailable": "needs the real pictures (--data)", "networks": {}}
    found = {}
    for name in context.chosen(NETWORKS, QUICK):
        weights = "DEFAULT" if name.startswith("efficientnet_lite") else "random"
        with ExitStack() as stack:
            network = context.network(name, weights=weights)
            found[name] = {"weights": weights, **_network(context, network, stack)}
    return {"networks": found}


def _network(context: Context, network: Network, stack: ExitStack) -> Figures:
    folder = context.data / "imagenet_samples" / "images"
    path = network.artifact("gradcam")
    engines, missing = {}, {}
    for engine in ENGINES:
        try:
            check(engine)
            file = quantized(network, path, folder) if engine.quantized else path
            opened = open_engine(engine, file)
        except UnavailableError as exc:
            missing[engine.name] = str(exc)
            continue
        stack.callback(opened.close)
        engines[engine.name] = opened
    inputs = _inputs(network, folder, QUICK_PICTURES if context.quick else PICTURES)
    wanted = [engines[FP32.name].infer({"image": one}) for one in inputs]
    rows: Figures = {}
    for name, opened in engines.items():
        rows[name] = agreement(wanted, [opened.infer({"image": one}) for one in inputs])
    calls = {
        name: lambda opened=opened: opened.infer({"image": inputs[0]})  # type: ignore[misc]
        for name, opened in engines.items()
    }
    others = {name: FP32.name for name in engines if name != FP32.name}
    timed = time_calls(calls, others, context.effort)
    for name, row in rows.items():
        row["ms"] = timed["ms"][name]
        row["over_fp32"] = timed["ratios"].get(name, {}).get("ratio")
    context.say(f"  {network.name}: {', '.join(rows)}")
    return {"engines": rows, "missing": missing, "rounds": timed["rounds"]}


def _inputs(network: Network, folder: Path, count: int) -> list[Any]:
    """Evenly chosen pictures, each as a batch of one, that aren't first in the folder."""
    files = sorted(folder.iterdir())
    chosen = [files[int(i)] for i in np.linspace(0, len(files) - 1, min(count, len(files)))]
    geometry = network.loaded.geometry
    return [prepare(read_image(file), geometry)[0][None] for file in chosen]


def agreement(wanted: list[dict[str, Any]], got: list[dict[str, Any]]) -> Figures:
    """Correlation of the grids, mean and worst, and share of equal predictions.

    A constant grid has no correlation: it counts as 1 where both are constant, as 0 where
    one is. Where the predictions differ the grids are of different classes, and count.
    """
    found = [
        _correlation(a["grids"].ravel(), b["grids"].ravel())
        for a, b in zip(wanted, got, strict=True)
    ]
    same = [a["logits"].argmax() == b["logits"].argmax() for a, b in zip(wanted, got, strict=True)]
    return {
        "mean": float(f"{np.mean(found):.6g}"),
        "worst": float(f"{np.min(found):.6g}"),
        "same_class": float(np.mean(same)),
        "pictures": len(found),
    }


def _correlation(a: Any, b: Any) -> float:
    flat = [not one.std() > 1e-12 * max(1.0, abs(float(one.mean()))) for one in (a, b)]
    if any(flat):
        return float(all(flat))
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def section(figures: Figures) -> str:
    """One row for each engine, missing ones with their reason."""
    title = "\n### Engine only: engines and precisions\n"
    if "unavailable" in figures:
        return f"{title}\nNot measured: {figures['unavailable']}.\n"
    rows = []
    for name, one in figures["networks"].items():
        for engine in (e.name for e in ENGINES):
            if engine in one["engines"]:
                row = one["engines"][engine]
                speed = "" if row["over_fp32"] is None else markdown.ratio(row["over_fp32"])
                mean = f"{row['mean']:.4f}"
                mean = mean if row["mean"] >= TARGET else f"**{mean}**"
                cells = [markdown.ms(row["ms"]), speed, mean, f"{row['worst']:.4f}"]
                cells.append(f"{100 * row['same_class']:.0f}%")
            else:
                cells = [one["missing"].get(engine, ""), "", "", "", ""]
            rows.append([name, one["weights"], engine, *cells])
    head = [
        "network", "weights", "engine", "ms", "over ort fp32", "correlation, mean", "worst",
        "same class",
    ]  # fmt: skip
    return title + TEXT + markdown.table(head, rows)


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Times by engine."""
    found = figures["networks"]
    if not found:
        return []
    names = list(dict.fromkeys(name for one in found.values() for name in one["engines"]))
    series = {
        name: [one["engines"].get(name, {}).get("ms") for one in found.values()] for name in names
    }
    title = "Engine only: artifact with gradcam, batch 1"
    return [drawing.bars(folder / "precisions.png", title, "ms", list(found), series)]
