"""Other packages: the same map of the same network, from the same JPEG."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import Effort
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, jpeg, random_image
from benchmarks.harness.targets import Reached
from benchmarks.parts import peer_backends, peer_openvino_xai
from benchmarks.parts.peer_calls import TOLERANCE, explain, theirs
from benchmarks.parts.peer_packages import METHODS, TARGETS, apart, freeze, packages
from sigcam.core.artifact import read_spec
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session

Figures = dict[str, Any]

# Network, methods, batch, fewest rounds. Larger batches take many seconds a round.
CASES = (
    ("resnet50", METHODS, 1, 7),
    ("resnet50", METHODS, 8, 3),
    ("resnet50", ("gradcam",), 32, 3),
    ("vgg16", ("gradcam", "layercam"), 1, 7),
)
QUICK = (("resnet18", ("gradcam",), 1, 7),)

TEXT = f"""
From JPEG files of the network's input size in memory to the maps at that size and the predicted
classes: the same network and weights, the same images, the same {THREADS} threads, the same
decoder and resizing. Softmax branch, no clamping, no second branch in our graph. Maps are compared
before they are timed; a package whose map differs by more than {TOLERANCE:g} isn't timed, and the
difference is shown. All alternate in one process. Figures are how many times as long a package
takes as ours (ONNX Runtime fp32).

"frozen" is the package at its best: parameters take no gradients, all but one right before the
target layer (as it comes, grad-cam also makes the gradients of all weights, which no map needs).
captum is told the class: as in its manual the network is run first to know it, at its best it is
given. Methods of several passes and finercam (another definition there) aren't in the table. Batch
32 is timed for gradcam only, as a round takes half a minute.
"""


def measure(context: Context) -> Figures:
    """Times by network, batch and method; then our backends for gradcam at batch 1."""
    torch.set_num_threads(THREADS)
    found: Figures = {}
    cases = context.some(CASES, QUICK)
    if context.networks:
        cases = [(name, METHODS, 1, 7) for name in context.networks]
    # First, for after the large batches grad-cam took ten times as long in the same process.
    names = [name for name, methods, batch, _ in cases if batch == 1 and "gradcam" in methods]
    backends = {name: peer_backends.measure(context, context.network(name)) for name in names}
    for name, methods, batch, least in cases:
        network = context.network(name)
        effort = Effort(context.effort.seconds, least, 100, context.effort.rounds)
        for method in methods:
            row = _case(network, method, batch, effort)
            found.setdefault(name, {}).setdefault(str(batch), {})[method] = row
            context.say(f"  {name} batch {batch} {method}: {row['times']}")
    figures: Figures = {"networks": found, "backends": backends}
    if not context.quick and not context.networks:
        figures["openvino_xai"] = peer_openvino_xai.measure(context)
    return figures


def _case(network: Network, method: str, batch: int, effort: Effort) -> Figures:
    path = network.softmax_artifact(method)
    preprocessing = read_spec(path).preprocessing
    files = [
        jpeg(random_image(preprocessing.height, preprocessing.width, seed)) for seed in range(batch)
    ]
    difference: dict[str, float] = {}
    model = ExportedModel(read_spec(path), open_graph(FP32, path))
    with Session(model, batch_size=batch) as session:
        calls: dict[str, Any] = {FP32.name: partial(explain, session, files)}
        wanted = calls[FP32.name]()
        for name, make in packages(network.model.eval(), TARGETS[network.name], method).items():
            call = partial(theirs, make, files, preprocessing)
            difference[name] = float(f"{apart(wanted, call()):.2g}")
            if difference[name] <= TOLERANCE:
                calls[name] = call
        others = [name for name in calls if name != FP32.name]
        timed = time_calls(calls, dict.fromkeys(others, FP32.name), effort)
    freeze(network.model, None)
    times = {name: timed["ratios"][name]["ratio"] for name in others}
    return {
        "difference": difference, "times": times, "rounds": timed["rounds"], "ms": timed["ms"],
    }  # fmt: skip


def section(figures: Figures) -> str:
    """The packages, then our backends, then openvino-xai."""
    rows = []
    names = list(
        dict.fromkeys(
            name
            for batches in figures["networks"].values()
            for methods in batches.values()
            for row in methods.values()
            for name in row["difference"]
        )
    )
    for network, batches in figures["networks"].items():
        for batch, methods in batches.items():
            for method, row in methods.items():
                ours = markdown.ms(row["ms"][FP32.name])
                cells = [_times(row, name) for name in names]
                rows.append([network, method, batch, str(row["rounds"]), ours, *cells])
    head = ["network", "method", "batch", "rounds", "ours, ms", *names]
    parts = [
        "\n### End to end from a JPEG of the input's size: times as long as ours\n",
        TEXT,
        markdown.table(head, rows),
        peer_backends.section(figures["backends"]),
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


def reached(figures: Figures) -> dict[str, Reached | None]:
    """Our backends over grad-cam."""
    return peer_backends.reached(figures["backends"])


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
