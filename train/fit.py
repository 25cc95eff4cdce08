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
from sigcam.train.accuracy import Accuracy
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
        accuracy: what the metrics measure beside the loss.
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
    accuracy: Accuracy
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
            state.sums = torch.zeros(0)  # rank 0 holds the sums over all processes
        self.state = state

    def new_sums(self) -> torch.Tensor:
        """Returns zeros to add an epoch up in: loss, samples, and the counts of the accuracy."""
        return torch.zeros(2 + self.accuracy.size, dtype=torch.float64)

    def add(
        self, sums: torch.Tensor, loss: float, logits: torch.Tensor, targets: torch.Tensor
    ) -> None:
        """Adds a batch to sums.

        Args:
            sums: from `new_sums`; is changed.
            loss: mean of the batch.
            logits: [B, C].
            targets: [B] or [B, C], as the loss takes them.
        """
        sums[0] += loss * len(targets)
        sums[1] += len(targets)
        self.accuracy.add(sums[2:], logits, targets)

    def _totals(self, sums: torch.Tensor) -> tuple[float, float, float]:
        """Returns the mean loss, the accuracy and the samples over all processes."""
        total = torch.tensor(self.world.total(sums.tolist()), dtype=torch.float64)
        loss, samples = float(total[0]), float(total[1])
        if not samples:
            return math.nan, math.nan, 0.0
        return loss / samples, self.accuracy.figure(total[2:], samples), samples

    def save(self, optimizer: torch.optim.Optimizer) -> None:
        """Writes the checkpoint and the metrics, in rank 0. Every process must call it.

        Raises:
            StorageError: the folder can't be written.
        """
        own = self.state.sums if len(self.state.sums) else self.new_sums()
        sums = torch.tensor(self.world.total(own.tolist()), dtype=torch.float64)
        self.state.sums = sums if self.world.is_main else self.new_sums()
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
        own = self.state.sums if len(self.state.sums) else self.new_sums()
        loss, accuracy, samples = self._totals(own)
        if samples == 0:
            raise TrainingError("no image of the epoch could be read")
        val_loss, val_accuracy = self._validate()
        name = self.accuracy.name
        figures = {"top1": None, name: accuracy, f"val_{name}": val_accuracy}
        seconds = self.state.seconds + time.perf_counter() - started
        metrics = EpochMetrics(
            epoch=self.state.epoch + 1,
            loss=loss,
            seconds=seconds,
            samples_per_s=samples / seconds,
            val_loss=val_loss,
            **figures,
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
        sums = self.new_sums()
        with torch.no_grad(), mode(self.classifier, training=False):
            for x, targets in self.val.batches(chunks, self.state.epoch):
                if len(targets):
                    logits = self.classifier(x)
                    self.add(sums, float(self.loss(logits, targets)), logits, targets)
        loss, accuracy, samples = self._totals(sums)
        return (loss, accuracy) if samples else (None, None)


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
