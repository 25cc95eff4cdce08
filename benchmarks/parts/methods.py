"""Every method on the paper's networks against the same network without a map."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
from harness import markdown
from harness import plots as drawing
from harness.context import Context
from harness.engines import FP32, THREADS, open_engine
from harness.measure import measure as time_calls
from harness.networks import Network, batch_of, certificate, megabytes

from sigcam.export import METHODS
from sigcam.runtime.backends.base import Backend
from sigcam.runtime.errors import ExportError

Figures = dict[str, Any]

NETWORKS = (
    "wsol-resnet50", "wsol-vgg16", "wsol-inceptionv3", "resnet50", "inception_v3", "vgg16",
)  # fmt: skip
QUICK = ("wsol-resnet50",)
QUICK_METHODS = ("cam", "gradcam")

LIMIT = 1.01
LIMITED = ("cam", "gradcam", "gradcam++", "xgradcam", "layercam")
MLP_LIMIT = 1.10

TEXT = f"""
The artifact's run (prediction and map, sigmoid branch, top1, profile fused) over the run of the
same network exported without a map: ONNX Runtime, fp32, batch 1, {THREADS} threads that don't
spin, fresh weights (time doesn't depend on them). "control" is the classification graph loaded a
second time, over itself; how far it is from 1 is the noise, and the farthest of all rows is shown.
The target is at most {LIMIT} for {", ".join(LIMITED)} on the three localisation forms, and at most
{MLP_LIMIT:.2f} for gradcam on VGG-16 with its MLP head, whose second head's weights must be read.
What misses it is **bold**. wsol-inceptionv3 classifies every position and pools after it; the
artifact pools first, which is the same and less work, so it may lie below 1.
"""


REFUSED = "\n`-`: cam can't express an MLP head; gradcam is the method for it.\n"


def measure(context: Context) -> Figures:
    """Ratios, certificates and sizes by network and method."""
    names = context.chosen(NETWORKS, QUICK)
    return {"networks": {name: _network(context, context.network(name)) for name in names}}


def _network(context: Context, network: Network) -> Figures:
    plain = network.classifier()
    base, control = open_engine(FP32, plain), open_engine(FP32, plain)
    feeds = {"image": batch_of(base.inputs[0].shape, 1)}
    found: Figures = {"classification_mb": megabytes(plain), "methods": {}}
    for method in context.some(list(METHODS), QUICK_METHODS):
        try:
            path = network.artifact(method)
        except ExportError as exc:
            found["methods"][method] = {"refused": str(exc)}
            continue
        gc.collect()
        graph = open_engine(FP32, path)
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
        found["methods"][method] = {**timed, "mb": megabytes(path), **certificate(path)}
        context.say(f"  {network.name} {method}: {timed['ratios']['map']['ratio']}")
    return found


def check_logits(plain: Backend, mapped: Backend, feeds: dict[str, Any]) -> None:
    """Stops the run where two graphs aren't the same classifier."""
    wanted, got = (one.infer(feeds)["logits"] for one in (plain, mapped))
    if not np.allclose(wanted, got, rtol=1e-4, atol=1e-4 * np.abs(wanted).max()):
        raise SystemExit("the graphs disagree about the logits; nothing was timed")


def limit(network: str, method: str) -> float | None:
    """The largest ratio that is allowed; None where there is no target."""
    if network.startswith("wsol-") and method in LIMITED:
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
            "\n### Engine only: map over classification alone\n",
            TEXT,
            markdown.table(head, [*ratios, *_controls(found)]),
            REFUSED
            if any("refused" in r for o in found.values() for r in o["methods"].values())
            else "",
            "\n### Error of the maps\n\nThe certificate in each file: the largest error of the "
            "grids against PyTorch's autograd in\nfloat64, relative to the grid's largest value. "
            '"(n)" are pictures left out because the\ndefinition itself jumps within rounding '
            "there (see [methods.md](methods.md)).\n",
            markdown.table(head, errors),
            "\n### Size of the weights\n\nIn megabytes. An artifact has the classifier's weights "
            "and the second head's, nothing twice.\n",
            markdown.table(head, sizes),
        ]
    )


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
    title = "Engine only: what the map adds to classification, batch 1"
    return [drawing.bars(folder / "methods.png", title, "added time, %", list(found), series)]
