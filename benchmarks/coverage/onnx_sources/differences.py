"""Grad-CAM of an ONNX file without any gradient: by differences through its own tail, in float64.

Grad-CAM's weight of a channel is the spatial mean of the logit's gradient, which is how fast the
logit moves when the whole channel is raised by the same amount. So it needs no autograd, and no
reader of ours: the file is cut behind the layer, its tail is turned to float64, and
ONNX's own reference evaluator computes it for each channel a little raised and a little lowered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

_STEP = 1e-3
"""By what share of its largest value a channel is moved; in float64, a hundred times less is
lost by rounding than by the curve of a smooth head."""
_TOGETHER = 32
"""So many channels are moved in one run."""
_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE}


class Tail:
    """What follows a layer of a file, in float64."""

    def __init__(self, model: onnx.ModelProto, tensor: str, output: str) -> None:
        """Cuts a file.

        Args:
            model: the file.
            tensor: the value that the tail is given.
            output: the value that it computes.
        """
        self.tensor, self.output = tensor, output
        graph, wanted, nodes = model.graph, {output}, []
        for node in reversed(graph.node):
            if wanted.intersection(node.output) and tensor not in node.output:
                wanted.update(node.input)
                nodes.append(node)
        if any(i.name in wanted for i in graph.input if i.name not in _stored(graph)):
            raise ValueError(f"the tail behind {tensor} needs the image too")
        stored = [_double(t) for t in graph.initializer if t.name in wanted]
        cut = helper.make_graph(
            [_double_node(node) for node in reversed(nodes)],
            "tail",
            [helper.make_tensor_value_info(tensor, TensorProto.DOUBLE, None)],
            [helper.make_tensor_value_info(output, TensorProto.DOUBLE, None)],
            stored,
        )
        whole = helper.make_model(cut, opset_imports=model.opset_import, ir_version=8)
        self.session = ReferenceEvaluator(whole)

    def __call__(self, values: Any) -> Any:
        """Computes the output for some values of the layer, [B, C]; one by one if it must."""
        try:
            rows = self._run(values)
        except Exception:  # a file that is written for one image; NumPy's many errors for that
            rows = np.empty(0)
        if len(rows) == len(values):
            return rows
        return np.concatenate([self._run(values[i : i + 1]) for i in range(len(values))])

    def _run(self, values: Any) -> Any:
        found = np.asarray(self.session.run([self.output], {self.tensor: values})[0])
        return found.reshape(len(found), -1)


def weights(tail: Tail, value: Any, axis: int, class_id: int) -> Any:
    """Returns Grad-CAM's weights of one image, [N].

    Args:
        tail: of the file, up to the logits.
        value: of the layer, with the batch of 1 and its grid in the file's own order.
        axis: of the channels.
        class_id: whose logit it is.
    """
    value = np.asarray(value, np.float64)
    step = _STEP * float(np.abs(value).max())
    count = value.shape[axis]
    found = np.zeros(count)
    for first in range(0, count, _TOGETHER):
        channels = range(first, min(count, first + _TOGETHER))
        raised = np.repeat(value, 2 * len(channels), 0)
        for i, channel in enumerate(channels):
            place = [slice(None)] * (value.ndim - 1)
            place[axis - 1] = channel
            raised[(2 * i, *place)] += step
            raised[(2 * i + 1, *place)] -= step
        scores = tail(raised)[:, class_id].reshape(-1, 2)
        found[first : first + len(channels)] = scores[:, 0] - scores[:, 1]
    return found / (2 * step * (value.size / count))


def _stored(graph: onnx.GraphProto) -> set[str]:
    return {t.name for t in graph.initializer}


def _double(tensor: onnx.TensorProto) -> onnx.TensorProto:
    if tensor.data_type not in _FLOATS:
        return tensor
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name)


def _double_node(node: onnx.NodeProto) -> onnx.NodeProto:
    """Returns a node whose constants and casts are float64."""
    copied = onnx.NodeProto()
    copied.CopyFrom(node)
    for attribute in copied.attribute:
        if attribute.name == "value" and attribute.t.data_type in _FLOATS:
            attribute.t.CopyFrom(_double(attribute.t))
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _FLOATS:
            attribute.i = TensorProto.DOUBLE
    return copied
