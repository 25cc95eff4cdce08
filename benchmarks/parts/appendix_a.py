"""The paper's Appendix A: latency and parameters, classification, softmax map, ours."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, batch_of
from benchmarks.harness.targets import Reached
from benchmarks.parts.methods import check_logits
from sigcam.core.errors import ExportError

Figures = dict[str, Any]

NETWORKS = (
    "wsol-vgg16", "wsol-resnet50", "wsol-inceptionv3", "vgg16", "resnet50", "inception_v3",
)  # fmt: skip
QUICK = ("resnet18",)
METHODS, QUICK_METHODS = ("cam", "gradcam"), ("gradcam",)
PAPER_PARAMETERS = {
    "wsol-vgg16": (20.46, 21.49),
    "wsol-resnet50": (25.56, 27.61),
    "wsol-inceptionv3": (26.51, 27.54),
}
"""Millions, without and with the sigmoid branch, as "Beyond Softmax" has them."""

PAPER_OVERHEAD = (14, 19)
"""Percent that the map adds to about 100 ms: "Beyond Softmax", Table 3."""

TEXT = f"""
Classification alone, with the classic map of the softmax branch (no clamping, no second branch in
the graph), and with ours (sigmoid branch): the same backend (ONNX Runtime, fp32), batch 1,
{THREADS} threads that don't spin, alternating. The paper's own overhead for the map is
{PAPER_OVERHEAD[0]} to {PAPER_OVERHEAD[1]}% on top of about 100 ms (its Table 3). That range is all
we know: we have no figures of it for single networks or methods.
"""


def measure(context: Context) -> Figures:
    """Latencies, ratios and parameters by network."""
    names = context.chosen(NETWORKS, QUICK)
    return {"networks": {name: _network(context, context.network(name)) for name in names}}


def _network(context: Context, network: Network) -> Figures:
    base = open_graph(FP32, network.classifier())
    feeds = {"image": batch_of(base.inputs[0].shape, 1)}
    found: Figures = {"parameters": network.parameters(), "methods": {}}
    for method in context.some(METHODS, QUICK_METHODS):
        try:
            paths = network.softmax_artifact(method), network.artifact(method)
        except ExportError as exc:
            found["methods"][method] = {"refused": str(exc)}
            continue
        gc.collect()
        softmax, ours = (open_graph(FP32, path) for path in paths)
        for graph in (softmax, ours):
            check_logits(base, graph, feeds)
        timed = time_calls(
            {
                "classification": lambda: base.infer(feeds),
                "softmax map": lambda g=softmax: g.infer(feeds),  # type: ignore[misc]
                "ours": lambda g=ours: g.infer(feeds),  # type: ignore[misc]
            },
            {"softmax map": "classification", "ours": "classification"},
            context.effort,
        )
        softmax.close()
        ours.close()
        found["methods"][method] = timed
        context.say(f"  {network.name} {method}: {timed['ratios']['ours']['ratio']}")
    return found


def section(figures: Figures) -> str:
    """Latency and overhead, then parameters."""
    low, high = PAPER_OVERHEAD
    rows = [
        [name, method, *_times(row), f"{low} to {high}%"]
        for name, one in figures["networks"].items()
        for method, row in one["methods"].items()
        if "ratios" in row
    ]
    head = [
        "network", "method", "classification, ms", "softmax map, ms", "ours, ms",
        "softmax map adds", "ours adds", "the paper's map adds",
    ]  # fmt: skip
    return "".join(
        [
            "\n### Backend only: classification, softmax map, ours\n",
            TEXT,
            markdown.table(head, rows),
            "\n### Parameters\n\nMillions, of the classifier and with the sigmoid branch; "
            "Inception's auxiliary head isn't counted.\nThe paper has figures for the localisation "
            "forms.\n",
            _parameters(figures["networks"]),
        ]
    )


def _times(row: Figures) -> list[str]:
    times = [markdown.ms(row["ms"][name]) for name in ("classification", "softmax map", "ours")]
    added = [markdown.percent(row["ratios"][name]["ratio"]) for name in ("softmax map", "ours")]
    return times + added


def _parameters(networks: Figures) -> str:
    rows = []
    for name, one in networks.items():
        ours = [one["parameters"][key] / 1e6 for key in ("classifier", "with_branch")]
        paper = PAPER_PARAMETERS.get(name)
        told = ["", ""] if paper is None else [f"{value:.2f}" for value in paper]
        rows.append([name, f"{ours[0]:.2f}", told[0], f"{ours[1]:.2f}", told[1]])
    head = ["network", "classifier", "paper", "with the branch", "paper"]
    return markdown.table(head, rows)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """No target is of this part."""
    del figures
    return {}


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Overheads beside the paper's range."""
    cases = [
        (f"{name}\n{method}", row)
        for name, one in figures["networks"].items()
        for method, row in one["methods"].items()
        if "ratios" in row
    ]
    series = {
        which: [[100 * (v - 1) for v in row["ratios"][which]["ratio"]] for _, row in cases]
        for which in ("softmax map", "ours")
    }
    lines = {f"the paper's map, {value}%": value for value in PAPER_OVERHEAD}
    title = "Backend only: what the map adds to classification, batch 1"
    names = [name for name, _ in cases]
    return [drawing.bars(folder / "appendix_a.png", title, "added time, %", names, series, lines)]
