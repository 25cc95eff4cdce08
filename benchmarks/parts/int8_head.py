"""MLP heads whose second head is stored in 8 bits; a table of the part methods."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.harness import markdown
from benchmarks.harness.backends import FP32, open_graph
from benchmarks.harness.context import Context
from benchmarks.harness.measure import measure as time_calls
from benchmarks.harness.networks import Network, batch_of, megabytes
from benchmarks.harness.targets import TARGETS
from sigcam.convert.quantize.int8_head import quantize_sigmoid_head
from sigcam.core.errors import ExportError
from sigcam.images.correlation import correlation

Figures = dict[str, Any]

METHODS = ("gradcam", "gradcam++", "layercam")
LIMIT = TARGETS["mlp_int8_head"].limit

TEXT = f"""
What `sigcam quantize --precision int8-head` makes: the large matrices of the sigmoid branch are
stored in 8 bits with a scale for each output channel, and the prediction keeps every bit.
Classification, the artifact in fp32 and this one alternate. The target is at most {LIMIT:.2f} for
gradcam on VGG-16. The correlation is that of the CAM with fp32's on one input, of fresh weights.
"""


def measure(context: Context, network: Network) -> Figures:
    """Ratios by method, of a network whose head is an MLP."""
    base = open_graph(FP32, network.classifier())
    feeds = {"image": batch_of(base.inputs[0].shape, 1)}
    found: Figures = {}
    for method in METHODS:
        path = network.artifact(method)
        try:
            small = network.made(f"{method}-int8-head.onnx", lambda p, f=path: _convert(f, p))  # type: ignore[misc]
        except ExportError as exc:
            found[method] = {"refused": str(exc)}
            continue
        gc.collect()
        fp32, int8 = open_graph(FP32, path), open_graph(FP32, small)
        wanted, got = fp32.infer(feeds), int8.infer(feeds)
        if not np.array_equal(wanted["logits"], got["logits"]):
            raise SystemExit("the prediction must keep every bit; nothing was timed")
        timed = time_calls(
            {
                "classification": lambda: base.infer(feeds),
                "fp32": lambda fp32=fp32: fp32.infer(feeds),  # type: ignore[misc]
                "int8-head": lambda int8=int8: int8.infer(feeds),  # type: ignore[misc]
            },
            {"fp32": "classification", "int8-head": "classification"},
            context.effort,
        )
        fp32.close()
        int8.close()
        found[method] = {
            **timed,
            "mb": {"fp32": megabytes(path), "int8-head": megabytes(small)},
            "correlation": float(f"{correlation(wanted['cams'], got['cams']):.6g}"),
        }
        context.say(f"  {network.name} {method} int8-head: {timed['ratios']['int8-head']['ratio']}")
    return found


def _convert(path: Path, target: Path) -> None:
    onnx.save(quantize_sigmoid_head(onnx.load(path)), target)


def section(figures: Figures) -> str:
    """One row for each network and method."""
    rows = []
    for name, methods in figures.items():
        for method, row in methods.items():
            if "refused" in row:
                rows.append([name, method, row["refused"], "", "", "", "", ""])
                continue
            limit = LIMIT if (name, method) == ("vgg16", "gradcam") else None
            ratios = row["ratios"]
            rows.append(
                [
                    name, method, markdown.ms(row["ms"]["classification"]),
                    markdown.ratio(ratios["fp32"]["ratio"]),
                    markdown.ratio(ratios["int8-head"]["ratio"], limit),
                    f"{row['mb']['fp32']:.1f}", f"{row['mb']['int8-head']:.1f}",
                    f"{row['correlation']:.5f}",
                ]
            )  # fmt: skip
    head = [
        "network", "method", "classification, ms", "fp32 over classification",
        "int8-head over classification", "fp32, MB", "int8-head, MB", "correlation",
    ]  # fmt: skip
    title = "\n### Backend only: MLP heads with the second head in 8 bits, batch 1\n"
    return title + TEXT + markdown.table(head, rows)
