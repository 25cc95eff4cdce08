"""Gives a classifier the paper's second, sigmoid branch.

"Beyond Softmax", Section 3: the backbone and the original (softmax) head stay as they
are; a clone of the head with fresh parameters is trained beside it. Hashes of the two
parts' tensors say in files which weights a branch belongs to.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sigcam.classifier.head import Head
from sigcam.classifier.split import split
from sigcam.classifier.task import task_of
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import ChannelOrder, Task

_LISTED = 6


class DualOutput(NamedTuple):
    """What a `DualBranch` returns.

    Attributes:
        logits: the classifier's own, before softmax or sigmoid; float32 [B, C].
        sigmoid_logits: the sigmoid branch's, before the sigmoid; float32 [B, C].
        features: the value of the branch layer, float32: F [B, N, h, w], or as the
            model keeps it ([B, h, w, N], or tokens [B, T, N]).
    """

    logits: Tensor
    sigmoid_logits: Tensor
    features: Tensor


class DualBranch(nn.Module):
    """Holds a backbone, its frozen softmax branch, and a trainable sigmoid branch.

    The caller's model is copied, never changed. Backbone and softmax branch are frozen
    in every respect: no gradients, batch norm in inference form, no dropout, whatever
    `train()` says. Only the parameters of `sigmoid_head` require gradients.

    Attributes:
        features: images to the value of the branch layer.
        softmax_head: from that value to the model's own logits.
        sigmoid_head: from that value to the sigmoid branch's logits.
        branch: the branch layer: its name, and where the grid is in its value, if it has one.
        targets: the same of the target layers, which maps are made of.
        num_classes: C; 2 for a network with one logit l, whose logits here are [-l, l].
        task: what the logits mean; see `Spec.task`.
        squashing: the function that the original model applies to its logits ("softmax",
            "log_softmax" or "sigmoid"), which was taken off; None if it returns logits.
        notes: a line for the user about each thing that isn't taken as the model gives it.
        input_size: (H, W) of the images in pixels; the graphs hold for this size.
        channels: number of channels of the images.
        architecture: the name of the model.
        file_sha256: hash of the ONNX file that the model was read from; None for others.
        channel_order: the order in which that file takes three channels; the model turns R, G, B
            into it.

    Example:
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
        >>> dual.branch_layer, dual.branch.layout.shape
        ('0', (4, 6, 6))
        >>> output = dual(torch.zeros(1, 3, 8, 8))
        >>> output.logits.shape, output.sigmoid_logits.shape
        (torch.Size([1, 2]), torch.Size([1, 2]))
    """

    def __init__(
        self,
        model: nn.Module,
        branch_layer: str | None = None,
        example: Tensor | None = None,
        *,
        input_size: int | tuple[int, int] = 224,
        channels: int = 3,
        target_layers: Sequence[str] = (),
        seed: int = 0,
        architecture: str | None = None,
        task: Task | None = None,
    ) -> None:
        """Splits a copy of `model` and adds the sigmoid branch.

        Args:
            model: a classifier, images float32 [B, n, H, W] to logits [B, C].
            branch_layer: the layer after which the sigmoid branch begins; None finds it. See
                `sigcam.classifier.split.split`.
            example: images float32 [B, n, H, W] in place of `input_size` and `channels`; only
                the shape matters.
            input_size: the side of the square input, or (H, W), in pixels.
            channels: n, the number of channels of an image.
            target_layers: the layers that maps are made of. None named: the branch layer, or
                the last layer before it that the logits depend on everywhere.
            seed: the seed of the sigmoid branch's fresh parameters.
            architecture: the name to record; the model's class name when None.
            task: what the logits mean. None: "binary" for one logit, otherwise as the function
                that the model ends in says, or "single-label".

        Raises:
            UsageError: `example` isn't float32 [B, n, H, W], or another task than the model's.
            ModelError: the model can't be split there.
        """
        super().__init__()
        if example is None:
            size = (input_size, input_size) if isinstance(input_size, int) else input_size
            example = torch.zeros(1, channels, *size)
        if example.ndim != 4 or example.dtype != torch.float32 or len(example) < 1:
            raise UsageError(
                f"example must be float32 [B, n, H, W], got {example.dtype} {list(example.shape)}"
            )
        parts = split(model, example, branch_layer, target_layers)
        self.features = parts.features
        self.softmax_head = Head(parts, live_dropout=False)
        self.sigmoid_head = self.softmax_head.fresh_copy(seed)
        self.branch, self.targets = parts.branch, parts.targets
        self.num_classes = parts.num_classes
        self.squashing, self.notes = parts.squashing, parts.notes
        num_logits = 1 if parts.one_logit else parts.num_classes
        self.task: Task = task_of(task, num_logits, parts.squashing)
        self.input_size = (int(example.shape[2]), int(example.shape[3]))
        self.channels = int(example.shape[1])
        self.architecture = architecture or type(parts.traced.model).__name__
        self.file_sha256: str | None = getattr(parts.traced.model, "file_sha256", None)
        self.channel_order: ChannelOrder = getattr(parts.traced.model, "channel_order", "rgb")
        self.features.requires_grad_(False)
        self.softmax_head.requires_grad_(False)
        self.train(False)

    @property
    def branch_layer(self) -> str:
        """Returns the name of the branch layer; naming it gives the same cut."""
        return self.branch.layer

    @property
    def branch_note(self) -> str:
        """Says where the sigmoid branch begins, how many parameters it has, and in which modules.

        All of them are drawn anew before training, also those of whole stages of the backbone
        that come after a low branch layer. Where there are none, there is no branch to train.

        Example:
            >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
            >>> DualBranch(nn.Sequential(*layers), input_size=8).branch_note
            'the sigmoid branch begins after 0 and has 10 parameters: 3 (10)'
        """
        counts = self.sigmoid_head.parameter_counts()
        if not counts:
            return (
                f"nothing with parameters follows {self.branch_layer}, where the branches begin, "
                f"so there is no sigmoid branch to train"
            )
        if len(counts) > _LISTED:  # by stages, where there are many layers
            stages: dict[str, int] = {}
            for name, count in counts.items():
                stage = name.partition(".")[0]
                stages[stage] = stages.get(stage, 0) + count
            counts = stages
        largest = sorted(counts, key=lambda name: -counts[name])
        listed = ", ".join(
            f"{name or 'the model'} ({counts[name]:,})" for name in largest[:_LISTED]
        )
        more = f" and {len(largest) - _LISTED} more" if len(largest) > _LISTED else ""
        total = sum(counts.values())
        return (
            f"the sigmoid branch begins after {self.branch_layer} and has {total:,} parameters: "
            f"{listed}{more}"
        )

    @property
    def is_trainable(self) -> bool:
        """Returns whether a sigmoid branch can be trained: whether its head has parameters.

        It has none where target layers were named beside which others lead to the logits, so
        that the branches begin at the logits themselves.
        """
        return any(True for _ in self.sigmoid_head.parameters())

    def forward(self, images: Tensor) -> DualOutput:
        """Computes both branches.

        Args:
            images: float32 [B, n, H, W], normalised as the model wants them.
        """
        features = self.features(images)
        return DualOutput(self.softmax_head(features), self.sigmoid_head(features), features)

    def train(self, mode: bool = True) -> DualBranch:
        """Sets training mode; only the sigmoid head's dropouts have one.

        Args:
            mode: whether the dropouts drop.
        """
        super().train(mode)
        self.features.eval()
        self.softmax_head.eval()
        return self

    def classifier_tensors(self) -> dict[str, Tensor]:
        """Returns what the classifier computes with, by the original model's names."""
        found = {name: value.detach() for name, value in self.features.state_dict().items()}
        return {**found, **self.softmax_head.named_tensors()}

    def check_finite(self, *, sigmoid: bool) -> None:
        """Refuses weights with NaN or infinity.

        Args:
            sigmoid: whether the sigmoid branch is looked at too.

        Raises:
            ModelError: some weights aren't finite; names the tensors.
        """
        parts = {"the classifier": self.classifier_tensors()}
        if sigmoid:
            parts["the sigmoid branch"] = self.sigmoid_head.named_tensors()
        for part, tensors in parts.items():
            bad = [name for name, value in tensors.items() if not torch.isfinite(value).all()]
            if bad:
                raise ModelError(
                    f"the weights of {part} are not finite: {', '.join(bad[:4])}; "
                    f"use weights from before the training diverged"
                )

    def weights_sha256(self) -> str:
        """Returns the hash of `classifier_tensors`: which classifier a branch belongs to."""
        return tensors_sha256(self.classifier_tensors())

    def branch_sha256(self) -> str:
        """Returns the hash of the sigmoid head's tensors as they are now."""
        return tensors_sha256(self.sigmoid_head.named_tensors())


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Computes one hash for a set of tensors.

    It is SHA-256 over the names (sorted), dtypes, shapes and bytes. The bytes are hashed as
    little-endian and in C order, so the hash depends neither on the device and strides nor
    on the order of the mapping.

    Args:
        tensors: tensors by name, of any shapes and dtypes, on any device.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> a, b = torch.zeros(2), torch.ones(2)
        >>> tensors_sha256({"a": a, "b": b}) == tensors_sha256({"b": b, "a": a})
        True
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        dtype = str(value.dtype).removeprefix("torch.")
        header = f"{name}\0{dtype}\0{'x'.join(map(str, value.shape))}\0"
        digest.update(header.encode("utf-8"))
        digest.update(_little_endian(value))
    return digest.hexdigest()


def _little_endian(value: Tensor) -> memoryview:
    # Through uint8, because NumPy has no bfloat16.
    raw = value.reshape(-1).view(torch.uint8).numpy()
    size = value.element_size()
    if sys.byteorder == "big" and size > 1:
        raw = raw.reshape(-1, size)[:, ::-1].copy().reshape(-1)
    return raw.data
