"""Walks over the nodes of an ONNX graph, which is passed in: nothing here imports onnx."""

from __future__ import annotations

import itertools
from typing import Any

from sigcam.core.errors import ArtifactError


def name_nodes(graph: Any) -> set[str]:
    """Gives every node a name of its own, by which converters tell nodes apart.

    Returns:
        The names of all nodes.

    Example:
        >>> from onnx import parser
        >>> graph = parser.parse_graph("g (float[2] x) => (float[2] y) { h = Relu(x) y = Relu(h) }")
        >>> sorted(name_nodes(graph))
        ['Relu_0', 'Relu_1']
    """
    taken: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in taken:
            names = (f"{node.op_type}_{number}" for number in itertools.count())
            node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
    return taken


def leading_to_logits(graph: Any, source: object) -> set[str]:
    """Returns the names of the nodes that the logits depend on: backbone and softmax head.

    The features of every target layer are among them. The sigmoid branch, the CAM weights, the
    backward pass and the sums of the CAMs are not.

    Args:
        graph: the graph, whose nodes have names of their own.
        source: where the graph comes from, for the error.

    Raises:
        ArtifactError: the graph has no output `logits`.

    Example:
        >>> from onnx import parser
        >>> text = "g (float[2] x) => (float[2] logits, float[2] y) { logits = Relu(x) y = Exp(x) }"
        >>> graph = parser.parse_graph(text)
        >>> _ = name_nodes(graph)
        >>> leading_to_logits(graph, "model.onnx")
        {'Relu_0'}
    """
    made_by = {name: node for node in graph.node for name in node.output}
    if "logits" not in made_by:
        raise ArtifactError(f"{source} has no output `logits`, so it is no artifact of sigcam")
    found: set[str] = set()
    pending = ["logits"]
    while pending:
        node = made_by.get(pending.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            pending += node.input
    return found


def drop_unused(graph: Any) -> None:
    """Takes out the constants that no node reads any more.

    Args:
        graph: the graph, which is changed.

    Example:
        >>> from onnx import parser
        >>> constants = "<float[1] a = {1}, float[1] b = {2}>"
        >>> text = f"g (float[1] x) => (float[1] y) {constants} {{ y = Add(x, a) }}"
        >>> graph = parser.parse_graph(text)
        >>> drop_unused(graph)
        >>> [tensor.name for tensor in graph.initializer]
        ['a']
    """
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    # One by one from the end: to fill the list anew would copy every tensor that stays.
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]
