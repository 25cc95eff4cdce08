"""Gives a network with one logit l a logit for each of its two classes: -l and l.

The negative class's probability is sigmoid(-l) = 1 - sigmoid(l), and its map is that of the
negated logit. The network's last layer keeps its one row: both logits are computed from it, so
what is trained or hashed stays as the network has it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from sigcam.classifier.graph import argument, outputs_of
from sigcam.classifier.trace import Traced

_aten = torch.ops.aten


def two_logits(logit: Tensor) -> Tensor:
    """Returns the logits of both classes, [B, 2], for one logit [B, 1].

    Example:
        >>> two_logits(torch.tensor([[-2.5]]))
        tensor([[ 2.5000, -2.5000]])
    """
    return torch.cat([-logit, logit], 1)


class OneLogit(nn.Module):
    """Undoes `two_logits`: a head whose logits are [-l, l] gives l again, [B, 1].

    Example:
        >>> OneLogit(nn.Identity())(torch.tensor([[-3.0, 3.0]]))
        tensor([[3.]])
    """

    def __init__(self, head: nn.Module) -> None:
        """Keeps the head.

        Args:
            head: features to [-l, l]; it is shared.
        """
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        """Returns l, [B, 1]."""
        logits: Tensor = self.head(features)
        return logits[:, 1:]


def with_two_logits(traced: Traced) -> Traced:
    """Adds `two_logits` to the end of a traced network, in its own graph.

    Args:
        traced: a network with logits [B, 1].

    Returns:
        The same network, whose `logits` are [B, 2].

    Example:
        traced = trace(model, example)  # logits [B, 1]
        with_two_logits(traced).logits.meta["val"].shape  # [B, 2]
    """
    graph, logit = traced.graph, traced.logits
    value = logit.meta["val"]
    with graph.inserting_after(logit):
        negated = graph.call_function(_aten.neg.default, (logit,))
    with graph.inserting_after(negated):
        both = graph.call_function(_aten.cat.default, ([negated, logit], 1))
    with value.fake_mode:
        negated.meta["val"] = torch.neg(value)
        both.meta["val"] = torch.cat([negated.meta["val"], value], 1)
    return replace(traced, logits=both, one_logit=True)


def one_logit(graph: fx.Graph) -> fx.Node | None:
    """Returns the one logit l of a graph whose output is cat([-l, l], 1); None for other graphs.

    Args:
        graph: a head's, or a part of one that reaches the output.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> graph = make_fx(two_logits)(torch.zeros(3, 1)).graph
        >>> one_logit(graph).op
        'placeholder'
    """
    (both,) = outputs_of(graph)
    if both.target is not _aten.cat.default or both.args[1:] != (1,):
        return None
    parts = both.args[0]
    if not isinstance(parts, (list, tuple)) or len(parts) != 2:
        return None
    negated, logit = parts
    if not isinstance(negated, fx.Node) or not isinstance(logit, fx.Node):
        return None
    if negated.target is not _aten.neg.default or argument(negated) is not logit:
        return None
    value = logit.meta.get("val")
    return logit if isinstance(value, Tensor) and value.shape[1:].numel() == 1 else None
