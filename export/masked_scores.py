"""ReciproCAM: a position weighs as much as the class scores when it alone is seen.

Byun and Lee, "ReciproCAM: Lightweight Gradient-free Class Activation Map for Post-hoc
Explanations", CVPR workshops 2024; for tokens "ViT-ReciproCAM", 2023. There is no gradient: the
head runs once for every position, on features that are zero at all others.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from sigcam.classifier.layout import BranchValue, Layout, Value
from sigcam.export.cam import FLAT, leading
from sigcam.export.entry import Cut
from sigcam.export.forward import BranchGraph, ForwardPart, ForwardValues
from sigcam.export.methods import Method
from sigcam.export.score_head import ScoreHead

_AROUND = (0.25, 0.5, 0.25)
"""What a token's mask shows of the positions beside it, along each axis."""


class MaskedScores(BranchGraph):
    """Computes CAMs of one branch from the scores of masked features, forward only.

    In closed form the scores of all masks are one product with the features.
    """

    def __init__(
        self,
        head: ScoreHead,
        cut: Cut,
        branch: BranchValue,
        targets: tuple[Value, ...],
        method: Method,
    ) -> None:
        """Prepares the masks, and what leads from each target layer to the logits.

        Args:
            head: the branch's head; its tensors are shared.
            cut: where the features end and the tail begins.
            branch: the branch layer's value.
            targets: the target layers' values.
            method: the CAM method.
        """
        super().__init__(head, cut, branch, targets, method)
        self.masks = nn.ParameterList(
            nn.Parameter(position_masks(layout), requires_grad=False) for layout in self.layouts
        )

    def _prepare(self, cut: Cut) -> None:
        self.forward_part = _KeepingPart(cut, self.head.trunk)
        self.rests = nn.ModuleList(_after(cut.tail, node) for node in cut.nodes)

    def cams(self, values: ForwardValues, rows: Tensor) -> list[Tensor]:
        """Computes the CAM of each target layer: scores of the masks less the smallest of them.

        Args:
            values: what the forward pass left.
            rows: the gradient of each class's score with respect to z, [B, K, D].

        Returns:
            [B, K, h, w], >= 0; zeros where the scores of all positions are equal.
        """
        B, K, _ = rows.shape
        found = []
        for index, (layout, masks) in enumerate(zip(self.layouts, self.masks, strict=True)):
            if self.closed_form:
                N, h, w = layout.shape
                scores = rows @ values.features[0].reshape(-1, N, h * w) / (h * w)
                if layout.kind == "tokens":
                    scores = scores @ masks.T
            else:
                scores = rows @ self._z(values, index).transpose(1, 2)
            cams = scores.reshape(*leading(B, K), *layout.shape[1:])
            found.append(_above_the_smallest(cams))
        return found

    def _z(self, values: ForwardValues, index: int) -> Tensor:
        """Runs the head on masked features: z [B, h w, D]."""
        entry, raw = values.saved[0], values.saved[1 + index]
        masks = _in_layout(self.masks[index], self.layouts[index])
        count = len(masks)
        masked = (raw.unsqueeze(1) * masks).flatten(0, 1)
        copies = entry.unsqueeze(1).expand(-1, count, *entry.shape[1:]).flatten(0, 1)
        z: Tensor = self.head.trunk(self.rests[index](copies, masked))
        return z.reshape(-1, count, z.shape[1])


class _KeepingPart(ForwardPart):
    """Gives also what the masked runs begin with: the entry, and the targets' raw values."""

    def forward(self, entry: Tensor) -> tuple[Tensor, ...]:
        z, value, *targets = super().forward(entry)
        return (z, value, *targets, entry, *targets)


def position_masks(layout: Layout) -> Tensor:
    """Returns what the mask of each position shows of all positions, float32 [h w, h w].

    In a convolutional grid it is the position alone. Among tokens it is a Gaussian of 3x3 around
    it (1/16, 1/8, 1/4), cut off at the edge, as in ViT-ReciproCAM.

    Args:
        layout: where the grid is.

    Example:
        >>> position_masks(Layout("nchw", (5, 1, 2))).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> position_masks(Layout("tokens", (5, 1, 3), prefix=1)).tolist()[0]
        [0.25, 0.125, 0.0]
    """
    _, h, w = layout.shape
    if layout.kind != "tokens":
        return torch.eye(h * w)
    return torch.kron(_smoothing(h), _smoothing(w))


def _smoothing(size: int) -> Tensor:
    side, middle, _ = _AROUND
    beside = torch.ones(size - 1)
    return torch.eye(size) * middle + side * (torch.diag(beside, 1) + torch.diag(beside, -1))


def _in_layout(masks: Tensor, layout: Layout) -> Tensor:
    """Brings masks [P, h w] into the shape of a value: [P, ...], broadcast over the channels.

    Prefix tokens are shown whole in every mask.
    """
    _, h, w = layout.shape
    if layout.kind == "tokens":
        shown = torch.ones(len(masks), layout.prefix, dtype=masks.dtype, device=masks.device)
        return torch.cat([shown, masks], 1).unsqueeze(2)
    grid = masks.reshape(-1, h, w)
    return grid.unsqueeze(1) if layout.kind == "nchw" else grid.unsqueeze(3)


def _above_the_smallest(scores: Tensor) -> Tensor:
    """Returns scores [B, K, h, w] less the smallest of each grid; zeros where that is noise."""
    low, high = scores.amin((2, 3), keepdim=True), scores.amax((2, 3), keepdim=True)
    largest = torch.maximum(high.abs(), low.abs())
    return torch.where(high - low > FLAT * largest, scores - low, 0.0)


def _after(tail: fx.GraphModule, name: str) -> fx.GraphModule:
    """Copies the tail's graph so that a value in it is given: (entry, value) -> branch's value."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(tail.graph, val_map=copies))
    entry = next(iter(graph.nodes))
    target = next(copy for node, copy in copies.items() if node.name == name)
    with graph.inserting_after(entry):
        given = graph.placeholder("given")
    target.replace_all_uses_with(given)
    if target is entry:  # batch sizes are read off it
        entry.replace_all_uses_with(given)
    graph.eliminate_dead_code()
    return fx.GraphModule(tail, graph)
