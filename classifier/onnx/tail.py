"""Runs the part of an ONNX file behind a value in ONNX Runtime, in float64 or float32.

What was read of a file is differentiated; this gives differences of the file itself to compare
the derivatives with.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.compare import open_session
from sigcam.classifier.onnx.kept import free_targets
from sigcam.classifier.onnx.load import OnnxClassifier
from sigcam.classifier.onnx.tensors import array_of
from sigcam.classifier.onnx.values import FLOATS, OWN, needed

if TYPE_CHECKING:
    import onnx

_FLOAT, _DOUBLE = 1, 11
_KINDS = {_FLOAT: np.float32, _DOUBLE: np.float64}
_LARGE = 2**20
"""Weights of more elements are given to a session beside the graph."""
_MOST_DOUBLE = 2**31


class FileTail:
    """The part of a file from one of its values to its output.

    Values beside it that the output needs come out of the image, as in the file.

    Attributes:
        is_double: whether it computes in float64; float32 where ONNX Runtime has no float64
            for one of its operators, or its weights would take over 2 GiB then.
    """

    def __init__(self, source: OnnxClassifier, value: str) -> None:
        """Cuts the graph.

        Args:
            source: the graph that was read, with its file.
            value: the name of a value in the file.
        """
        self._source, self._value = source, value
        session = None if self._is_large() else self._session(_DOUBLE)
        self.is_double = session is not None
        self._run = session or self._session(_FLOAT)

    @property
    def runs(self) -> bool:
        """Returns whether ONNX Runtime runs it at all."""
        return self._run is not None

    def __call__(self, value: Any, images: Any) -> Any:
        """Returns the file's output [B, C] for another value.

        Args:
            value: float64, in the value's shape.
            images: float32 [B, n, H, W]; the output is that of these, but for the value.
        """
        kind = np.float64 if self.is_double else np.float32
        assert self._run is not None  # noqa: S101 (`runs` says so)
        names = {i.name: i for i in self._run.get_inputs()}
        given = {self._value: np.ascontiguousarray(value, dtype=kind)}
        if self._source.input_name in names:
            is_bytes = self._source.takes.is_bytes
            images = np.transpose(images, (0, 2, 3, 1)) if self._source.takes.nhwc else images
            given[self._source.input_name] = np.ascontiguousarray(
                images, dtype=np.uint8 if is_bytes else kind
            )
        found = self._run.run(None, given)[0]
        return found.reshape(len(value), -1).astype(np.float64)

    def _is_large(self) -> bool:
        """Returns whether its weights, in float64, would take much of a machine's memory."""
        assert self._source.held is not None  # noqa: S101 (the caller has looked)
        graph = self._source.held.model.graph
        behind = needed(graph, self._source.output_name, given=self._value)
        used = {name for node in behind for name in node.input}
        sizes = [math.prod(t.dims) for t in graph.initializer if t.name in used]
        return bool(8 * sum(sizes) > _MOST_DOUBLE)

    def _session(self, element: int) -> Any:
        """Opens the part in a floating type; None where ONNX Runtime can't."""
        assert self._source.held is not None  # noqa: S101 (the caller has looked)
        model, weights = tail_of(self._source, self._value, element)
        try:
            return open_session(model.SerializeToString(), self._source.held.path.parent, weights)
        except Exception:  # ONNX Runtime's own errors have no common base
            return None


def tail_of(
    source: OnnxClassifier, value: str, element: int
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Cuts a file's graph behind a value, with all floating types made one.

    Args:
        source: the graph that was read, with its file.
        value: the name of a value in the file, which becomes an input.
        element: the floating type, as ONNX numbers it: 1 for float32, 11 for float64.

    Returns:
        The graph, and its large weights by name: in float64 they may be too many for a message,
        so in the graph they are said to be in a file.

    Example:
        tail_of(source, "/layer4/Relu_output_0", 11)[0].graph.input[0].name
    """
    import onnx

    assert source.held is not None  # noqa: S101 (the caller has looked)
    model = source.held.model
    behind = needed(model.graph, source.output_name, given=value)
    nodes = [_widened_node(node, element) for node in behind]
    used = {name for node in nodes for name in node.input}
    stored, weights = [], {}
    for tensor in model.graph.initializer:
        if tensor.name not in used:
            continue
        if tensor.data_type == element:  # also where it lies in a file
            stored.append(tensor)
        elif tensor.data_type in FLOATS and math.prod(tensor.dims) > _LARGE:
            array = array_of(tensor, source.held.path.parent)
            weights[tensor.name] = array.astype(_KINDS[element], copy=False)
            stored.append(_elsewhere(tensor, element))
        else:
            stored.append(_widened(tensor, element))
    stored += free_targets(nodes, source.targets, {t.name for t in stored})
    inputs = [onnx.helper.make_tensor_value_info(value, element, None)]
    if source.input_name in used:
        kind = source.takes.element if source.takes.is_bytes else element
        inputs.append(onnx.helper.make_tensor_value_info(source.input_name, kind, None))
    output = onnx.helper.make_tensor_value_info(source.output_name, element, None)
    graph = onnx.helper.make_graph(nodes, "tail", inputs, [output], stored)
    own = [o for o in model.opset_import if o.domain in OWN]
    version = max(8, model.ir_version)
    return onnx.helper.make_model(graph, opset_imports=own, ir_version=version), weights


def _widened_node(node: onnx.NodeProto, element: int) -> onnx.NodeProto:
    """Copies a node; what it stores or casts to in a floating type becomes the one type."""
    changed = type(node)()
    changed.CopyFrom(node)
    for attribute in changed.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
            attribute.i = element
        elif node.op_type in ("Constant", "ConstantOfShape") and attribute.name == "value":
            attribute.t.CopyFrom(_widened(attribute.t, element))
    return changed


def _widened(tensor: onnx.TensorProto, element: int) -> onnx.TensorProto:
    from onnx import numpy_helper

    if tensor.data_type not in FLOATS or tensor.data_type == element:
        return tensor
    array = np.asarray(numpy_helper.to_array(tensor)).astype(_KINDS[element])
    return numpy_helper.from_array(array, tensor.name)


def _elsewhere(tensor: onnx.TensorProto, element: int) -> onnx.TensorProto:
    """Returns a tensor of the same shape that is said to lie in a file."""
    made = type(tensor)(
        name=tensor.name, dims=tensor.dims, data_type=element, data_location=tensor.EXTERNAL
    )
    made.external_data.add(key="location", value="given-to-the-session")
    return made
