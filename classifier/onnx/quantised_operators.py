"""Writes quantised operators as float ones between a DequantizeLinear and a QuantizeLinear.

ONNX Runtime's quantiser has two forms: pairs of rounding and its inverse around float operators,
and operators that compute on integers ("QLinearConv"). The second becomes the first here, with the
weights as float32 already; `quantised_graph` then takes the rounding out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.tensors import array_of, attributes_of

if TYPE_CHECKING:
    import onnx

_MICROSOFT = "com.microsoft"
_KEEPS = {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
"""Operators that may also take integers, and only move or choose them."""


class _Rewriter:
    """Rewrites a graph; `figures` holds the scale and zero point of each integer value."""

    def __init__(self, graph: onnx.GraphProto, folder: Path | None) -> None:
        self.folder = folder
        self.graph, self.stored = graph, {t.name: t for t in graph.initializer}
        self.figures: dict[str, tuple[str, str]] = {}
        self.nodes: list[Any] = []

    def array(self, name: str) -> Any:
        """Returns a stored array; None where it isn't stored."""
        return array_of(self.stored[name], self.folder) if name in self.stored else None

    def add(self, operator: str, inputs: Sequence[str], output: str, name: str, **own: Any) -> str:
        """Adds a node and returns the name of what it gives."""
        import onnx

        self.nodes.append(onnx.helper.make_node(operator, inputs, [output], name, **own))
        return output

    def store(self, name: str, array: Any) -> str:
        """Stores an array and returns its name."""
        import onnx

        self.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    def opened(self, node: Any, index: int, figures: Sequence[str] = ()) -> str:
        """Adds the float value of an input; its scale and zero point are the next two, or given."""
        figures = figures or node.input[index + 1 : index + 3]
        output = f"{node.output[0]}/float_{index}"
        inputs = [node.input[index], *figures]
        return self.add("DequantizeLinear", inputs, output, f"{node.name}/{output}")

    def closed(
        self, node: Any, operator: str, inputs: Sequence[str], figures: Sequence[str], own: Any
    ) -> bool:
        """Adds the float operator and the rounding of its result; True, for the table."""
        value = f"{node.output[0]}/float"
        self.add(operator, inputs, value, node.name or node.output[0], **own)
        scale, zero = figures
        self.add(
            "QuantizeLinear", [value, scale, zero], node.output[0], f"{node.output[0]}/rounded"
        )
        self.figures[node.output[0]] = scale, zero
        return True


def expand_quantised(model: onnx.ModelProto, folder: Path | None = None) -> None:
    """Rewrites a graph's operators on integers; those that aren't known stay as they are.

    Args:
        model: the graph; it is changed.
        folder: of the files with the weights that aren't in the graph itself.
    """
    graph = model.graph
    if not any(node.op_type.startswith("Q") for node in graph.node):
        return
    rewriter = _Rewriter(graph, folder)
    for node in graph.node:
        before, stored = len(rewriter.nodes), len(graph.initializer)
        function = _TABLE.get((node.domain, node.op_type))
        if node.op_type in _KEEPS and node.input[0] in rewriter.figures:
            function = _kept
        if function is None or not function(rewriter, node, attributes_of(node)):
            del rewriter.nodes[before:], graph.initializer[stored:]
            rewriter.nodes.append(node)
            if node.op_type == "QuantizeLinear" and len(node.input) > 2:
                rewriter.figures[node.output[0]] = node.input[1], node.input[2]
    del graph.node[:]
    graph.node.extend(rewriter.nodes)


def _kept(rewriter: _Rewriter, node: Any, own: dict[str, Any]) -> bool:
    """Opens and closes an operator that moves integers with the figures that they have."""
    figures = rewriter.figures[node.input[0]]
    inputs = [rewriter.opened(node, 0, figures), *node.input[1:]]
    return rewriter.closed(node, node.op_type, inputs, figures, own)


def _float_weights(rewriter: _Rewriter, node: Any, index: int, axis: int) -> str | None:
    """Stores the float form of weights, whose scales may be one for each output."""
    whole, scale, zero = (rewriter.array(n) for n in node.input[index : index + 3])
    if whole is None or scale is None or zero is None:
        return None
    shape = [-1 if i == axis and scale.size > 1 else 1 for i in range(whole.ndim)]
    shifted = whole.astype(np.float32) - zero.astype(np.float32).reshape(shape)
    name = f"{node.output[0]}/{node.input[index]}"
    return rewriter.store(name, shifted * scale.astype(np.float32).reshape(shape))


def _float_bias(rewriter: _Rewriter, node: Any, index: int) -> str | None:
    """Stores the float form of a bias, whose scale is that of input times weights."""
    whole, *scales = (rewriter.array(node.input[i]) for i in (index, 1, 4))
    if whole is None or any(s is None for s in scales):
        return None
    scale = scales[0].astype(np.float32).reshape(-1) * scales[1].astype(np.float32).reshape(-1)
    bias = whole.astype(np.float32) * scale
    return rewriter.store(f"{node.output[0]}/{node.input[index]}", bias)


def _conv(rewriter: _Rewriter, node: Any, own: dict[str, Any]) -> bool:
    weights = _float_weights(rewriter, node, 3, 0)
    inputs = [rewriter.opened(node, 0), weights]
    if len(node.input) > 8 and node.input[8]:
        inputs.append(_float_bias(rewriter, node, 8))
    return None not in inputs and rewriter.closed(node, "Conv", inputs, node.input[6:8], own)  # type: ignore[arg-type]


def _matmul(rewriter: _Rewriter, node: Any, _own: dict[str, Any]) -> bool:
    second = _float_weights(rewriter, node, 3, 1) or rewriter.opened(node, 3)
    inputs = [rewriter.opened(node, 0), second]
    return rewriter.closed(node, "MatMul", inputs, node.input[6:8], {})


def _gemm(rewriter: _Rewriter, node: Any, own: dict[str, Any]) -> bool:
    weights = _float_weights(rewriter, node, 3, 0 if own.get("transB", 0) else 1)
    inputs = [rewriter.opened(node, 0), weights]
    if node.input[6]:
        inputs.append(_float_bias(rewriter, node, 6))
    if None in inputs or own.get("alpha", 1.0) != 1.0:
        return False
    if len(node.input) < 9 or not node.input[7]:  # its result isn't rounded
        rewriter.add("Gemm", inputs, node.output[0], node.name or node.output[0], **own)  # type: ignore[arg-type]
        return True
    return rewriter.closed(node, "Gemm", inputs, node.input[7:9], own)  # type: ignore[arg-type]


def _binary(operator: str) -> Callable[[_Rewriter, Any, dict[str, Any]], bool]:
    def function(rewriter: _Rewriter, node: Any, _own: dict[str, Any]) -> bool:
        pair = [_float_weights(rewriter, node, i, -1) or rewriter.opened(node, i) for i in (0, 3)]
        return rewriter.closed(node, operator, pair, node.input[6:8], {})

    return function


def _unary(operator: str) -> Callable[[_Rewriter, Any, dict[str, Any]], bool]:
    def function(rewriter: _Rewriter, node: Any, own: dict[str, Any]) -> bool:
        if own.pop("channels_last", 0):
            return False
        inputs = [rewriter.opened(node, 0)]
        return rewriter.closed(node, operator, inputs, node.input[3:5], own)

    return function


def _concat(rewriter: _Rewriter, node: Any, own: dict[str, Any]) -> bool:
    parts = [rewriter.opened(node, i) for i in range(2, len(node.input), 3)]
    return rewriter.closed(node, "Concat", parts, node.input[:2], own)


_TABLE: dict[tuple[str, str], Callable[[_Rewriter, Any, dict[str, Any]], bool]] = {
    ("", "QLinearConv"): _conv,
    ("", "QLinearMatMul"): _matmul,
    (_MICROSOFT, "QGemm"): _gemm,
    (_MICROSOFT, "QLinearAdd"): _binary("Add"),
    (_MICROSOFT, "QLinearMul"): _binary("Mul"),
    (_MICROSOFT, "QLinearAveragePool"): _unary("AveragePool"),
    (_MICROSOFT, "QLinearGlobalAveragePool"): _unary("GlobalAveragePool"),
    (_MICROSOFT, "QLinearSigmoid"): _unary("Sigmoid"),
    (_MICROSOFT, "QLinearLeakyRelu"): _unary("LeakyRelu"),
    (_MICROSOFT, "QLinearConcat"): _concat,
}
