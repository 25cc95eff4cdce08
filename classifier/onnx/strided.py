"""Undoes torch's as_strided where it is a Reshape.

torch.onnx's exporter writes the pooling of a network for a fixed batch as a mean whose memory is
looked at anew: all elements in a row, and a Gather of the numbers 0, 1, 2, ... in another shape. In
that form nothing tells the batch from the channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sigcam.classifier.onnx.tensors import array_of

if TYPE_CHECKING:
    import onnx


def undo_strided(model: onnx.ModelProto) -> int:
    """Replaces Gathers of all elements in their order by Reshapes.

    Whether they are all is seen when the graph is run: a Reshape to fewer fails.

    Args:
        model: the graph; it is changed.

    Returns:
        The number of nodes that were replaced.
    """
    from onnx import numpy_helper

    graph = model.graph
    stored = {t.name: t for t in graph.initializer}
    rows = {
        node.output[0]: node.input[0]
        for node in graph.node
        if node.op_type == "Reshape"
        and len(node.input) == 2
        and node.input[1] in stored
        and array_of(stored[node.input[1]]).tolist() == [-1]
    }
    replaced = 0
    for node in graph.node:
        if node.op_type != "Gather" or len(node.input) != 2 or node.input[0] not in rows:
            continue
        if node.input[1] not in stored or any(a.name == "axis" and a.i for a in node.attribute):
            continue
        places = array_of(stored[node.input[1]])
        if not np.array_equal(places.reshape(-1), np.arange(places.size)):
            continue
        target = f"{node.output[0]}_shape"
        array = np.array(places.shape, np.int64)
        graph.initializer.append(numpy_helper.from_array(array, target))
        source = rows[node.input[0]]
        del node.input[:], node.attribute[:]
        node.op_type = "Reshape"
        node.input.extend([source, target])
        replaced += 1
    return replaced
