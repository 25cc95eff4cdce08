"""Times exports, and which part of them the checks of the model take.

    python -m benchmarks.export_time

The checks are where a layer's grid lies (`check_place`), and whether the graph's gradients are
the model's own (`check_original`). They are timed inside whole exports (trace, split, graph,
parity, file) of networks with random weights, which are run in turns. The ratio is of the
medians: the whole over the whole without the checks.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch
import torchvision
from torch import nn

from sigcam.classifier import split
from sigcam.classifier.dual_branch import DualBranch
from sigcam.export import export
from sigcam.export.options import ExportOptions

NETWORKS = ("resnet50", "vit_b_16", "mobilenet_v3_large")
CHECKS = ((split, "check_place"), (export, "check_original"))
MOST = 1.25


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1), default=3, show_default=True,
    help="Exports of each network.",
)  # fmt: skip
@click.option(
    "--network", "names", multiple=True, default=NETWORKS, show_default=True,
    help="Of torchvision; repeatable.",
)  # fmt: skip
def main(rounds: int, names: tuple[str, ...]) -> None:
    """Times exports and their checks; prints a line for each network."""
    spent = {check: [0.0] for _, check in CHECKS}
    for module, check in CHECKS:
        setattr(module, check, _timed(getattr(module, check), spent[check]))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            found[name].append(_export(name, spent))
    for name, times in found.items():
        medians = {key: statistics.median(one[key] for one in times) for key in times[0]}
        whole = medians["whole"]
        without = statistics.median(one["whole"] - sum(one[c] for c in spent) for one in times)
        parts = ", ".join(f"{key} {medians[key]:.2f} s" for key in medians)
        verdict = "within" if whole / without <= MOST else "ABOVE"
        click.echo(f"{name}: {parts}; {whole / without:.3f}x, {verdict} {MOST}x")


def _timed(check: Callable[..., Any], spent: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return check(*arguments)
        finally:
            spent[0] += time.perf_counter() - start

    return timed


def _export(name: str, spent: dict[str, list[float]]) -> dict[str, float]:
    for one in spent.values():
        one[0] = 0.0
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None)
    start = time.perf_counter()
    dual = DualBranch(model)
    middle = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export.export_artifact(dual, path, ExportOptions(method="gradcam"))
    end = time.perf_counter()
    times = {"whole": end - start, "split": middle - start, "export": end - middle}
    return times | {check: one[0] for check, one in spent.items()}


if __name__ == "__main__":
    main()
