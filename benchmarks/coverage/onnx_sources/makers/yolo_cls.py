"""A classifier with the structure that YOLO's "-cls" files have.

Their package is under the AGPL, so it is neither a dependency nor installed: this is a network of
our own with the same kinds of nodes, written from what a file of theirs looks like. A backbone of
Conv, Sigmoid and Mul (SiLU), stages that Split, add and Concat, then a convolution, a pooling, a
linear layer and a Softmax.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvSiLU(nn.Sequential):
    """A convolution, a norm and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        """Pads so that a stride of 1 keeps the grid."""
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.SiLU(),
        )


class Stage(nn.Module):
    """Splits the channels, passes one half through residual blocks, and joins all steps."""

    def __init__(self, channels: int, blocks: int) -> None:
        """Makes a stage that keeps the number of channels."""
        super().__init__()
        half = channels // 2
        self.first = ConvSiLU(channels, channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvSiLU(half, half, 3), ConvSiLU(half, half, 3)) for _ in range(blocks)
        )
        self.last = ConvSiLU((2 + blocks) * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the stage."""
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.last(torch.cat(parts, 1))


class YoloCls(nn.Module):
    """The network; in inference it ends in a softmax."""

    def __init__(self, classes: int) -> None:
        """Makes a narrow one."""
        super().__init__()
        self.backbone = nn.Sequential(
            ConvSiLU(3, 16, 3, 2),
            ConvSiLU(16, 32, 3, 2),
            Stage(32, 1),
            ConvSiLU(32, 64, 3, 2),
            Stage(64, 2),
            ConvSiLU(64, 128, 3, 2),
            Stage(128, 1),
        )
        self.head = ConvSiLU(128, 256)
        self.pool, self.drop = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.0)
        self.linear = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Computes probabilities in inference, logits in training."""
        x = self.linear(self.drop(self.pool(self.head(self.backbone(x))).flatten(1)))
        return x if self.training else x.softmax(1)
