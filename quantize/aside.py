"""Layers computed aside: each one again, rounded, beside the float32 way to the logits.

One graph holds the float32 way and, beside each layer, the same layer on the same float32 input
with that input rounded as in the converted graph, with the weights rounded, or with both. So
errors don't add up along the network, and one pass tells of all layers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
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


class Aside:
    """The graph while it is put together, and the pictures that run through it.

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
        """Each output, float64 [channels], added up over the pictures.

        Args:
            feeds: the inputs of one picture after the other.
            count: of them.
            threads: of the engine.
            report: called with the pictures done and `count`.

        Raises:
            BackendError: the engine failed.
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
            "aside",
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
