"""Cuts the features once more, at the last value that all target layers come from.

That value is the entry. What comes before it, the front, takes nearly all of the time and
has no gradient in the graph; from the entry on, the tail, everything is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from sigcam.classifier.graph import (
    ancestors,
    attribute,
    crossings,
    extract,
    has_batch,
    module_of,
    tensor_of,
)
from sigcam.classifier.layout import BranchValue, Value
from sigcam.core.errors import ModelError


@dataclass(frozen=True)
class Cut:
    """The features in two parts.

    Attributes:
        front: images to the entry, a value [B, ...] that all targets and the branch
            layer's value are computed from, and nothing else.
        tail: from the entry to the branch layer's value.
        nodes: names of the targets' nodes in the tail's graph.
        shape: the shape of the entry without the batch.
        is_target: whether the entry is the value of the only target layer.
    """

    front: fx.GraphModule
    tail: fx.GraphModule
    nodes: tuple[str, ...]
    shape: tuple[int, ...]
    is_target: bool


def cut_tail(features: fx.GraphModule, branch: BranchValue, targets: Sequence[Value]) -> Cut:
    """Cuts at the last value through which every path to the target layers goes.

    Args:
        features: images to the branch layer's value; it isn't changed.
        branch: the branch layer's value.
        targets: the target layers' values inside `features`.

    Raises:
        ModelError: the target layers have no such value.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
        >>> cut = cut_tail(dual.features, dual.branch, dual.targets)
        >>> cut.shape, cut.is_target
        ((4, 6, 6), True)
    """
    graph = features.graph
    by_name = {node.name: node for node in graph.nodes}
    image = next(iter(graph.nodes))
    end = by_name[branch.node]
    nodes = [by_name[target.node] for target in targets]
    entry = _entry(image, nodes, end)
    front = module_of(
        extract(image, entry, image, attribute, "images"), tensor_of(features), "Front"
    )
    tail = module_of(extract(entry, end, image, attribute, "entry"), tensor_of(features), "Tail")
    return Cut(
        front=front,
        tail=tail,
        nodes=tuple(_name_in_tail(tail, node, entry) for node in nodes),
        shape=tuple(int(size) for size in entry.meta["val"].shape[1:]),
        is_target=len(targets) == 1 and entry is nodes[0] and targets[0].layout.kind == "nchw",
    )


def _entry(image: fx.Node, targets: Sequence[fx.Node], end: fx.Node) -> fx.Node:
    common = set.intersection(*(ancestors(node) for node in targets))
    node: fx.Node
    for node in reversed(image.graph.nodes):
        value = node.meta.get("val")
        if node not in common or not isinstance(value, Tensor) or not has_batch(node, image):
            continue
        static = all(isinstance(size, int) for size in value.shape[1:])
        if static and value.is_floating_point() and not crossings(node, end, image):
            return node
    raise ModelError("the target layers have no value in common that they come from")


def _name_in_tail(tail: fx.GraphModule, node: fx.Node, entry: fx.Node) -> str:
    """Returns a value's name in the tail: its own, but for the entry, which is the input."""
    nodes: list[fx.Node] = list(tail.graph.nodes)
    if node is entry:
        return nodes[0].name
    return next(n.name for n in nodes if n.name == node.name)
