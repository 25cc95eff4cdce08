"""Gives samples targets that are the classifier's own predictions: a branch without labels.

The prediction is of the very view that the branch is trained on. Both branches are computed from
the neck's output, so the softmax branch needs no pass through the backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import DataError
from sigcam.train.distributed import World
from sigcam.train.samples import Batch, Indices, Samples, SampleSet

_ROWS = 1024


class Teacher:
    """Turns outputs of the sigmoid branch's neck into targets, by the frozen softmax branch.

    Of a multi-label task every class of probability 0.5 or more is a target.

    Args:
        dual: its softmax branch predicts; on the device of the samples.
        temperature: T > 0, for soft targets; None for hard ones.
        class_names: C names for messages; empty if unknown.
    """

    def __init__(
        self,
        dual: DualBranch,
        temperature: float | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.num_classes, self.task = dual.num_classes, dual.task
        self._classifier = dual.sigmoid_head.classifier_of(dual.softmax_head)
        self._temperature, self._names = temperature, class_names

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Returns class ids, int64 [B]; or float32 [B, C]: soft targets, or several classes.

        Soft targets are softmax(logits / T), of a multi-label or binary task sigmoid(logits / T).

        Args:
            x: float32 [B, *neck], B >= 0.
        """
        T, several = self._temperature, self.task == "multi-label"
        if not len(x):
            marks = T is not None or several
            shape = (0, self.num_classes) if marks else (0,)
            kind = torch.float32 if marks else torch.int64
            return torch.empty(shape, dtype=kind, device=x.device)
        with torch.no_grad():
            logits: torch.Tensor = self._classifier(x).float()
        if T is None:
            return (logits >= 0).float() if several else logits.argmax(1)
        return _soft(logits, T) if self.task == "single-label" else torch.sigmoid(logits / T)

    def counted(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns how many samples each class was predicted for, then how many samples there are.

        Args:
            targets: what a call returned.

        Returns:
            float64 [C + 1], on the CPU.
        """
        if self.task == "multi-label":
            counts = (targets >= 0.5).sum(0)
        else:
            class_ids = targets.argmax(1) if targets.ndim == 2 else targets
            counts = torch.bincount(class_ids, minlength=self.num_classes)
        total = torch.tensor([float(len(targets))], dtype=torch.float64)
        return torch.cat([counts.double().cpu(), total])

    def check(self, counts: Sequence[float], total: float) -> None:
        """Refuses predictions that are all the same.

        Args:
            counts: how many samples each of the C classes was predicted for.
            total: how many samples there are.

        Raises:
            DataError: every class has all of them or none; names those with all.
        """
        if not total or any(0 < count < total for count in counts):
            return
        same = [str(i) for i, count in enumerate(counts) if count]
        names = [self._names[int(i)] for i in same] if self._names else []
        what = f"class {', '.join(same)}" if same else "no class"
        what += f" ({', '.join(names)})" if names else ""
        raise DataError(
            f"the classifier predicts {what} for all {int(total)} images, which leaves the branch "
            "nothing to tell apart; look at its weights and at size, mean and std of its input, "
            "or give images of several of its classes"
        )


def _soft(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    # The largest logit is 0 before the division, so that a tiny T gives no infinity.
    return ((logits - logits.amax(1, keepdim=True)) / temperature).softmax(1)


class PredictedSamples(Samples):
    """Other samples with a teacher's targets in place of theirs.

    Args:
        samples: the neck outputs; their class ids don't matter.
        teacher: makes the targets.
        world: the processes of this run.
        watched: whether the predictions of every whole epoch are checked at its end.
    """

    def __init__(
        self, samples: Samples, teacher: Teacher, world: World, *, watched: bool = False
    ) -> None:
        self._samples, self._teacher = samples, teacher
        self._world, self._watched = world, watched
        self.size, self.failed = samples.size, samples.failed

    def batches(self, wanted: Sequence[Indices], epoch: int) -> Iterator[Batch]:
        """Yields neck outputs and targets: class ids [B], or numbers for each class [B, C].

        Raises:
            DataError: as the other samples; and predictions that are all the same, where they
                are watched.
        """
        counts = torch.zeros(self._teacher.num_classes + 1, dtype=torch.float64)
        for x, _ in self._samples.batches(wanted, epoch):
            targets = self._teacher(x)
            if self._watched:
                counts += self._teacher.counted(targets)
            yield x, targets
        if self._watched:
            *merged, total, asked = self._world.total(
                [*counts.tolist(), float(sum(map(len, wanted)))]
            )
            # What is left of an epoch after a resumption may be a single sample.
            if asked == self.size:
                self._teacher.check(merged, total)

    def check_plain(self, views: int) -> float:
        """Checks the predictions for the plain view of every image, before any training.

        Args:
            views: how many samples each image has; the first is the plain view.

        Returns:
            How many classes were predicted for an image in the mean; soft targets are added up.

        Raises:
            DataError: they are all the same.
        """
        rank, world = self._world.rank, self._world
        numbers = np.arange(0, self.size, views)[rank :: world.size]
        chunks = [numbers[i : i + _ROWS] for i in range(0, len(numbers), _ROWS)]
        counts = torch.zeros(self._teacher.num_classes + 1, dtype=torch.float64)
        labels = 0.0
        for x, _ in self._samples.batches(chunks, 0):
            targets = self._teacher(x)
            counts += self._teacher.counted(targets)
            labels += float(targets.double().sum()) if targets.ndim == 2 else len(targets)
        *merged, total, labels = world.total([*counts.tolist(), labels])
        self._teacher.check(merged, total)
        return labels / total if total else 0.0


def with_predictions(
    made: SampleSet,
    dual: DualBranch,
    world: World,
    temperature: float | None = None,
    class_names: Sequence[str] = (),
) -> SampleSet:
    """Returns the same samples with the classifier's predictions as targets.

    Cached samples are checked at once by their plain views, others at the end of each epoch.

    Args:
        made: samples of the sigmoid branch's neck.
        dual: the classifier, on the device of the samples.
        world: the processes of this run.
        temperature: T of soft targets; None for the most probable class.
        class_names: C names for messages; empty if unknown.

    Raises:
        DataError: one class is predicted for every image.
    """
    teacher = Teacher(dual, temperature, class_names)
    train = PredictedSamples(made.train, teacher, world, watched=not made.views)
    mean = train.check_plain(made.views) if made.views else None
    val = None if made.val is None else PredictedSamples(made.val, teacher, world)
    return replace(made, train=train, val=val, mean_labels=mean)
