"""Selects the nodes that may compute in 8 bits.

Only what leads to the logits is considered: the backbone, in which the features of every target
layer lie, and the softmax head. The sigmoid branch, the CAM weights, the backward pass and the
sums of the CAMs are no ancestors of the logits, and stay in float32.

Layers (convolutions and products with constant weights) take 8-bit inputs. Convolutions also
give 8-bit outputs, products float32 ones: the logits aren't rounded, and neither is the residual
stream of a transformer. Between convolutions, a node follows them into 8 bits if all that it
reads comes out of nodes in 8 bits and something in 8 bits reads it, so that values aren't
rounded for nothing. So the normalisation of the image, pooled features and layer norms stay in
float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import onnx

from sigcam.convert.onnx_graph import leading_to_logits
from sigcam.convert.quantize.source import Source
from sigcam.core.errors import UsageError

LAYERS = frozenset({"Conv", "Gemm", "MatMul"})
"""Operators of layers, where their weights are constant."""

PRODUCTS = ("Gemm", "MatMul")
"""Operators of layers whose outputs stay in float32."""

ACTIVATIONS = frozenset({"Relu", "Clip"})
"""Operators that are part of the convolution right before them."""

FOLLOWERS = ACTIVATIONS | {"Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool"}
"""Operators that follow convolutions into 8 bits."""


@dataclass(frozen=True)
class Selection:
    """The nodes that compute in 8 bits.

    Attributes:
        layers: names of convolutions and products, in the order of the graph.
        followers: names of the nodes between them.
    """

    layers: tuple[str, ...]
    followers: tuple[str, ...]

    @property
    def nodes(self) -> tuple[str, ...]:
        """Returns the names of all of them.

        >>> Selection(("conv1", "conv2"), ("add",)).nodes
        ('conv1', 'conv2', 'add')
        """
        return (*self.layers, *self.followers)


def select(source: Source, kept_float: Collection[str] = ()) -> Selection:
    """Selects the nodes of an artifact that may compute in 8 bits.

    Args:
        source: the float32 artifact.
        kept_float: names of layers that are to stay in float32.

    Raises:
        UsageError: a name in `kept_float` that is none of the layers.

    Example:
        >>> from pathlib import Path
        >>> from sigcam.convert.onnx_graph import name_nodes
        >>> text = "g (float[1,1,4,4] x) => (float[1,1,4,4] logits) <float[1,1,1,1] w = {1}>"
        >>> text += " { h = Conv(x, w) p = Relu(h) logits = Conv(p, w) }"
        >>> graph = onnx.parser.parse_graph(text)
        >>> _ = name_nodes(graph)
        >>> source = Source(Path("model.onnx"), None, onnx.helper.make_model(graph))
        >>> select(source)
        Selection(layers=('Conv_0', 'Conv_1'), followers=('Relu_0',))
        >>> select(source, kept_float=["Conv_1"]).layers
        ('Conv_0',)
    """
    graph = source.model.graph
    leading = leading_to_logits(graph, source.path)
    constant = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.name in leading and _is_layer(node, constant)]
    unknown = sorted(set(kept_float) - {node.name for node in layers})
    if unknown:
        raise UsageError(
            f"{source.path} has no layers {', '.join(unknown)} that lead to its logits; those "
            f"that can be kept in float32 are {', '.join(node.name for node in layers)}"
        )
    layers = [node for node in layers if node.name not in kept_float]
    followers = _followers(graph, leading, layers, constant)
    return Selection(tuple(node.name for node in layers), tuple(followers))


def maker_of(source: Source, layer: str) -> str | None:
    """Returns the convolution whose output a layer reads, be it through activations and pools.

    In 8 bits, it would round the input of a layer that is kept in float32.

    Args:
        source: the float32 artifact.
        layer: the layer's name.

    Returns:
        The convolution's name; None where the input is something else, a sum for one, or comes
        from a product.

    Example:
        >>> from pathlib import Path
        >>> from sigcam.convert.onnx_graph import name_nodes
        >>> text = "g (float[1,1,4,4] x) => (float[1,1,4,4] logits) <float[1,1,1,1] w = {1}>"
        >>> text += " { h = Conv(x, w) p = Relu(h) logits = Conv(p, w) }"
        >>> graph = onnx.parser.parse_graph(text)
        >>> _ = name_nodes(graph)
        >>> source = Source(Path("model.onnx"), None, onnx.helper.make_model(graph))
        >>> maker_of(source, "Conv_1"), maker_of(source, "Conv_0")
        ('Conv_0', None)
    """
    made_by = {name: node for node in source.model.graph.node for name in node.output}
    node = next(node for node in source.model.graph.node if node.name == layer)
    before = made_by.get(node.input[0])
    while before is not None and before.op_type in FOLLOWERS - {"Add", "Concat"}:
        before = made_by.get(before.input[0])
    return before.name if before is not None and before.op_type == "Conv" else None


def _is_layer(node: onnx.NodeProto, constant: set[str]) -> bool:
    """Tells whether a node is a layer: an attention's product of two computed values is none."""
    return node.op_type in LAYERS and all(name in constant for name in node.input[1:] if name)


def _followers(
    graph: Any, leading: set[str], layers: list[onnx.NodeProto], constant: set[str]
) -> list[str]:
    """Names the nodes between the layers that follow them into 8 bits, in the graph's order."""
    coarse = {name for node in layers if node.op_type == "Conv" for name in node.output}
    outputs = {value.name for value in graph.output}
    made_by = {name: node for node in layers for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    for node in graph.node:  # in topological order
        read = [name for name in node.input if name and name not in constant]
        joined = node.op_type not in ("Add", "Concat") or len(read) == len(node.input)
        fits = node.op_type in FOLLOWERS and node.name in leading and joined
        if fits and read and coarse.issuperset(read):
            found[node.name] = node
            coarse.update(node.output)
            made_by.update(dict.fromkeys(node.output, node))
    # From the end: what nothing in 8 bits reads needn't be rounded. An activation right after
    # a convolution is part of it.
    needed = {name for node in layers for name in node.input}
    readers: dict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            readers[name] += 1
    for name, node in reversed(list(found.items())):
        before = made_by[node.input[0]]
        of_layer = (
            node.op_type in ACTIVATIONS
            and before.op_type == "Conv"
            and readers[node.input[0]] == 1
            and node.input[0] not in outputs
        )
        if of_layer or needed.intersection(node.output):
            needed.update(node.input)
        else:
            del found[name]
    return [node.name for node in graph.node if node.name in found]
