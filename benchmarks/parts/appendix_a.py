"""The paper's Appendix A: latency and parameters, classification, softmax map, ours."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from benchmarks.datasets.paper.figures import read_figures
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
PAPER_NETWORKS = {
    "VGG-16": "wsol-vgg16", "ResNet-50": "wsol-resnet50", "InceptionV3": "wsol-inceptionv3",
}  # fmt: skip
"""The paper's backbones, whose parameters are those of the localisation forms."""

OVER_MAP = "ours over the softmax map"

TEXT = f"""
Classification alone, with the classic map of the softmax branch (no clamping, no second branch in
the graph), and with ours (sigmoid branch): the same backend (ONNX Runtime, fp32), batch 1,
{THREADS} threads that don't spin, alternating.
"""

TABLE_3 = """
"Beyond Softmax" (Oh and Noh, BMVC 2025), Table 3, compares map with map: the classic map's network
with the one that has the second branch too, on ImageNet-1K on one RTX A6000. So the figure beside
its own is ours over the classic map; ours over classification alone is what a map costs here where
there was none before. The table tells no method, so both of ours stand beside it. Training hours
are the paper's only.
"""

NO_PAIRS = """
Over the classic map without an interval: there the two weren't compared within each round, so it is
the ratio of their medians in the table above. Each median may be off by about as much as the
intervals above are wide, so differences of that size are noise.
"""


def paper_rows() -> dict[str, Figures]:
    """Reads the paper's Table 3, by our names of its networks."""
    rows = read_figures()["table3"]
    return {PAPER_NETWORKS[row["backbone"]]: row for row in rows}


def paper_overheads() -> tuple[float, float]:
    """Returns the least and the most that the second branch adds in the paper, in percent."""
    added = [100 * (_paper_ratio(row) - 1) for row in paper_rows().values()]
    return min(added), max(added)


def _paper_ratio(row: Figures) -> float:
    times = row["inference_ms"]
    return float(times["ours"] / times["baseline"])


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
            {OVER_MAP: ("ours", "softmax map")},
        )
        softmax.close()
        ours.close()
        found["methods"][method] = timed
        context.say(f"  {network.name} {method}: {timed['ratios']['ours']['ratio']}")
    return found


def section(figures: Figures) -> str:
    """Latency and overhead, the paper's Table 3, then parameters."""
    rows = [
        [name, method, *_times(row)]
        for name, one in figures["networks"].items()
        for method, row in one["methods"].items()
        if "ratios" in row
    ]
    head = [
        "network", "method", "classification, ms", "softmax map, ms", "ours, ms",
        "softmax map adds", "ours adds",
    ]  # fmt: skip
    return "".join(
        [
            "\n### Backend only: classification, softmax map, ours\n",
            TEXT,
            markdown.table(head, rows),
            _table_3(figures["networks"]),
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


def _table_3(networks: Figures) -> str:
    """The paper's Table 3 row by row, beside ours over the classic map and over none."""
    rows, is_paired = [], True
    for name, paper in paper_rows().items():
        methods = networks.get(name, {"methods": {}})["methods"]
        for method, row in methods.items():
            if "ratios" not in row:
                continue
            is_paired = is_paired and "pairs" in row
            rows.append([
                paper["backbone"],
                *(f"{paper['train_h'][key]:.2f}" for key in ("baseline", "ours")),
                *(f"{paper['inference_ms'][key]:.1f}" for key in ("baseline", "ours")),
                f"{100 * (_paper_ratio(paper) - 1):+.1f}%",
                method,
                _over_map(row),
                markdown.percent(row["ratios"]["ours"]["ratio"]),
            ])  # fmt: skip
    if not rows:
        return ""
    head = [
        "backbone", "paper, classic map, h of training", "paper, ours, h",
        "paper, classic map, ms", "paper, ours, ms", "paper, ours over the classic map",
        "method here", "here, ours over the classic map", "here, ours over classification alone",
    ]  # fmt: skip
    title = "\n### Backend only: the paper's Table 3\n"
    return "".join([title, TABLE_3, markdown.table(head, rows), "" if is_paired else NO_PAIRS])


def _over_map(row: Figures) -> str:
    """What ours adds to the classic map: within each round, else of the medians."""
    if "pairs" in row:
        return markdown.percent(row["pairs"][OVER_MAP])
    return f"{100 * (row['ms']['ours'][0] / row['ms']['softmax map'][0] - 1):+.1f}%"


def _parameters(networks: Figures) -> str:
    rows, papers = [], paper_rows()
    for name, one in networks.items():
        ours = [one["parameters"][key] / 1e6 for key in ("classifier", "with_branch")]
        paper = papers[name]["params_m"] if name in papers else {}
        told = [f"{paper[key]:.2f}" if paper else "" for key in ("baseline", "ours")]
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
    lines = {f"paper, ours over its map, {value:.1f}%": value for value in paper_overheads()}
    title = "Backend only: what the map adds to classification, batch 1"
    names = [name for name, _ in cases]
    return [drawing.bars(folder / "appendix_a.png", title, "added time, %", names, series, lines)]
