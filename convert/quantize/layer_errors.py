"""Layers computed aside: each one again, rounded, beside the float32 way to the logits.

One graph holds the float32 way and, beside each layer, the same layer on the same float32 input
with that input rounded as in the converted graph, with the weights rounded, or with both. So
errors don't add up along the network, and one pass tells of all layers.

Takes the mean of the rounding error out of each layer, through its bias.

Rounding moves a channel's output to one side on the average, for the errors of a filter's few
weights don't cancel; layer after layer, that adds up. The bias can take it back at no cost at run
time (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
section 4.2). Departures: the mean is measured on images (their appendix D) instead of derived
from batch norm, and on each layer's float32 input, so all layers are corrected in one pass
instead of one after the other.

Which layers hurt: how far each one's own rounding moves its output.

A layer is blamed for its own rounding, of its input and of its weights, and it shows whether
keeping the layer in float32 is enough: a rounded input comes from the convolution before it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sigcam.convert.onnx_graph import leading_to_logits
from sigcam.convert.quantize.calibrate import open_unfused
from sigcam.convert.quantize.int8 import drop_unused
from sigcam.convert.quantize.selection import Selection
from sigcam.convert.quantize.source import Source
from sigcam.core.errors import BackendError
from sigcam.core.progress import Report
from sigcam.core.types import Array


class LayerErrors:
    """The graph while it is put together, and the images that run through it.

    Attributes:
        layers: the selected layers by name, in the order of the graph.
    """

    def __init__(self, source: Source, converted: onnx.ModelProto, selection: Selection) -> None:
        """Begins with the float32 way.

        Args:
            source: the float32 artifact.
            converted: what `to_int8` made of it.
            selection: what computes in 8 bits there.
        """
        way = leading_to_logits(source.model.graph, source.path)
        self._source = source
        self._nodes = [node for node in source.model.graph.node if node.name in way]
        self.layers = {node.name: node for node in self._nodes if node.name in selection.layers}
        self._rounded = {node.name: node for node in converted.graph.node}
        self._made_by = {name: node for node in converted.graph.node for name in node.output}
        self._stored = {tensor.name: tensor for tensor in converted.graph.initializer}
        self._stored |= {tensor.name: tensor for tensor in source.model.graph.initializer}
        self._outputs: list[str] = []

    def add_error(self, layer: str, name: str, *, of_input: bool, of_weight: bool) -> None:
        """Adds what the layer gives when rounded less what it gives in float32.

        Args:
            layer: the layer's name.
            name: of the new value.
            of_input: whether the input is rounded.
            of_weight: whether the weights are.
        """
        again, rounded = copy.deepcopy(self.layers[layer]), self._rounded[layer]
        if of_input:
            back = copy.deepcopy(self._made_by[rounded.input[0]])
            there = copy.deepcopy(self._made_by[back.input[0]])
            there.input[0], there.output[0] = again.input[0], f"{name}/8bit"
            back.input[0], back.output[0] = f"{name}/8bit", f"{name}/x"
            again.input[0] = f"{name}/x"
            self._add(there, back)
        if of_weight:
            weight = copy.deepcopy(self._made_by[rounded.input[1]])
            weight.output[0] = again.input[1] = f"{name}/w"
            self._add(weight)
        float32, again.output[0] = again.output[0], f"{name}/y"
        self._add(again, helper.make_node("Sub", [f"{name}/y", float32], [name]))

    def add_reduced(self, layer: str, value: str, operator: str, name: str) -> None:
        """Adds an output [channels]: a value of the layer's shape, reduced over all other axes.

        Args:
            layer: whose shape `value` has.
            value: its name.
            operator: "ReduceMean" or "ReduceSumSquare".
            name: of the output.
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
        """Each output, float64 [channels], added up over the images.

        Args:
            feeds: the inputs of one image after the other.
            count: of them.
            threads: of the backend.
            report: called with the images done and `count`.

        Raises:
            BackendError: the backend failed.
        """
        sums: dict[str, Array] = {}
        try:
            session = open_unfused(self._model().SerializeToString(), threads)
            for done, inputs in enumerate(feeds, 1):
                found = session.run(self._outputs, {"image": inputs["image"]})
                for name, values in zip(self._outputs, found, strict=True):
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
    """A copy of the converted graph whose layers have the mean outputs of float32.

    Layers without a bias of their own (a MatMul, whose bias is added by another node) stay as
    they are.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it.
        selection: what computes in 8 bits there.
        feeds: the inputs of one image after the other.
        count: of them.
        threads: of the backend.
        report: called with the images done and `count`.

    Raises:
        BackendError: the backend failed.
    """
    errors = LayerErrors(source, converted, selection)
    names = [name for name, layer in errors.layers.items() if layer.op_type != "MatMul"]
    for name in names:
        errors.add_error(name, f"{name}/error", of_input=True, of_weight=True)
        errors.add_reduced(name, f"{name}/error", "ReduceMean", f"{name}/mean error")
    sums = errors.sums(feeds, count, threads=threads, report=report)
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


@dataclass(frozen=True)
class LayerError:
    """What rounding does to one layer's output.

    Attributes:
        layer: its name.
        by_input, by_weight: the error from rounding one of the two: ||rounded - float32|| /
            ||float32|| of the output over all images and positions, for each output channel,
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
) -> list[LayerError]:
    """The layers, the worst first.

    Args:
        source: the float32 artifact.
        converted: what `to_int8` made of it.
        selection: what computes in 8 bits there.
        feeds: the inputs of one image after the other.
        count: of them.
        threads: of the backend.
        report: called with the images done and `count`.

    Raises:
        BackendError: the backend failed.
    """
    errors = LayerErrors(source, converted, selection)
    for name, layer in errors.layers.items():
        errors.add_error(name, f"{name}/input error", of_input=True, of_weight=False)
        errors.add_error(name, f"{name}/weight error", of_input=False, of_weight=True)
        for value, output in zip(
            (layer.output[0], f"{name}/input error", f"{name}/weight error"),
            _outputs(name),
            strict=True,
        ):
            errors.add_reduced(name, value, "ReduceSumSquare", output)
    sums = errors.sums(feeds, count, threads=threads, report=report)
    found = []
    for name in errors.layers:
        kept, by_input, by_weight = (sums[output] for output in _outputs(name))
        found.append(LayerError(name, _error(kept, by_input), _error(kept, by_weight)))
    return sorted(found, key=lambda one: one.error, reverse=True)


def _outputs(layer: str) -> tuple[str, str, str]:
    return f"{layer}/kept", f"{layer}/by input", f"{layer}/by weight"


def _error(kept: Array, moved: Array) -> float:
    alive = kept > 0
    return float(np.sqrt(moved[alive] / kept[alive]).mean()) if alive.any() else 0.0
