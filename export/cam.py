"""From the entry of the tail to CAM weights, CAMs and scores: what makes the map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from sigcam.classifier.layout import Value
from sigcam.core.errors import ExportError
from sigcam.export.backward.partition import Partition, Saved
from sigcam.export.backward.pooled import pooled, unexpanded
from sigcam.export.backward.trace import trace_gradient
from sigcam.export.entry import Cut
from sigcam.export.methods import Gradient, Method
from sigcam.export.score_head import ScoreHead

_FLAT = 1e-5
_TINY = 1e-37

FINER_OPTIONS: Mapping[str, float] = {"gamma": 0.6, "similar": 3}


@dataclass(frozen=True)
class State:
    """What one forward pass leaves for any number of classes.

    Attributes:
        z: [B, D], of which the branch's logits are linear functions.
        value: the branch layer's value.
        features: of each target layer, [B, N, h, w].
        saved: what the backward part needs.
    """

    z: Tensor
    value: Tensor
    features: tuple[Tensor, ...]
    saved: tuple[Tensor, ...]


class Evidence(nn.Module):
    """One branch's way from the entry to CAM weights, with forward operators only.

    Attributes:
        head: the branch's head.
        cut: where the features end and the tail begins.
    """

    def __init__(
        self, head: ScoreHead, cut: Cut, branch: Value, targets: tuple[Value, ...], method: Method
    ) -> None:
        """Traces the gradient, unless the head is global average pooling and a linear layer.

        Raises:
            ExportError: the method can't express the head, or the way back can't be traced.
        """
        super().__init__()
        self.head, self.method = head, method
        self.layouts = tuple(target.layout for target in targets)
        self.closed = head.pooled and [t.node for t in targets] == [branch.node]
        self.saved: tuple[Saved, ...] = ()
        self.compact = False
        if self.closed:
            return
        if method.need == "rows":
            raise ExportError(
                "the method cam needs a head that is global average pooling and one linear "
                "layer, and the layer before the pooling as its target layer; use gradcam, "
                "which is the same there and works elsewhere"
            )
        parts = trace_gradient(cut.tail, head.trunk, cut.nodes, cut.shape)
        self.forward_part = parts.forward
        self.backward_part = self._cheapest(parts)
        self.saved = parts.saved

    def _cheapest(self, parts: Partition) -> fx.GraphModule:
        if len(self.layouts) == 1:
            (layout,) = self.layouts
            found = unexpanded(parts.backward, layout)
            if found is None and self.method.need == "mean":
                found = pooled(parts.backward, layout)
            if found is not None:
                self.compact = True
                return found
        return parts.backward

    def run(self, entry: Tensor) -> State:
        """The forward pass, from the entry [B, ...]."""
        if self.closed:
            features = self.layouts[0].to_grid(entry)
            return State(self.head.trunk(entry), entry, (features,), ())
        z, value, *rest = self.forward_part(entry)
        count = len(self.layouts)
        values = tuple(
            layout.to_grid(raw) for layout, raw in zip(self.layouts, rest[:count], strict=True)
        )
        return State(z, value, values, tuple(rest[count:]))

    def weights(self, state: State, rows: Tensor) -> list[Tensor]:
        """CAM weights of each target layer, [B, K, N] or [B, K, N, h, w].

        Where a method has a weight per position and they are all equal, [B, K, N] too.

        Args:
            state: of the forward pass.
            rows: gradient of each class's score with respect to z, [B, K, D].
        """
        found = []
        for features, gradient in zip(state.features, self._gradients(state, rows), strict=True):
            weights = self.method.weights(features, gradient)
            found.append(weights.flatten(2) if tuple(weights.shape[3:]) == (1, 1) else weights)
        return found

    def _gradients(self, state: State, rows: Tensor) -> list[Gradient]:
        sizes = [layout.shape[1] * layout.shape[2] for layout in self.layouts]
        if self.closed:
            value = rows[..., None, None]
            return [Gradient(value if self.method.need == "rows" else value / sizes[0], sizes[0])]
        B, K, D = rows.shape
        single = isinstance(K, int) and K == 1
        saved = state.saved
        if not single:
            saved = tuple(s.repeat(v, K) for s, v in zip(self.saved, state.saved, strict=True))
        outputs = self.backward_part(*saved, rows.reshape(-1, D))
        result = []
        for layout, size, raw in zip(self.layouts, sizes, outputs, strict=True):
            N, h, w = layout.shape
            if self.compact:
                value = raw.reshape(*_leading(B, K), N, 1, 1)
            else:
                value = layout.to_grid(raw).reshape(*_leading(B, K), N, h, w)
            result.append(Gradient(value, size))
        return result


def _leading(B: int, K: int) -> tuple[int, int]:
    # -1 for the batch keeps the reshape a constant where K is one.
    return (-1, K) if isinstance(K, int) else (B, K)


def contrast(
    head: ScoreHead, logits: Tensor, class_ids: Tensor, rows: Tensor, gamma: float, similar: int
) -> Tensor:
    """Finer-CAM: the gradient of L_c - gamma mean(L_d), d the classes most similar to c.

    Zhang et al., "Finer-CAM", CVPR 2025, Section 3.3, where the differences to several
    classes are averaged. Similar are the classes whose logits in the softmax branch are
    nearest to that of c.

    Args:
        head: of the branch that the scores come from.
        logits: [B, C] of the softmax branch.
        class_ids: [B, K].
        rows: of these classes, [B, K, D].
        gamma: strength of the contrast.
        similar: how many classes.
    """
    own = logits.gather(1, class_ids).unsqueeze(2)
    distance = (logits.unsqueeze(1) - own).abs()
    classes = torch.arange(head.num_classes, device=logits.device)
    itself = class_ids.unsqueeze(2) == classes
    # Above every distance, and finite.
    distance = torch.where(itself, torch.full_like(distance, 3e38), distance)
    near = distance.topk(similar, 2, largest=False).indices
    B, K, _ = near.shape
    others = head.rows(near.flatten(1)).reshape(*_leading(B, K), similar, rows.shape[2])
    return rows - gamma * others.mean(2)


def combine(weights: Tensor, features: Tensor, nwc: bool) -> Tensor:
    """The CAMs: max(0, sum_n w_n F_n), with w clamped at 0 first under NWC.

    Beyond Softmax, Eq. 4 with negative-weight clamping.

    Args:
        weights: [B, K, N] or [B, K, N, h, w], signed.
        features: [B, N, h, w].
        nwc: whether negative weights are clamped.

    Returns:
        [B, K, h, w], >= 0.
    """
    _, N, h, w = features.shape
    used = weights.relu() if nwc else weights
    if weights.ndim == 5:
        return (used * features.unsqueeze(1)).sum(2).relu()
    cams = (used @ features.reshape(-1, N, h * w)).relu()
    return cams.reshape(*_leading(weights.shape[0], weights.shape[1]), h, w)


def fuse(cams: list[Tensor]) -> Tensor:
    """The mean of the CAMs of several target layers, each scaled to [0, 1] before.

    Smaller CAMs are enlarged to the largest, bilinearly, pixel centres at halves. A
    constant CAM counts as zeros: one whose range is at most 1e-5 of its largest value, as
    everywhere.

    Args:
        cams: of each target layer, [B, K, h, w].

    Returns:
        [B, K, h, w] with the largest h and w.
    """
    size = max((tuple(cam.shape[2:]) for cam in cams), key=lambda hw: hw[0] * hw[1])
    scaled = []
    for cam in cams:
        low, high = cam.amin((2, 3), keepdim=True), cam.amax((2, 3), keepdim=True)
        span = high - low
        one = torch.where(span > _FLAT * high, (cam - low) / span.clamp(min=_TINY), 0.0)
        if tuple(cam.shape[2:]) != size:
            one = functional.interpolate(one, size=size, mode="bilinear", align_corners=False)
        scaled.append(one)
    return torch.stack(scaled).mean(0)
