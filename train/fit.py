"""The parts of a run that both optimisers share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sigcam.core.errors import TrainingError
from sigcam.train.checkpoint import State, load_checkpoint, save_checkpoint
from sigcam.train.distributed import World
from sigcam.train.samples import Samples
from sigcam.train.settings import EpochCallback, EpochMetrics, TrainSettings

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Fit:
    """A classifier, its samples and where its training stands.

    Attributes:
        classifier: neck output to logits; its parameters are trained.
        loss: (logits [B, C], targets [B] or [B, C]) to the mean loss of the batch.
        train, val: the samples; val is None without a validation split.
        run: what a resumed run must agree on.
        folder: of checkpoint and metrics; None writes neither.
        start: the parameters by name that the weight decay pulls to; None: to 0.
    """

    classifier: nn.Module
    loss: Loss
    train: Samples
    val: Samples | None
    settings: TrainSettings
    world: World
    run: Mapping[str, Any]
    folder: Path | None
    progress: bool
    on_epoch: EpochCallback | None
    state: State
    start: Mapping[str, torch.Tensor] | None = None

    def decayed(self) -> list[tuple[nn.Parameter, torch.Tensor]]:
        """Returns each parameter with what the weight decay makes smaller: what it moved by."""
        start, found = self.start, []
        for name, parameter in self.classifier.named_parameters():
            value = parameter.detach()
            found.append((parameter, value if start is None else value - start[name]))
        return found

    def resume(self, optimizer: torch.optim.Optimizer) -> None:
        """Takes classifier, optimiser and state from the checkpoint.

        Raises:
            TrainingError: there is none that fits.
        """
        if self.folder is None:
            raise TrainingError("resuming needs the folder of the run")
        state, classifier, moments = load_checkpoint(self.folder, self.run)
        try:
            self.classifier.load_state_dict(classifier)
            optimizer.load_state_dict(moments)
        except (RuntimeError, ValueError, KeyError) as exc:
            raise TrainingError(
                f"the checkpoint in {self.folder} doesn't fit this head; start the run anew"
            ) from exc
        if not self.world.is_main:
            state.sums = [0.0] * 3  # rank 0 holds the sums over all processes
        self.state = state

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Writes the checkpoint and the metrics, in rank 0. Every process must call it.

        Raises:
            StorageError: the folder can't be written.
        """
        sums = self.world.total(self.state.sums)
        self.state.sums = sums if self.world.is_main else [0.0] * 3
        if self.world.is_main and self.folder is not None:
            save_checkpoint(
                self.folder,
                self.run,
                self.state,
                self.classifier.state_dict(),
                optimizer.state_dict(),
            )

    def end_epoch(self, optimizer: torch.optim.Optimizer, started: float) -> None:
        """Turns the sums into a line of metrics, saves, and tells the caller."""
        loss, right, samples = self.world.total(self.state.sums)
        if samples == 0:
            raise TrainingError("no image of the epoch could be read")
        val_loss, val_top1 = self._validate()
        seconds = self.state.seconds + time.perf_counter() - started
        metrics = EpochMetrics(
            epoch=self.state.epoch + 1,
            loss=loss / samples,
            top1=right / samples,
            seconds=seconds,
            samples_per_s=samples / seconds,
            val_loss=val_loss,
            val_top1=val_top1,
        )
        self.state = State(
            self.state.epoch + 1,
            history=[*self.state.history, metrics],
            first_gradient=self.state.first_gradient,
        )
        self.save(optimizer)
        if self.on_epoch is not None:
            self.on_epoch(metrics)

    def check_finite(self, loss: float) -> None:
        """Stops a run whose loss is NaN or infinite.

        Raises:
            TrainingError: it is; says where and what to try.
        """
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {self.state.epoch + 1}, step "
                f"{self.state.step + 1}; lower the learning rate (it is "
                f"{self.settings.learning_rate}) or look at the head's weights"
            )

    def _validate(self) -> tuple[float | None, float | None]:
        if self.val is None:
            return None, None
        size, rank, world = self.settings.steps[2], self.world.rank, self.world.size
        numbers = np.arange(rank, self.val.size, world)
        chunks = [numbers[i : i + size] for i in range(0, len(numbers), size)]
        sums = [0.0] * 3
        with torch.no_grad(), mode(self.classifier, training=False):
            for x, targets in self.val.batches(chunks, self.state.epoch):
                if len(targets):
                    logits = self.classifier(x)
                    sums[0] += float(self.loss(logits, targets)) * len(targets)
                    sums[1] += float(right_answers(logits, targets))
                    sums[2] += len(targets)
        loss, right, samples = self.world.total(sums)
        return (loss / samples, right / samples) if samples else (None, None)


def right_answers(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Counts the rows whose largest logit is that of their class.

    Args:
        logits: [B, C].
        targets: class ids, int64 [B]; or soft ones, float [B, C], whose class is that of the
            largest entry.

    Example:
        >>> logits = torch.tensor([[2.0, 1.0], [0.0, 3.0]])
        >>> right_answers(logits, torch.tensor([0, 0]))
        tensor(1)
        >>> right_answers(logits, torch.tensor([[0.8, 0.2], [0.1, 0.9]]))
        tensor(2)
    """
    class_ids = targets.argmax(1) if targets.ndim == 2 else targets
    return (logits.detach().argmax(1) == class_ids).sum()


@contextmanager
def mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Sets training or inference mode, and restores it.

    Example:
        >>> layer = nn.Dropout().eval()
        >>> with mode(layer, training=True):
        ...     layer.training
        True
        >>> layer.training
        False
    """
    before = module.training
    module.train(training)
    try:
        yield
    finally:
        module.train(before)


_SMALL = 2**24
"""Multiplications of a step up to which a second thread costs more than it saves."""


@contextmanager
def small_steps_alone(fit: Fit) -> Iterator[None]:
    """Lets a step of few multiplications compute on one thread, and restores the number.

    A linear head of 100 classes takes 1.3 ms for a step of 32 samples. Two threads wait for each
    other at every operation: ten times as long was seen where other programs kept the cores busy.
    Live views run the backbone between the steps, which needs all threads, so they stay.

    Args:
        fit: the head, its device, the batch size and whether features are cached.
    """
    size = sum(one.numel() for one in fit.classifier.parameters()) * fit.settings.steps[2]
    if fit.world.device.type != "cpu" or size > _SMALL or not fit.settings.cached:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
