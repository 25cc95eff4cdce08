"""Takes the rounding between a quantised network's layers out of its graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.tensors import array_of
from sigcam.classifier.onnx.values import users_of

if TYPE_CHECKING:
    import onnx

_CLIP_WITH_INPUTS = 11
"""The opset since which a Clip's bounds are inputs."""


def float_path(model: onnx.ModelProto, opset: int) -> int:
    """Replaces each QuantizeLinear and its DequantizeLinear by a Clip to the range of the two.

    The range stays, because quantisers leave out a ReLU that it does the work of. Weights that are
    stored as integers stay as they are.

    Args:
        model: the graph; it is changed.
        opset: the version of its operators.

    Returns:
        The number of pairs that were replaced.
    """
    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    users = users_of(graph)
    outputs = {o.name for o in graph.output}
    pairs = 0
    for node in list(graph.node):
        result = node.output[0] if node.output else ""
        after = users[result]
        if (
            node.op_type != "QuantizeLinear"
            or node.input[0] in stored
            or result in outputs
            or any(n.op_type != "DequantizeLinear" for n in after)
        ):
            continue
        bounds = _bounds(node, stored)
        if bounds is None:
            continue
        for other in after[:1]:
            _make_clip(other, node.input[0], bounds, graph, opset)
        for other in after[1:]:  # the same value again
            _replace(other, "Identity", after[0].output[0])
        graph.node.remove(node)
        pairs += 1
    return pairs


def _bounds(node: onnx.NodeProto, stored: dict[str, Any]) -> tuple[float, float] | None:
    """Returns the smallest and largest value that a QuantizeLinear of one scale can give."""
    names = list(node.input[1:])
    if not all(name in stored for name in names if name):
        return None
    arrays = [array_of(stored[name]) for name in names if name]
    zero = arrays[1] if len(arrays) > 1 else np.zeros((), np.uint8)
    if any(a.size != 1 for a in arrays) or zero.dtype.kind not in "iu":
        return None
    scale, limits = float(arrays[0].reshape(-1)[0]), np.iinfo(zero.dtype)
    middle = int(zero.reshape(-1)[0])
    return (int(limits.min) - middle) * scale, (int(limits.max) - middle) * scale


def _make_clip(
    node: onnx.NodeProto, source: str, bounds: tuple[float, float], graph: Any, opset: int
) -> None:
    """Turns a DequantizeLinear into a Clip of the value before the pair."""
    import onnx

    result = node.output[0]
    _replace(node, "Clip", source)
    for kind, value in zip(("min", "max"), bounds, strict=True):
        if opset < _CLIP_WITH_INPUTS:
            node.attribute.append(onnx.helper.make_attribute(kind, value))
            continue
        name = f"{result}_{kind}"
        array = np.array(value, np.float32)
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        node.input.append(name)


def _replace(node: onnx.NodeProto, operator: str, source: str) -> None:
    """Turns a node into another one of a single input, without attributes."""
    del node.input[:], node.attribute[:]
    node.op_type = operator
    node.input.append(source)
