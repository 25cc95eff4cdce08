"""Walking the nodes of an ONNX graph. The graph is passed in; nothing here imports onnx."""

from __future__ import annotations

import itertools
from typing import Any

from sigcam.core.errors import ArtifactError


def name_nodes(graph: Any) -> set[str]:
    """Gives every node a name of its own: converters tell them apart by it. The names."""
    taken: set[str] = set()
    for node in graph.node:
        if not node.name or node.name in taken:
            names = (f"{node.op_type}_{number}" for number in itertools.count())
            node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
    return taken


def leading_to_logits(graph: Any, source: object) -> set[str]:
    """Names of the nodes that the logits depend on: backbone and softmax head.

    The features of every target layer lie on this way. The sigmoid branch, the CAM weights,
    the way back of the gradients and the sums of the maps don't.

    Args:
        graph: whose nodes have names of their own.
        source: where it comes from, for the error.

    Raises:
        ArtifactError: the graph has no output `logits`.
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
