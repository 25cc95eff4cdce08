"""Which layers hurt: how far each one's own rounding moves its output.

One graph computes all of them in one pass. It holds the float32 way to the logits, and beside
each layer the same layer with its input and weights rounded as in the converted graph, on the
float32 input: so errors don't add up along the network, and a layer is blamed for its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from sigcam.quantize.selection import Selection
from sigcam.quantize.source import Source
from sigcam.runtime.errors import BackendError
from sigcam.runtime.graph_nodes import leading_to_logits
from sigcam.runtime.progress import Report

Array = npt.NDArray[Any]

_KEPT, _MOVED = "kept:", "moved:"


def rank_layers(
    source: Source,
    converted: onnx.ModelProto,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    threads: int | None,
    report: Report,
) -> list[tuple[str, float]]:
    """The layers, the worst first, each with its error.

    The error is ||rounded - float32|| / ||float32|| of the output over all pictures and
    positions, for each output channel, then their mean: a channel that is large beside the
    others neither hides their errors nor makes up for them.

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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Rounding must be done as it is written, not fused away.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
    model = _side_by_side(source, converted, selection)
    sums: dict[str, Array] = {}
    try:
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        names = [value.name for value in session.get_outputs()]
        for done, inputs in enumerate(feeds, 1):
            found = session.run(names, {"image": inputs["image"]})
            for name, norms in zip(names, found, strict=True):
                sums[name] = sums.get(name, 0.0) + norms.astype(np.float64)
            report(done, count)
    except Exception as exc:  # ONNX Runtime's errors share no narrower base
        raise BackendError(f"ONNX Runtime failed while looking for layers: {exc}") from exc
    errors = {
        layer: _error(sums[_KEPT + layer], sums[_MOVED + layer]) for layer in selection.layers
    }
    return sorted(errors.items(), key=lambda item: item[1], reverse=True)


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
        outputs += [_KEPT + name, _MOVED + name]
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
    """The layer on its float32 input, which is rounded first, with rounded weights."""
    name = layer.name
    back = copy.deepcopy(made_by[rounded.input[0]])
    there = copy.deepcopy(made_by[back.input[0]])
    weight = copy.deepcopy(made_by[rounded.input[1]])
    there.input[0], there.output[0] = layer.input[0], f"{name}/8bit"
    back.input[0], back.output[0] = f"{name}/8bit", f"{name}/input"
    weight.output[0] = f"{name}/weight"
    again = copy.deepcopy(layer)
    again.input[0], again.input[1] = f"{name}/input", f"{name}/weight"
    again.output[0] = f"{name}/output"
    for node, role in ((there, "q"), (back, "dq"), (weight, "w"), (again, "again")):
        node.name = f"{name}/{role}"
    return [there, back, weight, again]


def _norms(
    layer: onnx.NodeProto, weight_shape: Any, stored: dict[str, onnx.TensorProto]
) -> list[onnx.NodeProto]:
    """Sums of squares for each output channel, of the output and of its error."""
    name, y = layer.name, layer.output[0]
    nodes = [helper.make_node("Sub", [f"{name}/output", y], [f"{name}/error"])]
    axes = f"{name}/axes"
    if layer.op_type == "Conv":
        sides = {_KEPT: y, _MOVED: f"{name}/error"}
        reduced = [axis for axis in range(len(weight_shape)) if axis != 1]
    else:
        shape = f"{name}/shape"
        transposed = any(a.name == "transB" and a.i for a in layer.attribute)
        channels = weight_shape[0] if transposed else weight_shape[-1]
        stored[shape] = numpy_helper.from_array(np.array([-1, channels], np.int64), shape)
        sides = {_KEPT: f"{name}/kept", _MOVED: f"{name}/moved"}
        nodes += [
            helper.make_node("Reshape", [y, shape], [sides[_KEPT]]),
            helper.make_node("Reshape", [f"{name}/error", shape], [sides[_MOVED]]),
        ]
        reduced = [0]
    stored[axes] = numpy_helper.from_array(np.array(reduced, np.int64), axes)
    return [
        *nodes,
        *(
            helper.make_node("ReduceSumSquare", [value, axes], [side + name], keepdims=0)
            for side, value in sides.items()
        ),
    ]
