"""Writes the linear layer that a graph's logits come from in one form, whatever the file has.

Keras, TensorFlow and scikit-learn store the matrix as [N, C] and multiply it from the right
(MatMul, or Gemm with transB 0), and add the bias with a node of its own, at times behind the
Reshape or Squeeze that takes the axes of the image away. PyTorch has [C, N] and one Gemm. What
comes behind (the search for a head's layer, new classes, fresh parameters) knows the last form.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sigcam.classifier.onnx.operators.table import Call

SQUASHING = {"Softmax", "LogSoftmax", "Sigmoid"}
"""What turns logits into probabilities."""

MOVING = {"Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}
"""What leaves every value as it is and takes no part of the logits away."""

_LAYERS = {"MatMul", "Gemm", "Conv"}


@dataclass(frozen=True)
class Part:
    """A node of a graph: what its function is told, and the names of its values."""

    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def in_one_form(parts: list[Part], stored: dict[str, Any], output: str) -> list[Part]:
    """Makes the last linear layer one node with a matrix [C, N] and at most one bias [C].

    A MatMul, or a Gemm of another form, becomes a Gemm with transB 1 and neither alpha nor beta;
    a bias that is added behind it, or behind a 1x1 Conv, becomes the node's own. The node keeps
    its name, and so do matrix and bias. A layer that shares a value with other nodes, or whose
    matrix isn't stored, is left alone.

    Args:
        parts: the nodes, in order.
        stored: name of a stored tensor to its array; matrix and bias are changed in place.
        output: the value that holds the logits, or what is made of them.

    Returns:
        The nodes with that layer in place of the ones that it was written with.

    Example:
        >>> product = Part(Call("m", "MatMul", 17), ("x", "w"), ("p",))
        >>> total = Part(Call("s", "Add", 17), ("p", "b"), ("y",))
        >>> stored = {"w": np.ones((4, 2), np.float32), "b": np.ones((1, 2), np.float32)}
        >>> (layer,) = in_one_form([product, total], stored, "y")
        >>> layer.call.operator, layer.inputs, layer.outputs
        ('Gemm', ('x', 'w', 'b'), ('y',))
        >>> stored["w"].shape, stored["b"].shape
        ((2, 4), (2,))
    """
    users: dict[str, int] = {output: 1}
    for part in parts:
        for name in part.inputs:
            users[name] = users.get(name, 0) + 1
    path = _path(parts, stored, output)
    if not path or not _alone(path, stored, users):
        return parts
    layer, added = path[-1], next((p for p in path if p.call.operator == "Add"), None)
    made = _layer(layer, stored)
    if made is None:
        return parts
    if added is None:
        return [made if part is layer else part for part in parts]
    bias = next(name for name in added.inputs if name in stored)
    if len(made.inputs) > 2 or not _is_bias(stored[bias], stored[made.inputs[1]], made):
        return [made if part is layer else part for part in parts]
    stored[bias] = stored[bias].reshape(-1)
    made = replace(made, inputs=(*made.inputs, bias))
    before = path[path.index(added) + 1]  # it gives now what the sum gave
    renamed = replace(made if before is layer else before, outputs=added.outputs)
    changed = {id(layer): made, id(before): renamed}
    return [changed.get(id(part), part) for part in parts if part is not added]


def _path(parts: list[Part], stored: dict[str, Any], output: str) -> list[Part]:
    """Returns the nodes from the output back to the last linear layer; none without one."""
    makers = {name: part for part in parts for name in part.outputs}
    path: list[Part] = []
    name, is_added = output, False
    while name in makers:
        part = makers[name]
        operator = part.call.operator
        path.append(part)
        if operator in _LAYERS:
            return path
        sources = [value for value in part.inputs if value not in stored]
        if operator == "Add" and not is_added and len(part.inputs) - len(sources) == 1:
            is_added, name = True, sources[0]
        elif operator in MOVING or (operator in SQUASHING and not is_added):
            name = part.inputs[0]
        else:
            return []
    return []


def _alone(path: list[Part], stored: dict[str, Any], users: dict[str, int]) -> bool:
    """Returns whether each value of a path, and what its layer stores, has one user only."""
    layer = path[-1]
    own = [name for part in path if part.call.operator == "Add" for name in part.inputs]
    names = [part.outputs[0] for part in path] + own + list(layer.inputs[1:])
    used_once = all(users.get(name) == 1 for name in names if name)
    return used_once and all(name in stored for name in layer.inputs[1:] if name)


def _layer(layer: Part, stored: dict[str, Any]) -> Part | None:
    """Returns a node as a Gemm with a matrix [C, N] and a bias [C], or a Conv as it is.

    None for a product of something else than rows of features with a matrix.
    """
    call = layer.call
    inputs = tuple(name for name in layer.inputs if name)
    if call.operator == "Conv":
        return replace(layer, inputs=inputs)
    weight = stored[inputs[1]] if len(inputs) > 1 else None
    if weight is None or weight.ndim != 2 or weight.dtype.kind != "f" or call.get("transA", 0):
        return None
    rows_last = call.operator == "MatMul" or not call.get("transB", 0)
    C = weight.shape[1] if rows_last else weight.shape[0]
    if len(inputs) > 2:
        bias = stored[inputs[2]]
        if bias.size != C or bias.shape[-1:] != (C,) or bias.dtype.kind != "f":
            return None
        stored[inputs[2]] = np.float32(call.get("beta", 1.0)) * bias.reshape(-1)
    weight = weight.T if rows_last else weight
    alpha = np.float32(call.get("alpha", 1.0))
    stored[inputs[1]] = np.ascontiguousarray(weight if alpha == 1 else alpha * weight)
    return Part(replace(call, operator="Gemm", attributes={"transB": 1}), inputs, layer.outputs)


def _is_bias(bias: Any, weight: Any, layer: Part) -> bool:
    """Returns whether a stored array has one value for each class, on the axis of the classes.

    It lies last, or third from the end where a Conv's axes of the image are still there.
    """
    C, shape = weight.shape[0], bias.shape
    axes = (-1, -3) if layer.call.operator == "Conv" else (-1,)
    at_classes = any(len(shape) >= -axis and shape[axis] == C for axis in axes)
    return bool(bias.size == C and bias.dtype.kind == "f" and at_classes)
