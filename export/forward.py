"""Runs a branch from the entry, with what the CAMs of any number of classes need on the way."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from sigcam.classifier.graph import attribute, extract, module_of, outputs_of, tensor_of
from sigcam.classifier.layout import BranchValue, Value
from sigcam.export.entry import Cut
from sigcam.export.methods import Method
from sigcam.export.score_head import ScoreHead


@dataclass(frozen=True)
class ForwardValues:
    """What one forward pass leaves for the CAMs of any number of classes.

    Attributes:
        z: [B, D], of which the branch's logits are linear functions.
        value: the branch layer's value.
        features: the features of each target layer, [B, N, h, w].
        saved: the values that what follows needs (the backward pass, or the masked runs).
    """

    z: Tensor
    value: Tensor
    features: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]


class ForwardPart(nn.Module):
    """Computes z, the branch layer's value and the targets' values; nothing is differentiated."""

    def __init__(self, cut: Cut, trunk: nn.Module) -> None:
        """Takes the tail's graph with all of these values as outputs.

        Args:
            cut: where the features end and the tail begins.
            trunk: the branch layer's value to z.
        """
        super().__init__()
        graph = cut.tail.graph
        entry, by_name = next(iter(graph.nodes)), {node.name: node for node in graph.nodes}
        ends = [*outputs_of(graph), *(by_name[name] for name in cut.nodes)]
        self.values = module_of(
            extract(entry, ends, entry, attribute, "entry"), tensor_of(cut.tail), "Values"
        )
        self.trunk = trunk

    def forward(self, entry: Tensor) -> tuple[Tensor, ...]:
        """Returns z, the branch layer's value and those of the targets, for the entry [B, ...]."""
        value, *targets = self.values(entry)
        return (self.trunk(value), value, *targets)


class BranchGraph(nn.Module):
    """Runs one branch from the entry; how its CAMs are made of that, subclasses know.

    Attributes:
        head: the branch's head.
        method: the CAM method.
        layouts: where the grid is in the value of each target layer.
        closed_form: whether the head is global average pooling and a linear layer, and the
            target layer is the branch layer, so that the CAMs follow from rows and features.
        forward_part: without the closed form, the entry to z, the branch layer's value, those of
            the targets, and the values that are saved.
    """

    forward_part: nn.Module

    def __init__(
        self,
        head: ScoreHead,
        cut: Cut,
        branch: BranchValue,
        targets: tuple[Value, ...],
        method: Method,
    ) -> None:
        """Keeps the parts.

        Args:
            head: the branch's head; its tensors are shared.
            cut: where the features end and the tail begins.
            branch: the branch layer's value.
            targets: the target layers' values.
            method: the CAM method.
        """
        super().__init__()
        self.head, self.method = head, method
        self.layouts = tuple(target.layout for target in targets)
        self.closed_form = head.pooled and [t.node for t in targets] == [branch.node]
        if not self.closed_form:
            self._prepare(cut)

    def _prepare(self, cut: Cut) -> None:
        """Makes `forward_part` and what else is needed without the closed form."""
        self.forward_part = ForwardPart(cut, self.head.trunk)

    def run(self, entry: Tensor) -> ForwardValues:
        """Runs the forward pass.

        Args:
            entry: the value [B, ...] that `Cut.front` gives.
        """
        if self.closed_form:
            grid = self.layouts[0].to_grid(entry)
            return ForwardValues(self.head.trunk(entry), entry, (grid,), ())
        z, value, *rest = self.forward_part(entry)
        count = len(self.layouts)
        features = tuple(
            layout.to_grid(raw) for layout, raw in zip(self.layouts, rest[:count], strict=True)
        )
        return ForwardValues(z, value, features, tuple(rest[count:]))
