"""Measures how well a head does during training: top-1, or mean average precision.

Both are made of counts that are added up over the batches of an epoch and over processes, so that
neither logits nor targets have to be kept.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch

from sigcam.core.spec import Task

_STEP, _LARGEST = 0.1, 20.0
_BINS = round(2 * _LARGEST / _STEP) + 1


class Accuracy(Protocol):
    """What is counted, and the figure that comes of it.

    Attributes:
        name: of the figure, a field of `EpochMetrics`.
        size: how many counts there are.
    """

    name: str
    size: int

    def add(self, counts: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Adds a batch.

        Args:
            counts: float64 [size], is changed.
            logits: [B, C].
            targets: class ids, int64 [B]; or a number from 0 to 1 for each class, float [B, C].
        """

    def figure(self, counts: torch.Tensor, samples: float) -> float:
        """Returns the figure, 0 to 1, for counts of so many samples."""


class Top1:
    """The share of the samples whose largest logit is that of their class.

    Example:
        >>> logits, counts = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.zeros(1).double()
        >>> Top1().add(counts, logits, torch.tensor([0, 0]))
        >>> Top1().figure(counts, 2)
        0.5
        >>> Top1().add(counts, logits, torch.tensor([[0.8, 0.2], [0.1, 0.9]]))
        >>> Top1().figure(counts, 4)
        0.75
    """

    name = "top1"
    size = 1

    def add(self, counts: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Counts the rows that are right; the class of a soft target is its largest entry's."""
        class_ids = targets.argmax(1) if targets.ndim == 2 else targets
        counts[0] += float((logits.detach().argmax(1) == class_ids).sum())

    def figure(self, counts: torch.Tensor, samples: float) -> float:
        """Returns the share."""
        return float(counts[0]) / samples


class MeanAveragePrecision:
    """The mean over the classes of average precision (mAP), for several classes an image.

    A class's average precision is the sum over its positive samples, in the order of their
    logits, of the precision down to each, over their number. Logits are rounded to 0.1 and cut
    off at 20 either way, so that counts suffice; samples of equal logits come in together. Classes
    without a positive sample don't count. A soft target is positive from 0.5 on.

    Example:
        >>> measure = MeanAveragePrecision(1)
        >>> counts = torch.zeros(measure.size).double()
        >>> logits = torch.tensor([[3.0], [2.0], [1.0]])
        >>> measure.add(counts, logits, torch.tensor([[1.0], [0.0], [1.0]]))
        >>> round(measure.figure(counts, 3), 4)  # (1/1 + 2/3) / 2
        0.8333
    """

    name = "mean_average_precision"

    def __init__(self, num_classes: int) -> None:
        self._classes = num_classes
        self.size = 2 * num_classes * _BINS

    def add(self, counts: torch.Tensor, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """Counts the positive and the negative samples of each class and rounded logit."""
        values = logits.detach().cpu().double().clamp(-_LARGEST, _LARGEST)
        bins = ((_LARGEST - values) / _STEP).round().long()  # the largest logit first
        negative = (targets.detach().cpu() < 0.5).long()
        rows = negative * self._classes + torch.arange(self._classes)
        places = (rows * _BINS + bins).flatten()
        counts.index_add_(0, places, torch.ones(len(places), dtype=counts.dtype))

    def figure(self, counts: torch.Tensor, samples: float) -> float:
        """Returns the mean; NaN where no class has a positive sample."""
        del samples
        positive, negative = counts.reshape(2, self._classes, _BINS)
        right = positive.cumsum(1)
        precision = right / (right + negative.cumsum(1)).clamp(min=1)
        total = positive.sum(1)
        known = total > 0
        if not bool(known.any()):
            return math.nan
        found = (precision * positive).sum(1)[known] / total[known]
        return float(found.mean())


def accuracy_of(task: Task, num_classes: int) -> Accuracy:
    """Returns what a task is measured by.

    Example:
        >>> type(accuracy_of("multi-label", 3)).__name__, type(accuracy_of("binary", 2)).__name__
        ('MeanAveragePrecision', 'Top1')
    """
    return MeanAveragePrecision(num_classes) if task == "multi-label" else Top1()
