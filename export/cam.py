"""Computes CAM weights from the entry of the tail, and CAMs from weights and features."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.nn import functional

from sigcam.core.errors import ExportError
from sigcam.export.backward.partition import Partition, Saved
from sigcam.export.backward.pooled import pooled, unexpanded
from sigcam.export.backward.trace import trace_gradient
from sigcam.export.entry import Cut
from sigcam.export.forward import BranchGraph, ForwardValues
from sigcam.export.methods import Gradient
from sigcam.export.score_head import ScoreHead

FLAT = 1e-5
"""A CAM whose range is at most this share of its largest value counts as constant."""
_TINY = 1e-37
_BEYOND_ALL_DISTANCES = 3e38
"""Larger than the distance of any two logits, and finite in float32."""


class WeightGraph(BranchGraph):
    """Computes the CAM weights of one branch from the entry, with forward operators only.

    In closed form the gradient is a row of the head's matrix, and nothing is traced.

    Raises:
        ExportError: when it is made: the method can't express the head, or the backward pass can't
            be traced.
    """

    _saved: tuple[Saved, ...] = ()
    _gives_mean = False

    def _prepare(self, cut: Cut) -> None:
        """Traces the gradient, for a method of the graph."""
        if not self.method.in_graph:
            super()._prepare(cut)
            return
        if self.method.need == "rows":
            raise ExportError(
                f"the method cam needs a head that is global average pooling and one linear "
                f"layer, and the layer before the pooling as its target layer; "
                f"{_instead_of_cam(cut, self.head)}"
            )
        parts = trace_gradient(cut.tail, self.head.trunk, cut.nodes, cut.shape)
        self.forward_part = parts.forward
        self.backward_part = self._cheapest(parts)
        self._saved = parts.saved

    def weights(self, values: ForwardValues, rows: Tensor) -> list[Tensor]:
        """Computes the CAM weights of each target layer.

        Args:
            values: what the forward pass left.
            rows: the gradient of each class's score with respect to z, [B, K, D].

        Returns:
            For each target layer [B, K, N], or [B, K, N, h, w] for a method with a weight
            per position whose weights aren't all equal.
        """
        found = []
        for features, gradient in zip(values.features, self._gradients(values, rows), strict=True):
            weights = self.method.weights(features, gradient)
            found.append(weights.flatten(2) if tuple(weights.shape[3:]) == (1, 1) else weights)
        return found

    def _cheapest(self, parts: Partition) -> fx.GraphModule:
        if len(self.layouts) == 1:
            (layout,) = self.layouts
            found = unexpanded(parts.backward, layout)
            if found is None and self.method.need == "mean":
                found = pooled(parts.backward, layout)
            if found is not None:
                self._gives_mean = True
                return found
        return parts.backward

    def _gradients(self, values: ForwardValues, rows: Tensor) -> list[Gradient]:
        positions = [layout.shape[1] * layout.shape[2] for layout in self.layouts]
        if self.closed_form:
            (count,) = positions
            row = rows[..., None, None]
            return [Gradient(row if self.method.need == "rows" else row / count, count)]
        B, K, D = rows.shape
        saved = values.saved
        if not (isinstance(K, int) and K == 1):
            saved = tuple(s.repeat(v, K) for s, v in zip(self._saved, values.saved, strict=True))
        outputs = self.backward_part(*saved, rows.reshape(-1, D))
        gradients = []
        for layout, count, raw in zip(self.layouts, positions, outputs, strict=True):
            N, h, w = layout.shape
            if self._gives_mean:
                value = raw.reshape(*leading(B, K), N, 1, 1)
            else:
                value = layout.to_grid(raw).reshape(*leading(B, K), N, h, w)
            gradients.append(Gradient(value, count))
        return gradients


def _instead_of_cam(cut: Cut, head: ScoreHead) -> str:
    """Says which method works for a head that cam can't express."""
    try:
        trace_gradient(cut.tail, head.trunk, cut.nodes, cut.shape)
    except ExportError as exc:
        return str(exc)
    return "use gradcam, which is the same there and works elsewhere"


def contrast(
    head: ScoreHead, logits: Tensor, class_ids: Tensor, rows: Tensor, gamma: float, similar: int
) -> Tensor:
    """Computes Finer-CAM's gradient: of L_c - gamma mean(L_d), d the classes most similar to c.

    Zhang et al., "Finer-CAM", CVPR 2025, Section 3.3, where the differences to several
    classes are averaged. Similar are the classes whose logits in the softmax branch are
    nearest to that of c.

    Args:
        head: the head of the branch that the scores come from.
        logits: the logits of the softmax branch, [B, C].
        class_ids: the classes c, int64 [B, K].
        rows: the gradients of their scores, [B, K, D].
        gamma: the strength of the contrast.
        similar: how many classes are contrasted with.

    Returns:
        Gradients with respect to z, [B, K, D].

    Example:
        >>> from types import SimpleNamespace
        >>> matrix = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])  # three classes, D = 2
        >>> head = SimpleNamespace(num_classes=3, rows=lambda ids: matrix[ids])
        >>> logits, ids = torch.tensor([[2.0, 1.5, -9.0]]), torch.tensor([[0]])  # 1 is near 0
        >>> contrast(head, logits, ids, matrix[ids], gamma=0.5, similar=1).tolist()
        [[[1.0, -0.5]]]
    """
    own = logits.gather(1, class_ids).unsqueeze(2)
    distance = (logits.unsqueeze(1) - own).abs()
    classes = torch.arange(head.num_classes, device=logits.device)
    itself = class_ids.unsqueeze(2) == classes
    distance = torch.where(itself, torch.full_like(distance, _BEYOND_ALL_DISTANCES), distance)
    near = distance.topk(similar, 2, largest=False).indices
    B, K, _ = near.shape
    others = head.rows(near.flatten(1)).reshape(*leading(B, K), similar, rows.shape[2])
    return rows - gamma * others.mean(2)


def combine(weights: Tensor, features: Tensor, clamps: bool, signed: bool = False) -> Tensor:
    """Computes CAMs: max(0, sum_n w_n F_n), with w clamped at 0 first if asked.

    "Beyond Softmax", Eq. 4, is the form with negative-weight clamping, Eq. 6 that without.

    Args:
        weights: signed CAM weights, [B, K, N] or [B, K, N, h, w].
        features: the features of the target layer, [B, N, h, w].
        clamps: whether negative weights are clamped.
        signed: whether the sum is left as it is; if not, what is negative is 0.

    Returns:
        [B, K, h, w], >= 0 unless signed.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0]], [[3.0, 1.0]]]])  # two channels of 1x2
        >>> weights = torch.tensor([[[2.0, -1.0]]])  # of one class
        >>> combine(weights, features, clamps=False)[0, 0].tolist()
        [[0.0, 3.0]]
        >>> combine(weights, features, clamps=True)[0, 0].tolist()
        [[2.0, 4.0]]
        >>> combine(weights, features, clamps=False, signed=True)[0, 0].tolist()
        [[-1.0, 3.0]]
    """
    _, N, h, w = features.shape
    used = weights.relu() if clamps else weights
    if weights.ndim == 5:
        cams = (used * features.unsqueeze(1)).sum(2)
    else:
        cams = used @ features.reshape(-1, N, h * w)
        cams = cams.reshape(*leading(weights.shape[0], weights.shape[1]), h, w)
    return cams if signed else cams.relu()


def fuse(cams: list[Tensor], refines: bool = False) -> Tensor:
    """Computes one CAM of those of several target layers, each scaled to [0, 1] before.

    It is their mean, or their product: RefineCAM of Domeniconi et al. 2026. Smaller CAMs are
    enlarged to the largest, bilinearly, pixel centres at halves. A constant CAM counts as
    zeros: one whose range is at most 1e-5 of its largest value, as everywhere.

    Args:
        cams: the CAMs of each target layer, [B, K, h, w].
        refines: whether they are multiplied.

    Returns:
        [B, K, h, w] with the largest h and w.

    Example:
        >>> fuse([torch.tensor([[[[0.0, 4.0]]]]), torch.tensor([[[[3.0, 1.0]]]])]).tolist()
        [[[[0.5, 0.5]]]]
        >>> cams = [torch.tensor([[[[0.0, 2.0, 4.0]]]]), torch.tensor([[[[0.0, 3.0, 1.0]]]])]
        >>> fuse(cams, refines=True)
        tensor([[[[0.0000, 0.5000, 0.3333]]]])
    """
    size = max((tuple(cam.shape[2:]) for cam in cams), key=lambda hw: hw[0] * hw[1])
    scaled = []
    for cam in cams:
        low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
        span, largest = high - low, torch.maximum(high, -low)
        one = torch.where(span > FLAT * largest, (cam - low) / span.clamp(min=_TINY), 0.0)
        if tuple(cam.shape[2:]) != size:
            one = functional.interpolate(one, size=size, mode="bilinear", align_corners=False)
        scaled.append(one)
    return torch.stack(scaled).prod(0) if refines else torch.stack(scaled).mean(0)


def leading(B: int, K: int) -> tuple[int, int]:
    """Returns (B, K) for a reshape, with -1 for the batch where K is constant: so is the shape.

    Example:
        >>> leading(2, 3)
        (-1, 3)
    """
    return (-1, K) if isinstance(K, int) else (B, K)
