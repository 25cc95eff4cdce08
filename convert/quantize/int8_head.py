"""Stores the sigmoid branch's matrices in 8 bits; the softmax branch keeps every bit.

A second head of half a gigabyte costs what reading it costs. Its weights are stored as int8
with a scale for each output channel: int8 [K, N] -> DequantizeLinear -> Gemm or MatMul. That
is standard ONNX since opset 13, and the form in which backends keep the weights small while
they multiply:

- ONNX Runtime makes one MatMulNBits of the three (its pull requests 27614 and 27769; seen in
  1.32). It wants [K, N], the scales along axis 1, and a DequantizeLinear that nothing else
  reads; a Gemm with transB is left alone, and then is slower than float32.
- OpenVINO keeps the int8 matrix in a FullyConnected; TensorRT takes int8 constants directly
  before a DequantizeLinear only, so nothing (a Transpose) may stand between the two.

So a matrix that is used both ways, forwards and in the backward pass, is stored twice: it is read
twice anyway, and two times 8 bits are still half of 32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import onnx
from onnx import helper, numpy_helper

from sigcam.convert.onnx_graph import drop_unused
from sigcam.core.errors import ExportError
from sigcam.core.spec import Branch
from sigcam.core.types import Array

SMALLEST_MATRIX = 1 << 20
"""Entries of a matrix below which reading it takes no time that counts (4 MB in float32)."""

_LARGEST = 127  # symmetric, so that there is no zero point
_CHOICES = ("ArgMax", "TopK")
_EVIDENCE = {"evidence_logits", "sigmoid_logits"}


def quantize_sigmoid_head(
    model: onnx.ModelProto, branch: Branch = "sigmoid", *, smallest: int = SMALLEST_MATRIX
) -> onnx.ModelProto:
    """Stores the sigmoid branch's large matrices in 8 bits.

    Converted are matrices [K, N] or [N, K] that a Gemm or a MatMul multiplies by from the
    right, towards the evidence and in the backward pass to the target layer. Nothing that the
    logits or a choice of classes depends on is touched, so both stay bit-equal. In an artifact
    of the softmax branch the CAMs stay as they are too, and only what the evidence logits are
    made of is converted.

    Rounding is to nearest: an entry is off by at most 1/254 of the largest magnitude in its
    output channel. How far that moves the CAMs depends on the weights and isn't measured here.

    Args:
        model: an artifact with its weights in it; it isn't changed.
        branch: the branch that its CAMs are of.
        smallest: number of entries below which a matrix stays in float32.

    Returns:
        The converted model, with the spec that the model had.

    Raises:
        ExportError: no matrix is worth converting, or one isn't finite.

    Example:
        >>> text = "g (float[1,2] x) => (float[1,2] logits, float[1,1] evidence_logits)"
        >>> text += " <float[2,1] w = {1, -2}> { logits = Relu(x) evidence_logits = MatMul(x, w) }"
        >>> model = helper.make_model(onnx.parser.parse_graph(text))
        >>> converted = quantize_sigmoid_head(model, smallest=2)
        >>> [node.op_type for node in converted.graph.node]
        ['Relu', 'DequantizeLinear', 'MatMul']
    """
    uses = _uses(model.graph, branch, smallest)
    if not uses:
        raise ExportError(
            f"the sigmoid branch must have a matrix of at least {smallest:,} entries to gain "
            f"from 8 bits, found none; a head without large layers costs next to nothing in "
            f"float32, so use the artifact as it is"
        )
    converted = copy.deepcopy(model)
    _convert(converted.graph, uses)
    return converted


def quantized(matrix: Array, name: str = "the matrix") -> tuple[Array, Array]:
    """Rounds a matrix whose columns are output channels to 8 bits, with a scale for each.

    Args:
        matrix: float32 [K, N].
        name: what an error calls the matrix.

    Returns:
        Levels, int8 [K, N], -127 to 127, and scales, float32 [N], > 0: the matrix is nearly
        their product.

    Raises:
        ExportError: a weight is infinite or not a number.

    >>> levels, scales = quantized(np.array([[1.27, 0.0], [-0.01, 0.0]], np.float32))
    >>> levels.tolist(), scales.round(4).tolist()
    ([[127, 0], [-1, 0]], [0.009999999776482582, 1.0])
    """
    peak = np.maximum(matrix.max(0), -matrix.min(0))
    if not np.isfinite(peak).all():
        raise ExportError(f"weights must be finite, {name} has some that aren't; train them again")
    # A peak so small that its scale would be zero, or lose its digits, is one of zeros.
    scale = np.where(peak > 1e-30, peak / _LARGEST, 1).astype(np.float32)
    scaled = matrix / scale
    np.rint(scaled, out=scaled)
    return np.ascontiguousarray(scaled, np.int8), scale


def _uses(graph: onnx.GraphProto, branch: Branch, smallest: int) -> dict[int, tuple[str, bool]]:
    """Finds products to convert: a node's index to its matrix and whether that is transposed."""
    exact = _before(graph, _exact(graph, branch))
    kept = {name for index in exact for name in graph.node[index].input}
    large = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and len(tensor.dims) == 2
        and tensor.dims[0] * tensor.dims[1] >= smallest
    }
    found = {}
    for index, node in enumerate(graph.node):
        transposed = _right_factor(node)
        if transposed is not None and node.input[1] in large - kept:
            found[index] = node.input[1], transposed
    return found


def _exact(graph: onnx.GraphProto, branch: Branch) -> set[str]:
    """Names the values that must stay bit-equal."""
    outputs = {value.name for value in graph.output}
    exact = outputs - _EVIDENCE if branch != "sigmoid" else outputs & {"logits"}
    # finercam chooses its similar classes by the softmax logits.
    return exact.union(*(node.input for node in graph.node if node.op_type in _CHOICES))


def _before(graph: onnx.GraphProto, values: Iterable[str]) -> set[int]:
    """Returns the indices of the nodes that any of the values depends on."""
    made_by = {name: index for index, node in enumerate(graph.node) for name in node.output}
    found: set[int] = set()
    pending = list(values)
    while pending:
        index = made_by.get(pending.pop())
        if index is not None and index not in found:
            found.add(index)
            pending += graph.node[index].input
    return found


def _right_factor(node: onnx.NodeProto) -> bool | None:
    """Tells whether a product's right factor is transposed; None if it is no plain product."""
    if node.op_type == "MatMul":
        return False
    if node.op_type != "Gemm":
        return None
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if values.get("alpha", 1) != 1 or values.get("beta", 1) != 1 or values.get("transA", 0):
        return None
    return bool(values.get("transB", 0))


def _convert(graph: onnx.GraphProto, uses: dict[int, tuple[str, bool]]) -> None:
    """Puts a DequantizeLinear before each of the products."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes, made = [], set()
    for index, node in enumerate(graph.node):
        if index in uses:
            name, transposed = uses[index]
            base = f"{name}/{'forward' if transposed else 'backward'}"
            if base not in made:
                made.add(base)
                matrix = numpy_helper.to_array(stored[name])
                levels, scale = quantized(matrix.T if transposed else matrix, name)
                graph.initializer.append(numpy_helper.from_array(levels, f"{base}/int8"))
                graph.initializer.append(numpy_helper.from_array(scale, f"{base}/scale"))
            # One for each reader: ONNX Runtime fuses none that two products read.
            dequantized = f"{base}/{index}"
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [f"{base}/int8", f"{base}/scale"], [dequantized], axis=1
                )
            )
            node.input[1] = dequantized
            _drop(node, "transB")
        nodes.append(copy.deepcopy(node))
    del graph.node[:]
    graph.node.extend(nodes)
    drop_unused(graph)


def _drop(node: onnx.NodeProto, attribute: str) -> None:
    """Takes an attribute from a node."""
    kept = [a for a in node.attribute if a.name != attribute]
    del node.attribute[:]
    node.attribute.extend(kept)
