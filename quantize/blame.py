"""Which layers hurt: how far each one's own rounding moves its output.

One graph computes all of them in one pass. It holds the float32 way to the logits, and beside
each layer the same layer twice on the float32 input: with that input rounded as in the converted
graph, and with the weights rounded. So errors don't add up along the network, a layer is blamed
for its own, and it shows whether keeping the layer in float32 is enough: a rounded input comes
from the convolution before it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from sigcam.quantize.engine import open_unfused
from sigcam.quantize.selection import Selection
from sigcam.quantize.source import Source
from sigcam.runtime.errors import BackendError
from sigcam.runtime.graph_nodes import leading_to_logits
from sigcam.runtime.progress import Report

Array = npt.NDArray[Any]

_KEPT, _BY_INPUT, _BY_WEIGHT = "kept:", "input:", "weight:"


@dataclass(frozen=True)
class Blame:
    """What rounding does to one layer's output.

    Attributes:
        layer: its name.
        by_input, by_weight: the error from rounding one of the two: ||rounded - float32|| /
            ||float32|| of the output over all pictures and positions, for each output channel,
            then their mean. A channel that is large beside the others neither hides their
            errors nor makes up for them.
    """

    layer: str
    by_input: float
    by_weight: float

    @property
    def error(self) -> float:
        """Of both, as if they were independent."""
        return float(np.hypot(self.by_input, self.by_weight))


def rank_layers(
    source: Source,
    converted: onnx.ModelProto,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    threads: int | None,
    report: Report,
) -> list[Blame]:
    """The layers, the worst first.

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
    model = _side_by_side(source, converted, selection)
    sums: dict[str, Array] = {}
    try:
        session = open_unfused(model.SerializeToString(), threads)
        names = [value.name for value in session.get_outputs()]
        for done, inputs in enumerate(feeds, 1):
            found = session.run(names, {"image": inputs["image"]})
            for name, norms in zip(names, found, strict=True):
                sums[name] = sums.get(name, 0.0) + norms.astype(np.float64)
            report(done, count)
    except Exception as exc:  # ONNX Runtime's errors share no narrower base
        raise BackendError(f"ONNX Runtime failed while looking for layers: {exc}") from exc
    found = [
        Blame(
            layer,
            by_input=_error(sums[_KEPT + layer], sums[_BY_INPUT + layer]),
            by_weight=_error(sums[_KEPT + layer], sums[_BY_WEIGHT + layer]),
        )
        for layer in selection.layers
    ]
    return sorted(found, key=lambda one: one.error, reverse=True)


def _error(kept: Array, moved: Array) -> float:
    alive = kept > 0
    return float(np.sqrt(moved[alive] / kept[alive]).mean()) if alive.any() else 0.0


def _side_by_side(source: Source, converted: onnx.ModelProto, chosen: Selection) -> onnx.ModelProto:
    graph = source.model.graph
    way = leading_to_logits(graph, source.path)
    nodes = [node for node in graph.node if node.name in way]
    layers = {node.name: node for node in nodes if node.name in chosen.layers}
    rounded = {node.name: node for node in converted.graph.node}
    made_by = {name: node for node in converted.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in converted.graph.initializer}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    outputs: list[str] = []
    for name, layer in layers.items():
        nodes += _rounded_layer(layer, rounded[name], made_by)
        shape = stored[layer.input[1]].dims
        nodes += _norms(layer, shape, stored)
        outputs += [side + name for side in (_KEPT, _BY_INPUT, _BY_WEIGHT)]
    read = {name for node in nodes for name in node.input}
    every = {**weights, **stored}
    merged = helper.make_graph(
        nodes,
        "side by side",
        [value for value in graph.input if value.name in read],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None]) for name in outputs],
        [every[name] for name in sorted(read & every.keys())],
    )
    return helper.make_model(
        merged, opset_imports=source.model.opset_import, ir_version=source.model.ir_version
    )


def _rounded_layer(
    layer: onnx.NodeProto, rounded: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]
) -> list[onnx.NodeProto]:
    """The layer with its float32 input rounded, and with its weights rounded."""
    name = layer.name
    back = copy.deepcopy(made_by[rounded.input[0]])
    there = copy.deepcopy(made_by[back.input[0]])
    weight = copy.deepcopy(made_by[rounded.input[1]])
    there.input[0], there.output[0] = layer.input[0], f"{name}/8bit"
    back.input[0], back.output[0] = f"{name}/8bit", f"{name}/x"
    weight.output[0] = f"{name}/w"
    by_input, by_weight = copy.deepcopy(layer), copy.deepcopy(layer)
    by_input.input[0], by_input.output[0] = f"{name}/x", f"{name}/by input"
    by_weight.input[1], by_weight.output[0] = f"{name}/w", f"{name}/by weight"
    nodes = [there, back, weight, by_input, by_weight]
    for index, node in enumerate(nodes):
        node.name = f"{name}/{index}"
    return nodes


def _norms(
    layer: onnx.NodeProto, weight_shape: Any, stored: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Sums of squares for each output channel, of the output and of its two errors."""
    name, y = layer.name, layer.output[0]
    sides = {_KEPT: y, _BY_INPUT: f"{name}/input error", _BY_WEIGHT: f"{name}/weight error"}
    nodes = [
        helper.make_node("Sub", [f"{name}/by input", y], [sides[_BY_INPUT]]),
        helper.make_node("Sub", [f"{name}/by weight", y], [sides[_BY_WEIGHT]]),
    ]
    reduced = [axis for axis in range(len(weight_shape)) if axis != 1]
    if layer.op_type != "Conv":
        shape = f"{name}/shape"
        transposed = any(a.name == "transB" and a.i for a in layer.attribute)
        channels = weight_shape[0] if transposed else weight_shape[-1]
        stored[shape] = numpy_helper.from_array(np.array([-1, channels], np.int64), shape)
        for side, value in sides.items():
            sides[side] = f"{name}/rows of {side}"
            nodes.append(helper.make_node("Reshape", [value, shape], [sides[side]]))
        reduced = [0]
    axes = f"{name}/axes"
    stored[axes] = numpy_helper.from_array(np.array(reduced, np.int64), axes)
    for side, value in sides.items():
        nodes.append(helper.make_node("ReduceSumSquare", [value, axes], [side + name], keepdims=0))
    return nodes
