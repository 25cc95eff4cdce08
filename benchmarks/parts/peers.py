"""Other packages: the same map of the same network, from the same JPEG."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import markdown
from harness import plots as drawing
from harness.context import Context
from harness.engines import ENGINES, FP32, THREADS, Engine, UnavailableError, check, open_engine
from harness.measure import Effort
from harness.measure import measure as time_calls
from harness.networks import Network, jpeg, picture
from harness.quantize import quantized

from parts import peer_openvino_xai
from parts.peer_packages import METHODS, TARGETS, Maps, apart, freeze, packages
from sigcam.runtime.artifact import read_spec
from sigcam.runtime.image import read_image
from sigcam.runtime.session import Session

Figures = dict[str, Any]

# Network, methods, batch, fewest rounds. Larger batches take many seconds a round.
CASES = (
    ("resnet50", METHODS, 1, 7),
    ("resnet50", METHODS, 8, 3),
    ("resnet50", ("gradcam",), 32, 3),
    ("vgg16", ("gradcam", "layercam"), 1, 7),
)
QUICK = (("resnet18", ("gradcam", "layercam"), 1, 7),)
TOLERANCE = 1e-3
LIMITS = {"ort fp32": 6.0, "openvino bf16": 11.0, "ort int8": 17.0, "openvino int8": 17.0}
"""Times as fast as grad-cam as in its manual: gradcam, ResNet-50, batch 1."""

TEXT = f"""
From JPEG files of the network's input size in memory to the maps at that size and the predicted
classes: the same network and weights, the same pictures, the same {THREADS} threads, the same
decoder and resizing. Softmax branch, no clamping, no second branch in our graph. Maps are compared
before they are timed; a package whose map differs by more than {TOLERANCE:g} isn't timed, and the
difference is shown. All alternate in one process. Figures are how many times as long a package
takes as ours (ONNX Runtime fp32).

"frozen" is the package at its best: parameters take no gradients, all but one right before the
target layer (as it comes, grad-cam also makes the gradients of all weights, which no map needs).
captum is told the class: as in its manual the network is run first to know it, at its best it is
given. Targets, for Grad-CAM on ResNet-50, batch 1, over grad-cam as in its manual:
{", ".join(f"{limit:g} times in {name}" for name, limit in LIMITS.items())}.
Methods of several passes and finercam (another definition there) aren't in the table. Batch 32
is timed for gradcam only, as a round takes half a minute.
"""


def measure(context: Context) -> Figures:
    """Times by network, batch and method; the engines for gradcam at batch 1."""
    torch.set_num_threads(THREADS)
    found: Figures = {}
    cases = context.some(CASES, QUICK)
    if context.networks:
        cases = [(name, METHODS, 1, 7) for name in context.networks]
    for name, methods, batch, least in cases:
        network = context.network(name)
        effort = Effort(context.effort.seconds, least, 100, context.effort.rounds)
        for method in methods:
            with ExitStack() as stack:
                row = _case(context, network, method, batch, effort, stack)
            found.setdefault(name, {}).setdefault(str(batch), {})[method] = row
            context.say(f"  {name} batch {batch} {method}: {row['times']}")
    figures: Figures = {"networks": found}
    if not context.quick and not context.networks:
        figures["openvino_xai"] = peer_openvino_xai.measure(context)
    return figures


def _case(
    context: Context, network: Network, method: str, batch: int, effort: Effort, stack: ExitStack
) -> Figures:
    path = network.softmax_artifact(method)
    ours, engines = _sessions(context, network, path, method, batch, stack)
    geometry = read_spec(path).geometry
    files = [jpeg(picture(geometry.height, geometry.width, seed)) for seed in range(batch)]
    calls: dict[str, Any] = {
        name: partial(_explain, session, files) for name, session in ours.items()
    }
    stack.callback(freeze, network.model, None)
    wanted = calls[FP32.name]()
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (geometry.mean, geometry.std))
    row: Figures = {"engines": engines, "difference": {}}
    for name, make in packages(network.model.eval(), TARGETS[network.name], method).items():
        call = partial(_theirs, make, files, mean, std)
        row["difference"][name] = float(f"{apart(wanted, call()):.2g}")
        if row["difference"][name] <= TOLERANCE:
            calls[name] = call
    for name in ours.keys() - {FP32.name}:
        row["difference"][name] = float(f"{apart(wanted, calls[name]()):.2g}")
    others = [name for name in calls if name not in ours]
    timed = time_calls(calls, {name: FP32.name for name in calls if name != FP32.name}, effort)
    row["times"] = {name: timed["ratios"][name]["ratio"] for name in others}
    if "grad-cam" in others:
        row["engine_times"] = _engine_times(timed, list(ours))
    return {**row, "rounds": timed["rounds"], "ms": timed["ms"]}


def _engine_times(timed: Figures, names: list[str]) -> Figures:
    """grad-cam's time over that of each engine.

    The interval is that of grad-cam over fp32, divided by the engine's median ratio.
    """
    base = timed["ratios"]["grad-cam"]["ratio"]
    return {
        name: base
        if name == FP32.name
        else [value / timed["ratios"][name]["ratio"][0] for value in base]
        for name in names
    }


def _sessions(
    context: Context, network: Network, path: Path, method: str, batch: int, stack: ExitStack
) -> tuple[dict[str, Session], Figures]:
    """Sessions by engine, and the reasons of those that aren't there."""
    sessions, missing = {}, {}
    wanted = ENGINES if (method, batch) == ("gradcam", 1) else (FP32,)
    for engine in wanted:
        try:
            file = _file(context, network, path, engine)
            backend = open_engine(engine, file)
        except UnavailableError as exc:
            missing[engine.name] = str(exc)
            continue
        session = Session(read_spec(file), backend, batch_size=batch)
        stack.callback(session.close)
        sessions[engine.name] = session
    return sessions, missing


def _file(context: Context, network: Network, path: Path, engine: Engine) -> Path:
    check(engine)
    if not engine.quantized:
        return path
    return quantized(network, path, context.data / "imagenet_samples" / "images")


def _explain(session: Session, files: list[bytes]) -> Any:
    return np.stack([found[0].map for found in session.explain(files)])


def _theirs(maps: Maps, files: list[bytes], mean: Any, std: Any) -> Any:
    pixels = np.stack([read_image(file) for file in files])
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return maps((tensor - mean) / std)


def section(figures: Figures) -> str:
    """The packages, then our engines, then openvino-xai."""
    rows, engines = [], []
    names = list(
        dict.fromkeys(
            name
            for batches in figures["networks"].values()
            for methods in batches.values()
            for row in methods.values()
            for name in row["difference"]
            if name not in {one.name for one in ENGINES}
        )
    )
    for network, batches in figures["networks"].items():
        for batch, methods in batches.items():
            for method, row in methods.items():
                ours = markdown.ms(row["ms"][FP32.name])
                cells = [_times(row, name) for name in names]
                rows.append([network, method, batch, str(row["rounds"]), ours, *cells])
                engines += _engine_rows(network, method, batch, row)
    head = ["network", "method", "batch", "rounds", "ours, ms", *names]
    parts = [
        "\n### End to end from a JPEG of the input's size: times as long as ours\n",
        TEXT,
        markdown.table(head, rows),
        "\n### End to end from a JPEG of the input's size: grad-cam as in its manual over our "
        "engines\n",
        markdown.table(
            [
                "network",
                "method",
                "engine",
                "ours, ms",
                "times as fast",
                "target",
                "maps differ by",
            ],
            engines,
        ),
    ]
    if "openvino_xai" in figures:
        parts.append(peer_openvino_xai.section(figures["openvino_xai"]))
    return "".join(parts)


def _times(row: Figures, name: str) -> str:
    if name in row["times"]:
        return markdown.ratio(row["times"][name])
    if name in row["difference"]:
        return f"not timed: maps differ by {row['difference'][name]:.0e}"
    return ""


def _engine_rows(network: str, method: str, batch: str, row: Figures) -> list[list[str]]:
    if (method, batch) != ("gradcam", "1") or "engine_times" not in row:
        return []
    found = []
    for name in (one.name for one in ENGINES):
        limit = LIMITS.get(name) if network == "resnet50" else None
        told = "" if limit is None else f"{limit:g}"
        if name in row["engine_times"]:
            times = markdown.ratio(row["engine_times"][name], limit, least=True)
            differs = row["difference"].get(name)
            apart_by = "" if differs is None else f"{differs:.0e}"
            ms = markdown.ms(row["ms"][name])
            found.append([network, method, name, ms, times, told, apart_by])
        else:
            found.append([network, method, name, "", row["engines"].get(name, ""), told, ""])
    return found


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Times as long as ours, by case."""
    cases = [
        (f"{network}\n{method}\nbatch {batch}", row)
        for network, batches in figures["networks"].items()
        for batch, methods in batches.items()
        for method, row in methods.items()
    ]
    names = list(dict.fromkeys(name for _, row in cases for name in row["times"]))
    series = {name: [row["times"].get(name) for _, row in cases] for name in names}
    title = "End to end from a JPEG of the input's size: times as long as sigcam, fp32"
    groups = [name for name, _ in cases]
    return [
        drawing.bars(
            folder / "peers.png", title, "times as long", groups, series, {"sigcam": 1.0}, log=True
        )
    ]
