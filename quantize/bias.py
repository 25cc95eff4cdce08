"""Takes the mean of the rounding error out of each layer, through its bias.

Rounding moves a channel's output to one side on the average, for the errors of a filter's few
weights don't cancel; layer after layer, that adds up. The bias can take it back at no cost at run
time (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2). Departures: the mean is measured on pictures (their appendix D) instead of derived
from batch norm, and on each layer's float32 input, so all layers are corrected in one pass
instead of one after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from sigcam.quantize.aside import Aside
from sigcam.quantize.selection import Selection
from sigcam.quantize.source import Source
from sigcam.quantize.static import drop_unused
from sigcam.runtime.progress import Report


def correct_biases(
    source: Source,
    converted: onnx.ModelProto,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    threads: int | None,
    report: Report,
) -> onnx.ModelProto:
    """A copy of the converted graph whose layers have the mean outputs of float32.

    Layers without a bias of their own (a MatMul, whose bias is added by another node) stay as
    they are.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it.
        selection: what computes in 8 bits there.
        feeds: the inputs of one picture after the other.
        count: of them.
        threads: of the engine.
        report: called with the pictures done and `count`.

    Raises:
        BackendError: the engine failed.
    """
    aside = Aside(source, converted, selection)
    names = [name for name, layer in aside.layers.items() if layer.op_type != "MatMul"]
    for name in names:
        aside.add_error(name, f"{name}/error", of_input=True, of_weight=True)
        aside.add_reduced(name, f"{name}/error", "ReduceMean", f"{name}/mean error")
    sums = aside.sums(feeds, count, threads=threads, report=report)
    corrected = copy.deepcopy(converted)
    nodes = {node.name: node for node in corrected.graph.node}
    stored = {tensor.name: tensor for tensor in corrected.graph.initializer}
    for name in names:
        node, mean = nodes[name], sums[f"{name}/mean error"] / count
        scale = next((a.f for a in node.attribute if a.name == "beta"), 1.0)  # a Gemm's
        moved = _bias(node, stored) - mean / scale
        bias = numpy_helper.from_array(moved.astype(np.float32), f"{name}/bias")
        corrected.graph.initializer.append(bias)
        del node.input[2:]
        node.input.append(bias.name)
    drop_unused(corrected.graph)
    return corrected


def _bias(layer: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Any:
    """float64, [channels], or 0 where the layer has none."""
    if len(layer.input) < 3 or not layer.input[2]:
        return 0.0
    return numpy_helper.to_array(stored[layer.input[2]]).astype(np.float64)
