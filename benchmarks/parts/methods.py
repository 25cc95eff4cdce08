"""Every method on the paper's networks against the same network without a map."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, batch_of, megabytes, report
from benchmarks.harness.targets import FORMS, LIMITED_METHODS, TARGETS, Reached
from benchmarks.parts import int8_head
from sigcam.core.errors import ExportError
from sigcam.export import METHODS
from sigcam.runtime.backends.base import Backend

Figures = dict[str, Any]

NETWORKS = (
    "wsol-resnet50", "wsol-vgg16", "wsol-inceptionv3", "resnet50", "inception_v3", "vgg16",
)  # fmt: skip
QUICK = ("resnet18",)
# refinecam is one of several layers, and costs what they do.
ALL_METHODS = [name for name, one in METHODS.items() if not one.refines]
QUICK_METHODS = ("cam", "gradcam")

LIMIT, MLP_LIMIT = TARGETS["map"].limit, TARGETS["mlp"].limit

TEXT = f"""
The artifact's run (prediction and map, sigmoid branch, top1, profile fused) over the run of the
same network exported without a map: ONNX Runtime, fp32, batch 1, {THREADS} threads that don't
spin, fresh weights (time doesn't depend on them). "control" is the classification graph loaded a
second time, over itself; how far it is from 1 is the noise, and the farthest of all rows is shown.
The target is at most {LIMIT} for {", ".join(LIMITED_METHODS)} on the three
localisation forms, and at most {MLP_LIMIT:.2f} for gradcam on VGG-16 with its MLP head, whose
second head's weights must be read.
What misses it is **bold**. wsol-inceptionv3 classifies every position and pools after it; the
artifact pools first, which is the same and less work, so it may lie below 1.
"""


REFUSED = "\n`-`: cam can't express an MLP head; gradcam is the method for it.\n"


def measure(context: Context) -> Figures:
    """Ratios, reports and sizes by network and method."""
    found, heads = {}, {}
    for name in context.chosen(NETWORKS, QUICK):
        network = context.network(name)
        found[name] = _network(context, network)
        if "refused" in found[name]["methods"]["cam"]:  # cam can't express an MLP head
            heads[name] = int8_head.measure(context, network)
    return {"networks": found, "int8_head": heads}


def _network(context: Context, network: Network) -> Figures:
    plain = network.classifier()
    base, control = open_graph(FP32, plain), open_graph(FP32, plain)
    feeds = {"image": batch_of(base.inputs[0].shape, 1)}
    found: Figures = {"classification_mb": megabytes(plain), "methods": {}}
    for method in context.some(ALL_METHODS, QUICK_METHODS):
        try:
            path = network.artifact(method)
        except ExportError as exc:
            found["methods"][method] = {"refused": str(exc)}
            continue
        gc.collect()
        graph = open_graph(FP32, path)
        check_logits(base, graph, feeds)
        timed = time_calls(
            {
                "classification": lambda: base.infer(feeds),
                "control": lambda: control.infer(feeds),
                "map": lambda graph=graph: graph.infer(feeds),  # type: ignore[misc]
            },
            {"map": "classification", "control": "classification"},
            context.effort,
        )
        graph.close()
        found["methods"][method] = {**timed, "mb": megabytes(path), **report(path)}
        context.say(f"  {network.name} {method}: {timed['ratios']['map']['ratio']}")
    return found


def check_logits(plain: Backend, mapped: Backend, feeds: dict[str, Any]) -> None:
    """Stops the run where two graphs aren't the same classifier."""
    wanted, got = (one.infer(feeds)["logits"] for one in (plain, mapped))
    if not np.allclose(wanted, got, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()):
        raise SystemExit("the graphs disagree about the logits; nothing was timed")


def limit(network: str, method: str) -> float | None:
    """The largest ratio that is allowed; None where there is no target."""
    if network in FORMS and method in LIMITED_METHODS:
        return LIMIT
    return MLP_LIMIT if (network, method) == ("vgg16", "gradcam") else None


def section(figures: Figures) -> str:
    """Ratios, errors and sizes."""
    found = figures["networks"]
    methods = list(dict.fromkeys(m for one in found.values() for m in one["methods"]))
    head = ["method", *found]

    def rows(cell: Any) -> list[list[str]]:
        return [
            [m, *(_cell(n, m, one["methods"].get(m), cell) for n, one in found.items())]
            for m in methods
        ]

    ratios = rows(lambda n, m, row: markdown.ratio(row["ratios"]["map"]["ratio"], limit(n, m)))
    errors = rows(lambda n, m, row: _error(row))  # noqa: ARG005
    sizes = rows(lambda n, m, row: f"{row['mb']:.1f}")  # noqa: ARG005
    sizes.append(
        ["classification alone", *(f"{o['classification_mb']:.1f}" for o in found.values())]
    )
    return "".join(
        [
            "\n### Backend only: map over classification alone\n",
            TEXT,
            markdown.table(head, [*ratios, *_controls(found)]),
            REFUSED
            if any("refused" in r for o in found.values() for r in o["methods"].values())
            else "",
            "\n### Error of the maps\n\nThe parity report in each file: the largest error of the "
            "CAMs against PyTorch's autograd in\nfloat64, relative to the CAM's largest value. "
            '"(n)" are images left out because the\ndefinition itself jumps within rounding '
            "there (see [methods.md](methods.md)).\n",
            markdown.table(head, errors),
            "\n### Size of the weights\n\nIn megabytes. An artifact has the classifier's weights "
            "and the second head's, nothing twice.\n",
            markdown.table(head, sizes),
            int8_head.section(figures["int8_head"]) if figures.get("int8_head") else "",
        ]
    )


def reached(figures: Figures) -> dict[str, Reached | None]:
    """The worst method of the three forms; VGG-16's MLP head."""
    found: dict[str, Reached | None] = {}
    cases = [
        (row["ratios"]["map"]["ratio"], f"{method} on {name}")
        for name in FORMS
        for method, row in figures["networks"].get(name, {}).get("methods", {}).items()
        if method in LIMITED_METHODS and "ratios" in row
    ]
    if cases:
        worst, which = max(cases, key=lambda case: case[0][0])
        within = sum(TARGETS["map"].met(ratio[0]) for ratio, _ in cases)
        of = f"{len(cases)} of {len(FORMS) * len(LIMITED_METHODS)} measured"
        found["map"] = Reached(worst, f"{which}; {within} within, {of}")
    mlp = figures["networks"].get("vgg16", {}).get("methods", {}).get("gradcam", {})
    if "ratios" in mlp:
        found["mlp"] = Reached(mlp["ratios"]["map"]["ratio"])
    head = figures.get("int8_head", {}).get("vgg16", {}).get("gradcam", {})
    if "ratios" in head:
        found["mlp_int8_head"] = Reached(head["ratios"]["int8-head"]["ratio"])
    return found


def _cell(network: str, method: str, row: Figures | None, cell: Any) -> str:
    if row is None:
        return ""
    return "-" if "refused" in row else str(cell(network, method, row))


def _error(row: Figures) -> str:
    return f"{row['error']:.1e}" + (f" ({row['left_out']})" if row["left_out"] else "")


def _controls(found: Figures) -> list[list[str]]:
    cells, times = ["control, farthest from 1"], ["classification, ms"]
    for one in found.values():
        rows = [row for row in one["methods"].values() if "ratios" in row]
        controls = [row["ratios"]["control"]["ratio"][0] for row in rows]
        cells.append(f"{max(controls, key=lambda c: abs(c - 1)):.3f}" if controls else "")
        middle = sorted(row["ms"]["classification"][0] for row in rows)
        times.append(f"{middle[len(middle) // 2]:.0f}" if middle else "")
    return [cells, times]


def plots(figures: Figures, folder: Path) -> list[Path]:
    """The ratios as bars."""
    found = figures["networks"]
    methods = list(dict.fromkeys(m for one in found.values() for m in one["methods"]))
    series = {
        method: [
            [100 * (v - 1) for v in row["ratios"]["map"]["ratio"]] if "ratios" in row else None
            for one in found.values()
            for row in [one["methods"].get(method, {})]
        ]
        for method in methods
    }
    title = "Backend only: what the map adds to classification, batch 1"
    return [drawing.bars(folder / "methods.png", title, "added time, %", list(found), series)]
