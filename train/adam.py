"""Fits a classifier by Adam over mini-batches, in one process or several."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from sigcam.core.progress import Bar
from sigcam.train.checkpoint import Interruption
from sigcam.train.fit import Fit, mode, small_steps_alone
from sigcam.train.samples import Indices, epoch_order


def fit_adam(fit: Fit, resume: bool) -> None:
    """Trains for the epochs of the settings, from the start or from the checkpoint.

    The order of the samples and the dropout of each step follow from seed, epoch and
    step alone, so a resumed run takes the very steps that an uninterrupted one takes.

    Raises:
        TrainingError: a loss that isn't finite; nothing to resume.
        KeyboardInterrupt: Ctrl-C, after the step in work; the checkpoint is saved.
    """
    rate, epochs, _ = fit.settings.steps
    # PyTorch's own decay pulls to 0 only.
    decay = fit.settings.decay if fit.start is None else 0.0
    optimizer = torch.optim.Adam(
        fit.classifier.parameters(), lr=rate, weight_decay=decay, fused=True
    )
    if resume:
        fit.resume(optimizer)
    net = fit.world.parallel(fit.classifier)
    with mode(net, training=True), small_steps_alone(fit), Interruption() as interruption:
        while fit.state.epoch < epochs:
            started = time.perf_counter()
            _epoch(fit, net, optimizer, interruption)
            fit.end_epoch(optimizer, started)
            if fit.world.any(interruption.asked):  # during validation or saving
                raise KeyboardInterrupt


def _epoch(
    fit: Fit,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    interruption: Interruption,
) -> None:
    state, world = fit.state, fit.world
    _, epochs, batch_size = fit.settings.steps
    order = epoch_order(fit.train.size, batch_size, fit.settings.seed, state.epoch)
    left = order[state.step :]
    started = time.perf_counter()
    mine = [numbers[world.rank :: world.size] for numbers in left]
    with (
        Bar(
            fit.train.size,
            unit="sample",
            label=f"epoch {state.epoch + 1}/{epochs}",
            done=sum(map(len, order[: state.step])),
            shown=fit.progress and world.is_main,
            scaled=True,
        ) as bar,
        torch.random.fork_rng(devices=[world.device] if world.device.type == "cuda" else []),
    ):
        for numbers, batch in zip(left, fit.train.batches(mine, state.epoch), strict=True):
            _set_rate(fit, optimizer, len(order))
            loss = _step(fit, net, optimizer, batch, numbers)
            state.step += 1
            bar.note(f"loss={loss:.4g}")
            bar.advance(len(numbers))
            if world.any(interruption.asked):
                state.seconds += time.perf_counter() - started
                fit.save(optimizer)
                raise KeyboardInterrupt


def _step(
    fit: Fit,
    net: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[torch.Tensor, torch.Tensor],
    numbers: Indices,
) -> float:
    """Takes one step; the gradient is the mean over the whole batch of all processes."""
    state, world, (x, targets) = fit.state, fit.world, batch
    key = [fit.settings.seed, 3, state.epoch, state.step, world.rank]
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
    logits = net(x)
    value = 0.0
    if len(targets):
        loss = fit.loss(logits, targets)
        value = loss.item()
        fit.check_finite(value)
        # DistributedDataParallel averages over processes, whose shares may be unequal.
        objective = loss * (len(targets) * world.size / len(numbers))
        if not len(state.sums):
            state.sums = fit.new_sums()
        fit.add(state.sums, value, logits, targets)
    else:
        objective = logits.sum() * 0  # takes part in the averaging all the same
    optimizer.zero_grad(set_to_none=True)
    objective.backward()  # type: ignore[no-untyped-call]
    if fit.start is not None:
        for parameter, moved in fit.decayed():
            if parameter.grad is not None:
                parameter.grad.add_(moved, alpha=fit.settings.decay)
    optimizer.step()
    return value


def _set_rate(fit: Fit, optimizer: torch.optim.Optimizer, steps: int) -> None:
    if fit.settings.schedule == "constant":
        return
    rate, epochs, _ = fit.settings.steps
    done = (fit.state.epoch * steps + fit.state.step) / (epochs * steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * done))
