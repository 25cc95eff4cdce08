"""Every precision: what it costs of fidelity and size, and its time over float32."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import SETUPS, THREADS, UnavailableError, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network
from benchmarks.harness.quantize import LIMITS_OFF, ONLY_TIME, quantized
from benchmarks.harness.targets import TARGETS, Reached
from sigcam.convert.quantize.images import choose, feeds
from sigcam.core.artifact import read_spec
from sigcam.core.progress import reporter
from sigcam.core.spec import ClassSelection

Figures = dict[str, Any]

NETWORKS = ("efficientnet_lite0", "resnet50")
QUICK = ("resnet18",)
TRAINED = "efficientnet_lite0"
BRANCH = Path(__file__).resolve().parents[2] / "demo" / "efficientnet_lite0_branch.safetensors"
TARGET = TARGETS["int8_correlation"].limit
AGREEMENT = 0.99  # the default limit of `sigcam quantize`

FLOAT = "float32"
IN_BF16 = "float32, computed in bf16"
WAYS: dict[str, dict[str, Any]] = {
    "int8": {"rounds": 0},
    "int8 --activations int8": {"rounds": 0, "activations": "int8"},
    "int8 --wide-weights": {"rounds": 0, "wide_weights": True},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
}
"""Name of a file, as the command has its options, to `QuantizeOptions`."""
QUICK_WAYS = ("int8", "fp16")

MEASURED: dict[str, Any] = {**LIMITS_OFF, "calibration": 128, "held_out": 256}
"""Of the trained network: enough images for its fidelity."""

TEXT = f"""
Files of `sigcam quantize`, method cam, classes as an input. Their fidelity is the report that the
command writes into the file: against float32 on held-out images, none of which calibrated
({MEASURED["held_out"]} of the ImageNet samples, {MEASURED["calibration"]} others calibrate). It is
shown for EfficientNet-Lite0, with its trained weights and the demo's trained sigmoid branch; other
networks are fresh, so only their times mean something. The limits are off and no layer is kept in
float32, so that every precision has a row: by itself the command refuses what agrees on less than
{AGREEMENT:.0%} or correlates less than 0.98 in the mean (**bold**). The target is a mean
correlation of at least {TARGET} for int8. `--precision int8-head` is for MLP heads: see methods.

Times are of the backend alone, batch 1, {THREADS} threads, all files and backends of a network
alternating; each backend's ratio is to float32 in the same backend.
"""


def measure(context: Context) -> Figures:
    """Fidelity, size and times by network and file."""
    folder = context.data / "imagenet_samples" / "images"
    if not folder.is_dir():
        return {"unavailable": "needs the real images (--data)", "networks": {}}
    found = {}
    for name in context.chosen(NETWORKS, QUICK):
        trained = name == TRAINED
        weights = {"weights": "DEFAULT", "branch": BRANCH} if trained else {}
        network = context.network(name, **weights)
        with ExitStack() as stack:
            found[name] = _network(context, network, folder, trained, stack)
        context.say(f"  {name}: {found[name]['pairs']}")
    return {"networks": found}


def _network(
    context: Context, network: Network, folder: Path, trained: bool, stack: ExitStack
) -> Figures:
    path = network.artifact("cam", classes=ClassSelection("input"))
    paths, missing = _files(context, network, path, folder, trained)
    preprocessing = read_spec(path).preprocessing
    chosen = choose(folder, preprocessing, 0, 8, 0, reporter(False, ""))
    image = next(feeds(chosen.held_out, preprocessing))
    inputs = {**image, "class_ids": np.array([[-1]], np.int64)}
    calls = {}
    for file, setup in _cases(list(paths)):
        try:
            opened = open_graph(setup, paths[FLOAT if file == IN_BF16 else file], batch=1)
        except UnavailableError as exc:
            missing[f"{file}, {setup.backend}"] = str(exc)
            continue
        stack.callback(opened.close)
        calls[f"{file}, {setup.backend}"] = partial(opened.infer, inputs)
    pairs = {name: (name, f"{FLOAT}, {name.split(', ')[-1]}") for name in calls}
    timed = time_calls(calls, {}, context.effort, pairs)
    files = {}
    for name, made in paths.items():
        fidelity = read_spec(made).fidelity if trained else None
        told = None if fidelity is None else asdict(fidelity)
        files[name] = {"mb": round(made.stat().st_size / 1e6, 1), "fidelity": told}
    return {**timed, "trained": trained, "files": files, "missing": missing}


def _files(
    context: Context, network: Network, path: Path, folder: Path, trained: bool
) -> tuple[dict[str, Path], dict[str, str]]:
    """The file of each precision, and why others can't be had."""
    paths: dict[str, Path] = {FLOAT: path}
    missing: dict[str, str] = {}
    common = MEASURED if trained else ONLY_TIME
    for name in context.some(list(WAYS), QUICK_WAYS):
        options = {"threads": THREADS, **common, **WAYS[name]}
        try:
            paths[name] = quantized(network, path, folder, **options)
        except UnavailableError as exc:
            missing[name] = str(exc)
            continue
    return paths, missing


def _cases(files: list[str]) -> list[tuple[str, Any]]:
    """Every file in every backend; float32 also computed in bf16 where that can be asked for."""
    cases = []
    for setup in SETUPS:
        if setup.name == "openvino bf16":
            cases.append((IN_BF16, setup))
        elif not setup.quantized:
            cases += [(file, setup) for file in files]
    return cases


def section(figures: Figures) -> str:
    """One row for each file, missing ones with their reason."""
    title = "\n### Backend only: backends and precisions\n"
    if "unavailable" in figures:
        return f"{title}\nNot measured: {figures['unavailable']}.\n"
    rows = []
    for network, one in figures["networks"].items():
        for name in (FLOAT, *WAYS):
            if name in one["files"]:
                file = one["files"][name]
                cells = [*_fidelity(file["fidelity"]), f"{file['mb']:.1f}"]
                rows.append([network, name, *cells, *_times(one, name)])
            elif name in one["missing"]:
                rows.append([network, name, "", "", "", "", "", one["missing"][name], "", "", ""])
        rows.append([network, IN_BF16, "", "", "", "", "", *_times(one, IN_BF16)])
    head = [
        "network", "file", "agreement", "correlation, mean", "worst", "IoU of boxes", "MB",
        "ort, ms", "over float32", "openvino, ms", "over float32",
    ]  # fmt: skip
    return title + TEXT + markdown.table(head, rows)


def _fidelity(fidelity: Figures | None) -> list[str]:
    if fidelity is None:
        return [""] * 4
    agreement, mean = fidelity["agreement"], fidelity["mean_correlation"]
    cells = [f"{agreement:.4f}" if agreement >= AGREEMENT else f"**{agreement:.4f}**"]
    if mean is None:
        return [*cells, "", "", ""]
    cells.append(f"{mean:.4f}" if mean >= TARGET else f"**{mean:.4f}**")
    cells.append(f"{fidelity['worst_correlation']:.4f}")
    boxes = fidelity["mean_box_iou"]
    return [*cells, "" if boxes is None else f"{boxes:.4f}"]


def _times(one: Figures, file: str) -> list[str]:
    cells = []
    for backend in ("ort", "openvino"):
        name = f"{file}, {backend}"
        if name in one["ms"]:
            cells += [markdown.ms(one["ms"][name]), markdown.ratio(one["pairs"][name])]
        else:
            cells += ["", one["missing"].get(name, "")]
    return cells


def reached(figures: Figures) -> dict[str, Reached | None]:
    """The correlation of int8, as the file's parity report has it."""
    file = figures["networks"].get(TRAINED, {}).get("files", {}).get("int8")
    if file is None or file["fidelity"] is None:
        return {}
    fidelity = file["fidelity"]
    return {
        "int8_correlation": Reached(
            [fidelity["mean_correlation"]],
            f"worst {fidelity['worst_correlation']:.3f}, {fidelity['agreement']:.1%} of "
            f"{fidelity['images']} agree, no layer in float32",
        )
    }


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Times over float32 by file."""
    found = figures["networks"]
    if not found:
        return []
    made = {name.rsplit(", ", 1)[0] for one in found.values() for name in one["pairs"]}
    names = [name for name in (*WAYS, IN_BF16) if name in made]
    series = {
        f"{network}, {backend}": [one["pairs"].get(f"{name}, {backend}") for name in names]
        for network, one in found.items()
        for backend in ("ort", "openvino")
    }
    title = "Backend only: time over float32 in the same backend, batch 1"
    lines = {"float32": 1.0}
    return [drawing.bars(folder / "precisions.png", title, "times float32", names, series, lines)]
