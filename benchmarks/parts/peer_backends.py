"""grad-cam's Grad-CAM over each of our backends and precisions, in one alternation."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown
from benchmarks.harness.backends import (
    FP32,
    SETUPS,
    BackendSetup,
    UnavailableError,
    check,
    open_graph,
)
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, jpeg, random_image
from benchmarks.harness.quantize import ONLY_TIME, quantized
from benchmarks.harness.targets import TARGETS, Reached
from benchmarks.parts.peer_calls import TOLERANCE, explain, theirs
from benchmarks.parts.peer_packages import TARGETS as LAYERS
from benchmarks.parts.peer_packages import apart, freeze, packages
from sigcam.core.artifact import read_spec
from sigcam.core.spec import ClassSelection
from sigcam.runtime.model import ExportedModel
from sigcam.runtime.session import Session

Figures = dict[str, Any]

PEER = "grad-cam"
PRECISIONS = {
    "peer_fp32": ("ort fp32", "openvino fp32"),
    "peer_bf16": ("openvino bf16",),
    "peer_int8": ("ort int8", "openvino int8"),
}
"""Target to the backends of this precision, of which the fastest counts."""

TEXT = """
grad-cam as in its manual against `Session.explain` in every backend and precision, Grad-CAM of the
predicted class, batch 1, the same image; all of them alternate, and a figure is the median over
the rounds of grad-cam's time over the backend's in the same round. The int8 file is made by
`sigcam quantize` with its limits off and all layers in 8 bits: the weights are fresh, so its maps
say nothing (see precisions for trained ones). "maps differ by" is the largest difference of two
maps in [0, 1] from those of ONNX Runtime's fp32.
"""


def measure(context: Context, network: Network) -> Figures:
    """Times as fast as grad-cam by backend, and the reasons of those that aren't there."""
    path = network.artifact(
        "gradcam", branch="softmax", nwc=False, has_sigmoid=False, classes=ClassSelection("input")
    )
    preprocessing = read_spec(path).preprocessing
    files = [jpeg(random_image(preprocessing.height, preprocessing.width))]
    missing: dict[str, str] = {}
    calls: dict[str, Any] = {}
    with ExitStack() as stack:
        for setup in SETUPS:
            try:
                session = _session(context, network, path, setup)
            except UnavailableError as exc:
                missing[setup.name] = str(exc)
                continue
            stack.callback(session.close)
            calls[setup.name] = partial(explain, session, files)
        make = packages(network.model.eval(), LAYERS[network.name], "gradcam")[PEER]
        calls[PEER] = partial(theirs, make, files, preprocessing)
        wanted = calls[FP32.name]()
        difference = {
            name: float(f"{apart(wanted, call()):.2g}")
            for name, call in calls.items()
            if name != FP32.name
        }
        if difference[PEER] > TOLERANCE:
            raise SystemExit(f"grad-cam's map differs by {difference[PEER]}; nothing was timed")
        pairs = {name: (PEER, name) for name in calls if name != PEER}
        timed = time_calls(calls, {}, context.effort, pairs)
    freeze(network.model, None)
    context.say(f"  {network.name} backends: {timed['pairs']}, {missing}")
    return {**timed, "difference": difference, "missing": missing}


def _session(context: Context, network: Network, path: Path, setup: BackendSetup) -> Session:
    check(setup)
    if setup.quantized:
        images = context.data / "imagenet_samples" / "images"
        path = quantized(network, path, images, **ONLY_TIME, rounds=0)
    return Session(ExportedModel(read_spec(path), open_graph(setup, path, batch=1)), batch_size=1)


def section(figures: Figures) -> str:
    """One row for each network and backend."""
    rows = []
    for network, row in figures.items():
        rows.append([network, PEER, markdown.ms(row["ms"][PEER]), "", "", ""])
        for name in (one.name for one in SETUPS):
            limit = _limit(name) if network == "resnet50" else None
            told = "" if limit is None else f"{limit:g}"
            if name not in row["pairs"]:
                rows.append([network, name, "", row["missing"].get(name, ""), told, ""])
                continue
            times = markdown.ratio(row["pairs"][name], limit, least=True)
            differs = row["difference"].get(name)
            by = "" if differs is None else f"{differs:.0e}"
            rows.append([network, name, markdown.ms(row["ms"][name]), times, told, by])
    title = "\n### End to end from a JPEG of the input's size: grad-cam over our backends\n"
    head = ["network", "backend", "ms", "times as fast as grad-cam", "target", "maps differ by"]
    return title + TEXT + markdown.table(head, rows)


def _limit(setup: str) -> float:
    [target] = [name for name, setups in PRECISIONS.items() if setup in setups]
    return TARGETS[target].limit


def reached(figures: Figures) -> dict[str, Reached | None]:
    """The fastest backend of each precision."""
    row = figures.get("resnet50")
    if row is None:
        return {}
    found: dict[str, Reached | None] = {}
    for target, names in PRECISIONS.items():
        there = {name: row["pairs"][name] for name in names if name in row["pairs"]}
        if there:
            best = max(there, key=lambda name: there[name][0])
            others = [f"{name} {there[name][0]:.2f}" for name in there if name != best]
            found[target] = Reached(there[best], "; ".join([best, *others]))
        else:
            found[target] = Reached([], "; ".join(row["missing"].get(name, "") for name in names))
    return found
