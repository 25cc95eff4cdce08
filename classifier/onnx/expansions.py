"""Writes operators of other domains with ONNX's own: what optimisers fuse, scikit-learn's heads.

ONNX Runtime's optimiser (up to its extended level) writes operators of "com.microsoft" for a
convolution and its activation, say; skl2onnx writes those of "ai.onnx.ml" for linear classifiers.
They are taken apart before anything else, so that everything behind sees ONNX's own. Nodes that
aren't in the table, or have a form that isn't, stay; the checks refuse them by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sigcam.classifier.onnx.tensors import attributes_of
from sigcam.classifier.onnx.values import kind_of, opset_of

if TYPE_CHECKING:
    import onnx

_MICROSOFT, _ML = "com.microsoft", "ai.onnx.ml"
_AXES_INPUT = 18
"""The opset since which the axes of a reduction are an input."""


class Writer:
    """Collects the nodes that take the place of one.

    Attributes:
        node: the one that is replaced.
        nodes: those in its place.
        opset: the version of ONNX's own operators.
        makers: name of a value to the node that gave it, in the graph so far.
    """

    def __init__(
        self, node: onnx.NodeProto, graph: onnx.GraphProto, opset: int, makers: dict[str, Any]
    ) -> None:
        self.node, self.graph, self.opset, self.makers = node, graph, opset, makers
        self.nodes: list[Any] = []
        self.base = node.name or node.output[0]
        self._attributes = attributes_of(node)

    def get(self, attribute: str, default: Any = None) -> Any:
        """Returns an attribute of the node that is replaced."""
        return self._attributes.get(attribute, default)

    @property
    def without_activation(self) -> dict[str, Any]:
        """Returns the attributes that the operator has without the activation fused to it."""
        return {k: v for k, v in self._attributes.items() if not k.startswith("activation")}

    def input(self, index: int) -> str:
        """Returns the name of an input; "" for one that is left out."""
        return self.node.input[index] if index < len(self.node.input) else ""

    def constant(self, value: Any, kind: str) -> str:
        """Stores an array and returns its name."""
        import onnx

        name = f"{self.node.output[0]}/{kind}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, operator: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Adds a node and returns the name of what it gives; a new one unless it is named."""
        import onnx

        part = f"{operator}_{len(self.nodes)}"
        result = output or f"{self.node.output[0]}/{part}"
        # The node that gives the old one's value keeps the name, so that layers are found by it.
        name = self.base if output == self.node.output[0] else f"{self.base}/{part}"
        self.nodes.append(onnx.helper.make_node(operator, inputs, [result], name, **attributes))
        return result


def expand(model: onnx.ModelProto) -> list[str]:
    """Replaces the operators of other domains that can be written with ONNX's own.

    Args:
        model: the graph, without functions of its own; it is changed.

    Returns:
        The operators that were replaced, each once, with their domains.
    """
    opset = opset_of(model) or 0
    graph, found = model.graph, dict[str, None]()
    nodes: list[Any] = []
    makers: dict[str, Any] = {}
    for node in graph.node:
        function = _TABLE.get((node.domain, node.op_type))
        made = [node]
        if function is not None:
            writer = Writer(node, graph, opset, makers)
            stored = len(graph.initializer)
            if function(writer):
                found[kind_of(node)] = None
                made = writer.nodes
            else:
                del graph.initializer[stored:]
        nodes += made
        makers.update((name, node) for name in node.output)
    if found:
        del graph.node[:]
        graph.node.extend(nodes)
    return list(found)


def _activated(writer: Writer, x: str, name: str, alpha: float, beta: float) -> bool:
    """Adds an activation; returns whether it is known."""
    out = writer.node.output[0]
    if name == "Relu" or name in ("Tanh", "Sigmoid"):
        writer.add(name, [x], out)
    elif name == "LeakyRelu":
        writer.add(name, [x], out, alpha=alpha)
    elif name == "HardSigmoid":
        writer.add(name, [x], out, alpha=alpha, beta=beta)
    elif name == "Clip":
        bounds = [writer.constant(np.float32(v), k) for v, k in ((alpha, "min"), (beta, "max"))]
        if writer.opset < 11:
            writer.add(name, [x], out, min=alpha, max=beta)
        else:
            writer.add(name, [x, *bounds], out)
    else:
        return False
    return True


def _fused_conv(writer: Writer) -> bool:
    inputs = [name for name in writer.node.input[:3] if name]
    x = writer.add("Conv", inputs, **writer.without_activation)
    if writer.input(3):
        x = writer.add("Add", [x, writer.input(3)])
    alpha, beta = (*writer.get("activation_params", []), 0.0, 0.0)[:2]
    return _activated(writer, x, writer.get("activation", ""), alpha, beta)


def _fused_gemm(writer: Writer) -> bool:
    x = writer.add(
        "Gemm", [name for name in writer.node.input if name], **writer.without_activation
    )
    alpha, beta = writer.get("activation_alpha", 0.0), writer.get("activation_beta", 0.0)
    return _activated(writer, x, writer.get("activation", ""), alpha, beta)


def _fused_matmul(writer: Writer) -> bool:
    a = _matrices("ij", bool(writer.get("transA", 0)), bool(writer.get("transBatchA", 0)))
    b = _matrices("jk", bool(writer.get("transB", 0)), bool(writer.get("transBatchB", 0)))
    alpha, out = writer.get("alpha", 1.0), writer.node.output[0]
    inner = "" if alpha != 1.0 else out
    pair = [writer.input(0), writer.input(1)]
    if (a, b) == ("...ij", "...jk"):
        x = writer.add("MatMul", pair, inner)
    elif writer.opset >= 12:
        x = writer.add("Einsum", pair, inner, equation=f"{a},{b}->...ik")
    else:
        return False
    if alpha != 1.0:
        writer.add("Mul", [x, writer.constant(np.float32(alpha), "alpha")], out)
    return True


def _matrices(axes: str, turned: bool, apart: bool) -> str:
    """Names a product's axes; apart are matrices whose first axis is before all others."""
    axes = axes[::-1] if turned else axes
    return f"{axes[0]}...{axes[1]}" if apart else f"...{axes}"


def _gelu(writer: Writer) -> bool:
    x = writer.input(0)
    if writer.input(1):
        x = writer.add("Add", [x, writer.input(1)])
    scaled = writer.add("Mul", [x, writer.constant(np.float32(math.sqrt(0.5)), "root")])
    shifted = writer.add(
        "Add", [writer.add("Erf", [scaled]), writer.constant(np.float32(1.0), "one")]
    )
    half = writer.add("Mul", [x, writer.constant(np.float32(0.5), "half")])
    writer.add("Mul", [half, shifted], writer.node.output[0])
    return True


def _fast_gelu(writer: Writer) -> bool:
    x = writer.input(0)
    if writer.input(1):
        x = writer.add("Add", [x, writer.input(1)])
    square = writer.add("Mul", [x, x])
    factor = writer.add("Mul", [square, writer.constant(np.float32(0.044715), "cubic")])
    factor = writer.add("Add", [factor, writer.constant(np.float32(1.0), "one")])
    scaled = writer.add("Mul", [x, writer.constant(np.float32(math.sqrt(2 / math.pi)), "root")])
    bent = writer.add("Tanh", [writer.add("Mul", [scaled, factor])])
    half = writer.add("Mul", [x, writer.constant(np.float32(0.5), "half")])
    writer.add("Mul", [half, writer.add("Add", [bent, f"{writer.node.output[0]}/one"])],
               writer.node.output[0])  # fmt: skip
    return True


def _quick_gelu(writer: Writer) -> bool:
    x, alpha = writer.input(0), writer.get("alpha", 1.702)
    scaled = x if alpha == 1.0 else writer.add("Mul", [x, writer.constant(np.float32(alpha), "a")])
    writer.add("Mul", [x, writer.add("Sigmoid", [scaled])], writer.node.output[0])
    return True


def _skip_layer_norm(writer: Writer) -> bool:
    outputs = list(writer.node.output)
    if any(outputs[1:3]) or writer.opset < 17:
        return False
    x = writer.add("Add", [writer.input(0), writer.input(1)])
    if writer.input(4):
        x = writer.add("Add", [x, writer.input(4)])
    if len(outputs) > 3 and outputs[3]:
        x = writer.add("Identity", [x], outputs[3])
    inputs = [name for name in (x, writer.input(2), writer.input(3)) if name]
    writer.add("LayerNormalization", inputs, outputs[0], epsilon=writer.get("epsilon", 1e-12))
    return True


def _scaler(writer: Writer) -> bool:
    offset, scale = (np.asarray(writer.get(k, []), np.float32) for k in ("offset", "scale"))
    x = writer.add("Sub", [writer.input(0), writer.constant(offset, "offset")])
    writer.add("Mul", [x, writer.constant(scale, "scale")], writer.node.output[0])
    return bool(offset.size and scale.size)


_POST = {"NONE": "Identity", "SOFTMAX": "Softmax", "LOGISTIC": "Sigmoid"}


def _linear(writer: Writer, output: str, rows: int) -> bool:
    """Adds the matrix product of a linear model, and what follows it."""
    weights = np.asarray(writer.get("coefficients", []), np.float32)
    bias = np.asarray(writer.get("intercepts", np.zeros(rows)), np.float32)
    after = _POST.get(writer.get("post_transform", "NONE"))
    if after is None or len(bias) != rows or not weights.size or weights.size % rows:
        return False
    matrix = writer.constant(weights.reshape(rows, -1), "coefficients")
    x = writer.add("Gemm", [writer.input(0), matrix, writer.constant(bias, "bias")], transB=1)
    writer.add(after, [x], output, **({"axis": 1} if after == "Softmax" else {}))
    return True


def _linear_classifier(writer: Writer) -> bool:
    labels = len(writer.get("classlabels_ints", []) or writer.get("classlabels_strings", []))
    if len(writer.node.output) != 2 or len(writer.get("intercepts", [])) != labels:
        return False  # two classes with one row have rules of their own
    scores = writer.node.output[1]
    if not _linear(writer, scores, labels):
        return False
    if writer.get("classlabels_ints") == list(range(labels)):
        writer.add("ArgMax", [scores], writer.node.output[0], axis=1, keepdims=0)
    return True


def _linear_regressor(writer: Writer) -> bool:
    return _linear(writer, writer.node.output[0], writer.get("targets", 1))


def _normalizer(writer: Writer) -> bool:
    norm, maker = writer.get("norm", "MAX"), writer.makers.get(writer.input(0))
    out, x = writer.node.output[0], writer.input(0)
    if norm == "L1" and maker is not None and _is_softmax(maker):
        writer.add("Identity", [x], out)  # its rows sum to 1 already
        return True
    operator = {"L1": "ReduceL1", "L2": "ReduceL2"}.get(norm)
    if operator is None:
        return False
    if writer.opset < _AXES_INPUT:
        sums = writer.add(operator, [x], axes=[1], keepdims=1)
    else:
        sums = writer.add(operator, [x, writer.constant(np.array([1]), "axes")], keepdims=1)
    writer.add("Div", [x, sums], out)
    return True


def _is_softmax(node: onnx.NodeProto) -> bool:
    """Returns whether a node is a linear classifier that ends in a softmax."""
    return node.op_type == "LinearClassifier" and any(
        a.name == "post_transform" and a.s == b"SOFTMAX" for a in node.attribute
    )


_TABLE: dict[tuple[str, str], Callable[[Writer], bool]] = {
    (_MICROSOFT, "FusedConv"): _fused_conv,
    (_MICROSOFT, "FusedGemm"): _fused_gemm,
    (_MICROSOFT, "FusedMatMul"): _fused_matmul,
    (_MICROSOFT, "Gelu"): _gelu,
    (_MICROSOFT, "BiasGelu"): _gelu,
    (_MICROSOFT, "FastGelu"): _fast_gelu,
    (_MICROSOFT, "QuickGelu"): _quick_gelu,
    (_MICROSOFT, "SkipLayerNormalization"): _skip_layer_norm,
    (_ML, "Scaler"): _scaler,
    (_ML, "LinearClassifier"): _linear_classifier,
    (_ML, "LinearRegressor"): _linear_regressor,
    (_ML, "Normalizer"): _normalizer,
}
