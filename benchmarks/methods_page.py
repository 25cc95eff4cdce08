"""The figures of methods.py as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Figures = dict[str, Any]

TARGET = 1.02
MLP_TARGETS = {"gradcam": 1.12, "finercam": 1.12}
MLP_OTHERS = 1.20
PEER_TARGET = 4.0

HEAD = """# What the methods cost

Written by `python benchmarks/methods.py --rounds 40 --page docs/overhead.md`; the figures are
in `benchmarks/results/methods.json`.
"""

RATIOS = """
## Over classification alone

The artifact's run (prediction and map, sigmoid branch, top1, profile fused) over the run of
the same network exported without a map, engine only: ONNX Runtime, fp32, batch 1, {threads}
threads that don't spin, random weights (time doesn't depend on them). Each pair alternated in
one process, {rounds} rounds; the figure is the median of the ratios within each round.
"control" is the classification graph loaded a second time, over itself: how far it is from 1
is the noise, the farthest of all rows is shown. The target is at most {target} and, on VGG-16
with its MLP head, {mlp} for gradcam and finercam and {others} for the others: there the second
head's weights must be read. Figures above the target are **bold**. wsol-inceptionv3 classifies
every position and pools after it; the artifact pools first, which is the same and less work,
so it lies below 1.
"""

MISSED = """
VGG-16 with its MLP misses the target, and in fp32 has to: reading the second head's half a
gigabyte takes about a sixth of the network's whole time, once for the evidence and the way to
the logit, and again for the way back of the methods that need the full gradient (gradcam and
finercam need its spatial mean only, for which a pooled matrix is stored). The matrix products
read it as fast as these two cores read memory at all. Less to read, a head in 8 or 16 bits,
is what would help.
"""

ERRORS = """
## Error of the maps

The certificate in each file: the largest error of the grids against PyTorch's autograd in
float64, relative to the grid's largest value, over five pictures and batches of 1, 3 and 8.
"(n)" are pictures left out because the definition itself jumps within rounding there (see
[methods.md](methods.md)).
"""

SIZES = """
## Size of the weights

In megabytes. An artifact has the classifier's weights and the second head's, nothing twice.
"""

PEERS = """
## Against grad-cam in PyTorch

From a decoded picture of the input's size to the map at that size, on the same {threads}
threads: `Session.explain` against the package grad-cam. Softmax branch, no sigmoid branch in
the graph, the predicted class.
The maps were compared before they were timed. The three alternated in one process, {rounds}
rounds; ratios are medians of the ratios within each round.

As its manual uses it, grad-cam also makes the gradients of all of the network's weights,
which no map needs. "frozen" is grad-cam with `requires_grad` off for all parameters but one
before the target layer, which spares it that. The target is {target:g} times as fast as
grad-cam's as in the manual. Shared methods that cost grad-cam the same (xgradcam, hirescam)
weren't timed.
"""


def page(figures: Figures, networks: Sequence[str], methods: Sequence[str]) -> str:
    """The whole page; what wasn't measured is left empty."""
    machine = ", ".join(f"{name} {value}" for name, value in figures["machine"].items())
    measured = [name for name in networks if name in figures["networks"]]
    rows = [r for n in measured for r in _rows(figures, n).values() if "rounds" in r]
    rounds = "/".join(sorted({str(row["rounds"]) for row in rows}))
    threads = figures["machine"]["threads"]
    parts = [
        HEAD,
        f"\nMachine: {machine}.\n",
        RATIOS.format(
            threads=threads, rounds=rounds, target=TARGET, mlp=MLP_TARGETS["gradcam"],
            others=f"{MLP_OTHERS:.2f}",
        ),
        _table(figures, measured, methods, _ratio, _controls(figures, measured)),
        MISSED if _misses(figures, "vgg16") else "",
        ERRORS,
        _table(figures, measured, methods, _error, []),
        SIZES,
        _table(figures, measured, methods, _size, [_plain_sizes(figures, measured)]),
    ]  # fmt: skip
    if figures.get("grad_cam"):
        found = figures["grad_cam"]
        counts = sorted({str(row["rounds"]) for rows in found.values() for row in rows.values()})
        heading = PEERS.format(threads=threads, target=PEER_TARGET, rounds="/".join(counts))
        parts += [heading, _peers(found)]
    return "".join(parts)


def _rows(figures: Figures, network: str) -> Figures:
    rows: Figures = figures["networks"][network]["methods"]
    return rows


def _table(
    figures: Figures,
    networks: Sequence[str],
    methods: Sequence[str],
    cell: Any,
    more: list[list[str]],
) -> str:
    lines = [["method", *networks], ["---"] * (1 + len(networks))]
    for method in methods:
        cells = [
            "-" if "refused" in row else cell(row) if row else ""
            for network in networks
            for row in [_rows(figures, network).get(method, {})]
        ]
        lines.append([method, *cells])
    text = "".join(f"| {' | '.join(line)} |\n" for line in [*lines, *more])
    refused = any("refused" in r for n in networks for r in _rows(figures, n).values())
    note = "\n`-`: the method cam can't express an MLP head; gradcam is the method for it.\n"
    return "\n" + text + (note if refused else "")


def _misses(figures: Figures, network: str) -> bool:
    rows = figures["networks"].get(network, {"methods": {}})["methods"].values()
    return any(row["ratio"] > row["limit"] for row in rows if "ratio" in row)


def limit(network: str, method: str) -> float:
    """The largest ratio that the project allows."""
    return TARGET if network != "vgg16" else MLP_TARGETS.get(method, MLP_OTHERS)


def _ratio(row: Figures) -> str:
    text = f"{row['ratio']:.3f}"
    return f"**{text}**" if row["ratio"] > row["limit"] else text


def _error(row: Figures) -> str:
    left_out = f" ({row['left_out']})" if row["left_out"] else ""
    return f"{row['error']:.1e}{left_out}"


def _size(row: Figures) -> str:
    return f"{row['mb']:.1f}"


def _controls(figures: Figures, networks: Sequence[str]) -> list[list[str]]:
    cells, times = ["control, farthest from 1"], ["classification, ms"]
    for network in networks:
        rows = [row for row in _rows(figures, network).values() if "ratio" in row]
        farthest = max((row["control"] for row in rows), key=lambda c: abs(c - 1), default=1.0)
        cells.append(f"{farthest:.3f}")
        middle = sorted(row["classification_ms"] for row in rows)
        times.append(f"{middle[len(middle) // 2]:.0f}" if middle else "")
    return [cells, times]


def _plain_sizes(figures: Figures, networks: Sequence[str]) -> list[str]:
    sizes = [f"{figures['networks'][n]['classification_mb']:.1f}" for n in networks]
    return ["classification alone", *sizes]


def _peers(found: Figures) -> str:
    lines = [
        [
            "network",
            "method",
            "sigcam, ms",
            "grad-cam, ms",
            "times as fast",
            "grad-cam frozen, ms",
            "times as fast",
            "maps differ by",
        ],
        ["---"] * 8,
    ]
    for network, rows in found.items():
        for method, row in rows.items():
            times = f"{row['times']:.2f}"
            times = times if row["times"] >= PEER_TARGET else f"**{times}**"
            ours, peer = f"{row['sigcam_ms']:.0f}", f"{row['grad_cam_ms']:.0f}"
            frozen = [f"{row['frozen_ms']:.0f}", f"{row['times_frozen']:.2f}"]
            apart = f"{row['difference']:.0e}"
            lines.append([network, method, ours, peer, times, *frozen, apart])
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
