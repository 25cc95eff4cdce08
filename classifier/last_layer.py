"""Finds the linear layer that a head ends in."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, fx

from sigcam.classifier.graph import argument, outputs_of
from sigcam.classifier.one_logit import one_logit

_aten = torch.ops.aten
_FLATTENS = {
    _aten.view.default,
    _aten.reshape.default,
    _aten.flatten.using_ints,
    _aten.squeeze.dims,
    _aten._unsafe_view.default,
}


class LastLayer(NamedTuple):
    """The linear layer, or 1x1 convolution, that gives the logits.

    Attributes:
        z: its input in the graph, [B, D] or [B, D, 1, 1].
        weight: the name of its matrix, [C, D] or [C, D, 1, 1].
        bias: the name of its bias [C]; None without one.
        negated: whether the layer gives the one logit l of a graph whose output is [-l, l], so
            that matrix and bias have one row, and the rows of the two logits are its negation
            and itself.
    """

    z: fx.Node
    weight: str
    bias: str | None
    negated: bool = False


def last_layer(graph: fx.Graph) -> LastLayer | None:
    """Finds the linear layer at the end of a graph; None where it ends in something else.

    Args:
        graph: of a head's classifier, traced with its values in `node.meta`.

    Example:
        found = last_layer(dual.softmax_head.classifier.graph)
        found.weight, found.bias  # "fc.weight", "fc.bias"
    """
    logit = one_logit(graph)
    layer = outputs_of(graph)[0] if logit is None else logit
    while _only_moves(layer):
        layer = argument(layer)
    z = _input_of_linear(layer)
    if z is None:
        return None
    names = [str(n.target) if isinstance(n, fx.Node) else None for n in [*layer.args, None][1:3]]
    return LastLayer(z, str(names[0]), names[1], logit is not None)


def _only_moves(node: fx.Node) -> bool:
    """Returns whether a node leaves the logits of an image in their order."""
    if node.target is _aten.permute.default:
        axes, count = node.args[1], _count(argument(node))
        whole = isinstance(axes, (list, tuple)) and bool(axes[0] == 0)
        # All the logits lie on one axis, so that their order is the same however it moves.
        sizes = list(argument(node).meta["val"].shape[1:])
        return whole and count > 0 and any(size == count for size in sizes)
    return node.target in _FLATTENS and _count(node) == _count(argument(node))


def _input_of_linear(layer: fx.Node) -> fx.Node | None:
    """Returns the input of a linear layer [B, D] or a 1x1 convolution [B, D, 1, 1] at the end."""
    if layer.target not in (_aten.linear.default, _aten.conv2d.default, _aten.convolution.default):
        return None
    x, weight = layer.args[0], layer.args[1]
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    D = weight.meta["val"].shape[1:].numel()
    return x if _count(x) == D and weight.meta["val"].shape[1] == D else None


def _count(node: fx.Node) -> int:
    """Counts the entries of a value per image; 0 where that isn't a fixed number."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return 0
    batch, *sizes = list[object](value.shape)
    if isinstance(batch, int):
        return 0
    fixed = [size for size in sizes if isinstance(size, int)]
    return math.prod(fixed) if len(fixed) == len(sizes) else 0
