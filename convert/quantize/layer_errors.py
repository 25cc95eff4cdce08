"""Measures what rounding does to each layer by itself, to correct biases and to rank the layers.

An error graph (`ErrorGraph`) holds the float32 nodes that lead to the logits and, beside each
layer, the same layer on the same float32 input with that input rounded as in the converted graph,
with the weights rounded, or with both. So errors don't add up along the network, and one pass
measures all layers.

`correct_biases` takes the mean of the rounding error out of each layer, through its bias.
Rounding moves a channel's output to one side on the average, for the errors of a filter's few
weights don't cancel; layer after layer, that adds up. The bias can take it back at no cost at run
time (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2). Departures: the mean is measured on images (their appendix D) instead of derived
from batch norm, and on each layer's float32 input, so all layers are corrected in one pass
instead of one after the other.

`rank_layers` sorts the layers by how far their own rounding moves their output. It measures the
rounding of the input and that of the weights apart: where most of the error comes from the input,
keeping the layer itself in float32 is not enough, since the convolution before it rounds its input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sigcam.convert.onnx_graph import drop_unused, leading_to_logits
from sigcam.convert.quantize.calibrate import open_unfused
from sigcam.convert.quantize.selection import Selection
from sigcam.convert.quantize.source import Source
from sigcam.core.errors import BackendError
from sigcam.core.progress import Report
from sigcam.core.types import Array


@dataclass(frozen=True)
class LayerError:
    """How far rounding moves one layer's output.

    Each error is ||rounded - float32|| / ||float32|| of the output over all images and positions,
    for each output channel, then their mean. A channel that is large beside the others neither
    hides their errors nor makes up for them.

    Attributes:
        layer: the layer's name.
        by_input: the error that rounding the input makes.
        by_weight: the error that rounding the weights makes.
    """

    layer: str
    by_input: float
    by_weight: float

    @property
    def error(self) -> float:
        """Returns the error of both, as if they were independent.

        >>> LayerError("conv", by_input=0.03, by_weight=0.04).error
        0.05
        """
        return float(np.hypot(self.by_input, self.by_weight))


class ErrorGraph:
    """A graph that computes layers' rounding errors beside the float32 values.

    Attributes:
        layers: the selected layers' nodes by name, in the order of the graph.
    """

    def __init__(self, source: Source, converted: onnx.ModelProto, selection: Selection) -> None:
        """Begins with the float32 nodes that lead to the logits.

        Args:
            source: the float32 artifact.
            converted: what `to_int8` made of it.
            selection: the nodes that compute in 8 bits there.
        """
        leading = leading_to_logits(source.model.graph, source.path)
        self._source = source
        self._nodes = [node for node in source.model.graph.node if node.name in leading]
        self.layers = {node.name: node for node in self._nodes if node.name in selection.layers}
        self._rounded = {node.name: node for node in converted.graph.node}
        self._made_by = {name: node for node in converted.graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in converted.graph.initializer}
        self._stored |= {tensor.name: tensor for tensor in source.model.graph.initializer}
        self._outputs: list[str] = []

    def add_error(self, layer: str, name: str, *, of_input: bool, of_weight: bool) -> None:
        """Adds the value that the layer gives when rounded, less what it gives in float32.

        Args:
            layer: the layer's name.
            name: the new value's name.
            of_input: whether the input is rounded.
            of_weight: whether the weights are rounded.
        """
        node, rounded = copy.deepcopy(self.layers[layer]), self._rounded[layer]
        if of_input:
            dequantize = copy.deepcopy(self._made_by[rounded.input[0]])
            quantize = copy.deepcopy(self._made_by[dequantize.input[0]])
            quantize.input[0], quantize.output[0] = node.input[0], f"{name}/8bit"
            dequantize.input[0], dequantize.output[0] = f"{name}/8bit", f"{name}/x"
            node.input[0] = f"{name}/x"
            self._add(quantize, dequantize)
        if of_weight:
            weight = copy.deepcopy(self._made_by[rounded.input[1]])
            weight.output[0] = node.input[1] = f"{name}/w"
            self._add(weight)
        float32, node.output[0] = node.output[0], f"{name}/y"
        self._add(node, helper.make_node("Sub", [f"{name}/y", float32], [name]))

    def add_reduced(self, layer: str, value: str, operator: str, name: str) -> None:
        """Adds an output [channels]: a value of the layer's shape, reduced over all other axes.

        Args:
            layer: the layer whose shape `value` has.
            value: the value's name.
            operator: "ReduceMean" or "ReduceSumSquare".
            name: the output's name.
        """
        node = self.layers[layer]
        weight = self._stored[node.input[1]].dims
        axes = [axis for axis in range(len(weight)) if axis != 1]
        if node.op_type != "Conv":
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            channels = weight[0] if transposed else weight[-1]
            shape = self._constant([-1, channels], f"{name}/shape")
            self._add(helper.make_node("Reshape", [value, shape], [f"{name}/rows"]))
            value, axes = f"{name}/rows", [0]
        over = self._constant(axes, f"{name}/axes")
        self._add(helper.make_node(operator, [value, over], [name], keepdims=0))
        self._outputs.append(name)

    def sums(
        self, feeds: Iterable[dict[str, Any]], count: int, *, threads: int | None, report: Report
    ) -> dict[str, Array]:
        """Runs the graph, and adds each output up over the images.

        Args:
            feeds: the graph's inputs for one image after the other.
            count: the number of images.
            threads: threads of ONNX Runtime; None leaves it to ONNX Runtime.
            report: called with the images done and `count`.

        Returns:
            Each output's sum, float64 [channels], by name.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        sums: dict[str, Array] = {}
        try:
            session = open_unfused(self._model().SerializeToString(), threads)
            for done, inputs in enumerate(feeds, 1):
                outputs = session.run(self._outputs, {"image": inputs["image"]})
                for name, values in zip(self._outputs, outputs, strict=True):
                    sums[name] = sums.get(name, 0.0) + values.astype(np.float64)
                report(done, count)
        except Exception as exc:  # ONNX Runtime's errors share no narrower base
            raise BackendError(f"ONNX Runtime failed on the layers' errors: {exc}") from exc
        return sums

    def _add(self, *nodes: onnx.NodeProto) -> None:
        for node in nodes:
            node.name = f"{node.output[0]}/node"
            self._nodes.append(node)

    def _constant(self, values: list[int], name: str) -> str:
        self._stored[name] = numpy_helper.from_array(np.array(values, np.int64), name)
        return name

    def _model(self) -> onnx.ModelProto:
        read = {name for node in self._nodes for name in node.input}
        model = self._source.model
        graph = helper.make_graph(
            self._nodes,
            "errors",
            [value for value in model.graph.input if value.name in read],
            [
                helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None])
                for name in self._outputs
            ],
            [self._stored[name] for name in sorted(read & self._stored.keys())],
        )
        return helper.make_model(
            graph, opset_imports=model.opset_import, ir_version=model.ir_version
        )


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
    """Gives the converted layers the mean outputs of float32, through their biases.

    Layers without a bias of their own (a MatMul, whose bias is added by another node) stay as
    they are.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it; it isn't changed.
        selection: the nodes that compute in 8 bits there.
        feeds: the graph's inputs for one image after the other.
        count: the number of images.
        threads: threads of ONNX Runtime; None leaves it to ONNX Runtime.
        report: called with the images done and `count`.

    Returns:
        A corrected copy.

    Raises:
        BackendError: ONNX Runtime failed.

    Example:
        corrected = correct_biases(
            source, to_int8(source, selection, ranges), selection,
            feeds(paths, source.spec.preprocessing), len(paths), threads=None, report=report,
        )
    """
    graph = ErrorGraph(source, converted, selection)
    layers = [name for name, node in graph.layers.items() if node.op_type != "MatMul"]
    for layer in layers:
        graph.add_error(layer, f"{layer}/error", of_input=True, of_weight=True)
        graph.add_reduced(layer, f"{layer}/error", "ReduceMean", f"{layer}/mean error")
    sums = graph.sums(feeds, count, threads=threads, report=report)
    corrected = copy.deepcopy(converted)
    nodes = {node.name: node for node in corrected.graph.node}
    stored = {tensor.name: tensor for tensor in corrected.graph.initializer}
    for layer in layers:
        node, mean = nodes[layer], sums[f"{layer}/mean error"] / count
        scale = next((a.f for a in node.attribute if a.name == "beta"), 1.0)  # a Gemm's
        moved = _bias(node, stored) - mean / scale
        bias = numpy_helper.from_array(moved.astype(np.float32), f"{layer}/bias")
        corrected.graph.initializer.append(bias)
        del node.input[2:]
        node.input.append(bias.name)
    drop_unused(corrected.graph)
    return corrected


def rank_layers(
    source: Source,
    converted: onnx.ModelProto,
    selection: Selection,
    feeds: Iterable[dict[str, Any]],
    count: int,
    *,
    threads: int | None,
    report: Report,
) -> list[LayerError]:
    """Measures every layer's rounding error and sorts them, the largest first.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it.
        selection: the nodes that compute in 8 bits there.
        feeds: the graph's inputs for one image after the other.
        count: the number of images.
        threads: threads of ONNX Runtime; None leaves it to ONNX Runtime.
        report: called with the images done and `count`.

    Returns:
        One for each selected layer.

    Raises:
        BackendError: ONNX Runtime failed.

    Example:
        ranking = rank_layers(
            source, to_int8(source, selection, ranges), selection,
            feeds(paths, source.spec.preprocessing), len(paths), threads=None, report=report,
        )
        again = select(source, kept_float=[one.layer for one in ranking[:3]])
    """
    graph = ErrorGraph(source, converted, selection)
    for layer, node in graph.layers.items():
        graph.add_error(layer, f"{layer}/input error", of_input=True, of_weight=False)
        graph.add_error(layer, f"{layer}/weight error", of_input=False, of_weight=True)
        values = node.output[0], f"{layer}/input error", f"{layer}/weight error"
        for value, name in zip(values, _squares(layer), strict=True):
            graph.add_reduced(layer, value, "ReduceSumSquare", name)
    sums = graph.sums(feeds, count, threads=threads, report=report)
    ranking = []
    for layer in graph.layers:
        float32, by_input, by_weight = (sums[name] for name in _squares(layer))
        ranking.append(LayerError(layer, _error(float32, by_input), _error(float32, by_weight)))
    return sorted(ranking, key=lambda one: one.error, reverse=True)


def _bias(layer: onnx.NodeProto, stored: dict[str, onnx.TensorProto]) -> Any:
    """Returns a layer's bias, float64 [channels], or 0 where it has none."""
    if len(layer.input) < 3 or not layer.input[2]:
        return 0.0
    return numpy_helper.to_array(stored[layer.input[2]]).astype(np.float64)


def _squares(layer: str) -> tuple[str, str, str]:
    """Names the outputs with a layer's squares: of the output in float32 and of both errors."""
    return f"{layer}/float32", f"{layer}/by input", f"{layer}/by weight"


def _error(float32: Array, error: Array) -> float:
    """Computes the mean relative error of channels that aren't 0, from sums of squares."""
    alive = float32 > 0
    return float(np.sqrt(error[alive] / float32[alive]).mean()) if alive.any() else 0.0
