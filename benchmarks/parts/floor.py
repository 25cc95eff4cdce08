"""The network's arithmetic at the rate at which the same backend multiplies matrices."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import FP32, THREADS, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, batch_of
from benchmarks.harness.targets import Reached

Figures = dict[str, Any]

NETWORKS = ("wsol-resnet50", "wsol-vgg16", "wsol-inceptionv3", "resnet50", "efficientnet_lite0")
QUICK = ("resnet18",)
SIDE = 1536
"""Of the square matrices: three of them are 28 MB, and one product is 7 GFLOP."""

TEXT = f"""
What could be had at best: the multiplications and additions of the network's convolutions and
matrix products, counted on one pass of the PyTorch module (2 per multiply-add), over the rate
at which the same backend multiplies two {SIDE}x{SIDE} matrices of float32 on the same {THREADS}
threads. A run can't be faster than that unless its convolutions need less arithmetic than the
definition (Winograd's do, and so a ratio may lie below 1). Classification, artifact (method cam)
and the product alternate.
"""


def measure(context: Context) -> Figures:
    """Times over the floor by network."""
    with tempfile.TemporaryDirectory() as folder:
        product = open_graph(FP32, product_graph(Path(folder) / "product.onnx", SIDE))
    found = {
        name: _network(context, context.network(name), product)
        for name in context.chosen(NETWORKS, QUICK)
    }
    return {"networks": found}


def product_graph(path: Path, side: int) -> Path:
    """Writes a graph of one matrix product, [side, side] by a constant of that shape."""
    values = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    shape = [side, side]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["image", "B"], ["logits"])],
        "product",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(values, "B")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def flops(network: Network) -> int:
    """Of convolutions and matrix products for one image; 2 per multiply-add."""
    height, width = network.loaded.preprocessing.height, network.loaded.preprocessing.width
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.model.eval()(torch.zeros(1, 3, height, width))
    return int(counter.get_total_flops())


def _network(context: Context, network: Network, product: Any) -> Figures:
    arithmetic = flops(network)
    base = open_graph(FP32, network.classifier())
    mapped = open_graph(FP32, network.artifact("cam"))
    feeds = {"image": batch_of(base.inputs[0].shape, 1)}
    square = {"image": np.ones((SIDE, SIDE), np.float32)}
    timed = time_calls(
        {
            "product": lambda: product.infer(square),
            "classification": lambda: base.infer(feeds),
            "map": lambda: mapped.infer(feeds),
        },
        {"classification": "product", "map": "product"},
        context.effort,
    )
    # Time over floor = (time / product's time) / (arithmetic / product's arithmetic).
    share = arithmetic / (2 * SIDE**3)
    over = {k: [v / share for v in timed["ratios"][k]["ratio"]] for k in ("classification", "map")}
    rate = 2 * SIDE**3 / timed["ms"]["product"][0] / 1e6
    context.say(f"  {network.name}: {over['map'][0]:.3f} of the floor at {rate:.0f} GFLOP/s")
    return {**timed, "flops": arithmetic, "gflops_per_s": round(rate, 1), "over_floor": over}


def section(figures: Figures) -> str:
    """One row for each network."""
    rows = [
        [
            name,
            f"{row['flops'] / 1e9:.2f}",
            f"{row['gflops_per_s']:.0f}",
            f"{row['flops'] / row['gflops_per_s'] / 1e6:.1f}",
            *(markdown.ms(row["ms"][k]) for k in ("classification", "map")),
            *(markdown.ratio(row["over_floor"][k]) for k in ("classification", "map")),
        ]
        for name, row in figures["networks"].items()
    ]
    head = [
        "network", "GFLOP", "product's GFLOP/s", "floor, ms", "classification, ms",
        "with map, ms", "classification over floor", "with map over floor",
    ]  # fmt: skip
    title = "\n### Backend only: classification and map over the floor, batch 1\n"
    return title + TEXT + markdown.table(head, rows)


def reached(figures: Figures) -> dict[str, Reached | None]:
    """No target is of this part."""
    del figures
    return {}


def plots(figures: Figures, folder: Path) -> list[Path]:
    """How many times the floor."""
    found = figures["networks"]
    series = {
        name: [row["over_floor"][key] for row in found.values()]
        for key, name in (("classification", "classification"), ("map", "with map"))
    }
    title = "Backend only: time over the arithmetic at the backend's matrix-product rate"
    lines = {"floor": 1.0}
    return [
        drawing.bars(folder / "floor.png", title, "times the floor", list(found), series, lines)
    ]
