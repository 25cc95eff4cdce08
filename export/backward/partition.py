"""Cuts a traced forward and backward pass in two, so that each may have its own batch size.

What depends on the cotangent is the backward part; the rest is the forward part. The
values that the backward part needs of the forward part are its saved values. The forward
part runs once for B images. The backward part runs for M = B K rows, one per image and
class, with the saved values repeated for the K classes of each image.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from sigcam.classifier.graph import outputs_of
from sigcam.core.errors import ExportError

_sym_size = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Saved:
    """Tells where a saved value has the batch.

    Attributes:
        axis: the axis of the batch; None for a value that is the same for all images.
        rows: entries per image along it (windows times heads, for window attention).
    """

    axis: int | None
    rows: int

    def repeat(self, value: Tensor, count: int | torch.SymInt) -> Tensor:
        """Repeats a value for each class of each image, the classes of one image together.

        Args:
            value: the saved value.
            count: K, the number of classes.

        Example:
            >>> Saved(axis=0, rows=1).repeat(torch.tensor([1, 2]), 2).tolist()
            [1, 1, 2, 2]
        """
        if self.axis is None:
            return value
        moved = value.movedim(self.axis, 0)
        rest = moved.shape[1:]
        grouped = moved.reshape(-1, 1, self.rows, *rest)
        repeated = grouped.expand(-1, count, -1, *[-1] * len(rest))
        return repeated.reshape(-1, *rest).movedim(0, self.axis)


@dataclass(frozen=True)
class Partition:
    """The two parts of a traced forward and backward pass.

    Attributes:
        forward: x to (z, branch value, *target values, *saved values).
        backward: (*saved values, cotangent [M, D]) to the targets' gradients.
        saved: where each saved value has the batch.
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    saved: tuple[Saved, ...]


def partition(joint: fx.GraphModule, targets: int) -> Partition:
    """Cuts the graph (x, cotangent) to (z, branch value, *target values, *gradients).

    Args:
        joint: functional, with attributes for all tensors.
        targets: how many target values and gradients there are.

    Raises:
        ExportError: the backward pass mixes the images of a batch.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> def joint(x, cotangent):  # z = exp(x), and x is the branch layer's value and the target
        ...     z = x.exp()
        ...     return z, x, x, cotangent * z
        >>> traced = make_fx(joint, tracing_mode="symbolic")(torch.zeros(5, 1), torch.zeros(5, 1))
        >>> parts = partition(traced, targets=1)
        >>> z, _, _, saved = parts.forward(torch.zeros(1, 1))
        >>> parts.backward(saved, torch.tensor([[2.0]]))
        (tensor([[2.]]),)
    """
    graph = joint.graph
    x, cotangent = graph.find_nodes(op="placeholder")
    outputs = outputs_of(graph)
    values, gradients = outputs[: 2 + targets], outputs[2 + targets :]
    after_cotangent = {cotangent}
    for node in graph.nodes:
        if any(source in after_cotangent for source in node.all_input_nodes):
            after_cotangent.add(node)
    needed = _needed(gradients)
    saved = [
        node
        for node in graph.nodes
        if node in needed
        and node not in after_cotangent
        and node.op != "get_attr"
        and isinstance(node.meta.get("val"), Tensor)
        and any(user in after_cotangent and user in needed for user in node.users)
        and not _from_tensors_alone(node)
    ]
    batch = x.meta["val"].shape[0]
    return Partition(
        forward=_forward(joint, x, [*values, *saved]),
        backward=_backward(joint, cotangent, saved, gradients, batch),
        saved=tuple(_batch_axis(node, batch) for node in saved),
    )


def _needed(ends: Sequence[fx.Node]) -> set[fx.Node]:
    found, open_nodes = set[fx.Node](), list(ends)
    while open_nodes:
        node = open_nodes.pop()
        if node not in found:
            found.add(node)
            open_nodes.extend(node.all_input_nodes)
    return found


def _from_tensors_alone(node: fx.Node) -> bool:
    """Returns whether a value comes from constants alone: it is computed where it is used."""
    return not any(n.op == "placeholder" for n in _needed([node]))


def _forward(joint: fx.GraphModule, x: fx.Node, outputs: Sequence[fx.Node]) -> fx.GraphModule:
    needed = {*_needed(outputs), x}
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in joint.graph.nodes:
        if node in needed:
            copies[node] = new.node_copy(node, lambda n: copies[n])
    new.output(tuple(copies[n] for n in outputs))
    return fx.GraphModule(joint, new, class_name="Forward")


def _backward(
    joint: fx.GraphModule,
    cotangent: fx.Node,
    saved: Sequence[fx.Node],
    gradients: Sequence[fx.Node],
    batch: torch.SymInt,
) -> fx.GraphModule:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for index, node in enumerate([*saved, cotangent]):
        copies[node] = new.placeholder("cotangent" if node is cotangent else f"saved_{index}")
        copies[node].meta = dict(node.meta)
    needed = _backward_nodes(gradients, {*saved, cotangent})
    size: fx.Node | None = None
    for node in joint.graph.nodes:
        if node not in needed or node in copies:
            continue
        if isinstance(node.meta.get("val"), torch.SymInt):
            # The same multiple of the backward part's own batch size.
            size = size or new.call_function(_sym_size, (copies[cotangent], 0))
            rows = _multiple(node.meta["val"], batch)
            copies[node] = size if rows == 1 else new.call_function(operator.mul, (size, rows))
        else:
            copies[node] = new.node_copy(node, lambda n: copies[n])
    new.output(tuple(copies[n] for n in gradients))
    return fx.GraphModule(joint, new, class_name="Backward")


def _backward_nodes(ends: Sequence[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
    """Returns what the backward part computes; a size is recomputed, not followed."""
    found, open_nodes = set[fx.Node](), list(ends)
    while open_nodes:
        node = open_nodes.pop()
        if node in found:
            continue
        found.add(node)
        if node not in stop and not isinstance(node.meta.get("val"), torch.SymInt):
            open_nodes.extend(node.all_input_nodes)
    return found


def _batch_axis(node: fx.Node, batch: torch.SymInt) -> Saved:
    shape = node.meta["val"].shape
    free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]
    if not free:
        return Saved(None, 1)
    if len(free) > 1:
        raise ExportError(
            f"the value {node.name} {list(shape)} mixes the images of a batch, so that there is "
            f"no gradient of one image's logit alone"
        )
    return Saved(free[0], _multiple(shape[free[0]], batch))


def _multiple(size: torch.SymInt, batch: torch.SymInt) -> int:
    ratio = size.node.expr / batch.node.expr
    if not ratio.is_Integer:
        raise ExportError(
            f"a size in the backward pass is {size} for a batch of {batch}; sizes must be "
            f"multiples of it, so that each image has its own"
        )
    return int(ratio)
