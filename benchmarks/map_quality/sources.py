"""Makes CAMs from kept features: by which head, by which method, clamped, signed or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sigcam.classifier.gradients import gradients_of
from sigcam.core.types import Array
from sigcam.export.cam import combine
from sigcam.export.methods import Gradient, method_of


@dataclass(frozen=True, eq=False)
class Source:
    """Where a CAM comes from.

    Attributes:
        head: the branch's head, on pooled features [B, N], or on features [B, N, h, w] where
            `is_pooled` is False.
        is_pooled: whether the head is one linear layer on pooled features.
        centred: whether the mean over the classes is taken off the head's logits.
        nwc: whether negative weights are clamped.
        signed: whether the sum keeps its sign.
        method: the CAM method.
    """

    head: nn.Module
    is_pooled: bool = True
    centred: bool = False
    nwc: bool = False
    signed: bool = False
    method: str = "cam"

    def cams(self, features: Array, class_ids: Array) -> Array:
        """Computes CAMs.

        Args:
            features: [B, N, h, w], of any float type.
            class_ids: int64 [B, K].

        Returns:
            float32 [B, K, h, w].
        """
        value = torch.from_numpy(np.asarray(features, np.float32))
        ids, method = torch.from_numpy(class_ids), method_of(self.method)
        positions = value.shape[2] * value.shape[3]
        with torch.no_grad() if self.is_pooled else torch.enable_grad():
            if self.is_pooled:
                rows = self._rows()[ids][..., None, None]
                gradient = Gradient(rows if method.need == "rows" else rows / positions, positions)
            else:
                gradient = Gradient(self._gradients(value, ids), positions)
        with torch.no_grad():
            weights = method.weights(value, gradient)
            weights = weights.flatten(2) if tuple(weights.shape[3:]) == (1, 1) else weights
            clamps = self.nwc and method.clamps
            return combine(weights, value, clamps, self.signed).numpy()

    def _rows(self) -> Tensor:
        assert isinstance(self.head, nn.Linear)
        weight = self.head.weight.detach()
        return weight - weight.mean(0) if self.centred else weight

    def _gradients(self, value: Tensor, ids: Tensor) -> Tensor:
        value = value.requires_grad_()
        logits = self.head(value)
        if self.centred:
            logits = logits - logits.mean(1, keepdim=True)
        columns = [
            gradients_of(logits.gather(1, column[:, None]).sum(), [value], retain_graph=True)
            for column in ids.T
        ]
        return torch.stack([column for (column,) in columns], 1)
