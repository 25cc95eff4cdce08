"""Trains heads on features that are kept: the loss and the steps of `sigcam train`, in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from sigcam.core.types import Array
from sigcam.train.loss import evidence_loss
from sigcam.train.settings import default_weight_decay


@dataclass(frozen=True)
class Fit:
    """How a head is trained; the defaults are those of `sigcam train`.

    Attributes:
        epochs: passes over all views of all images.
        learning_rate: of Adam.
        batch: samples in a step.
        weight_decay: None for `decay` times the default of `sigcam train`.
        decay: see `weight_decay`.
        positive_weight: of the loss; None for C - 1.
        views: how many of the kept views are used.
        bias: first value of every class's bias; None for PyTorch's random one.
        label_noise: share of the images whose label is another one, drawn at random.
        non_negative: whether the last layer's weights are set to 0 where a step makes them
            negative.
        temperature: of soft predicted labels; None for hard ones.
        from_softmax: whether the branch starts from the centred softmax head, which the weight
            decay then pulls to (`--init softmax`); if not, from fresh parameters.
        seed: of the fresh parameters, the order and the noise.
    """

    epochs: int = 6
    learning_rate: float = 3e-3
    batch: int = 32
    weight_decay: float | None = None
    decay: float = 1.0
    positive_weight: float | None = None
    views: int | None = None
    bias: float | None = None
    label_noise: float = 0.0
    non_negative: bool = False
    temperature: float | None = None
    from_softmax: bool = False
    seed: int = 0


PROBE = Fit(learning_rate=1e-3, weight_decay=5e-4)
"""How the softmax head is trained: with the weight decay of `sigcam train --new-classes`."""


@dataclass(frozen=True, eq=False)
class Samples:
    """What a head is trained on.

    Attributes:
        inputs: float16 [P, V, ...].
        labels: int64 [P].
        num_classes: C.
    """

    inputs: Array
    labels: Array
    num_classes: int

    def flat(self, views: int | None) -> tuple[Tensor, Tensor]:
        """Returns inputs [P * V, ...] and the class of each, int64."""
        count = views or self.inputs.shape[1]
        chosen = np.ascontiguousarray(self.inputs[:, :count])
        inputs = torch.from_numpy(chosen.reshape(-1, *chosen.shape[2:]))
        return inputs, torch.from_numpy(np.repeat(self.labels, count))


Make = Callable[[int, int], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]


def linear(width: int, num_classes: int) -> nn.Module:
    """Makes the head of one linear layer on pooled features."""
    return nn.Linear(width, num_classes)


def mlp(width: int, num_classes: int) -> nn.Module:
    """Makes a head as VGG's: 3x3 pooled cells, flattened, one hidden layer, dropout."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(9 * width, 256),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(256, num_classes),
    )


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained head and how sure it is of its training samples.

    Attributes:
        module: in inference form.
        right: share of the views whose largest logit is that of their class, 0 to 1.
    """

    module: nn.Module
    right: float


def train_softmax(samples: Samples, make: Make = linear, fit: Fit | None = None) -> Trained:
    """Trains the classifier's own head, by cross-entropy."""
    fit = fit or PROBE
    inputs, labels = samples.flat(fit.views)
    return _train(inputs, labels, samples.num_classes, make, fit, F.cross_entropy)


def train_sigmoid(
    samples: Samples,
    make: Make = linear,
    fit: Fit | None = None,
    *,
    softmax: nn.Module | None = None,
    predicted: bool = False,
) -> Trained:
    """Trains a sigmoid branch.

    Args:
        samples: inputs, with the labels that are used unless they are predicted.
        make: makes a head of fresh parameters.
        fit: how it is trained.
        softmax: the softmax head, for predicted labels and for `Fit.from_softmax`.
        predicted: whether the labels are the softmax head's own predictions.
    """
    fit = fit or Fit()
    C = samples.num_classes
    inputs, labels = samples.flat(fit.views)
    if predicted and softmax is not None:
        labels = _predicted(inputs, softmax, fit.temperature)
    elif fit.label_noise:
        labels = _noisy(samples, fit, len(inputs) // len(samples.labels))
    if fit.weight_decay is None:
        decay = fit.decay * default_weight_decay(C, own=make is linear)
        fit = replace(fit, weight_decay=decay)

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return evidence_loss(logits, targets, fit.positive_weight)

    start = _centred(softmax) if fit.from_softmax and softmax is not None else None
    return _train(inputs, labels, C, make, fit, loss, start)


def _centred(softmax: nn.Module) -> nn.Module:
    start = copy.deepcopy(softmax)
    last = [part for part in start.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        for parameter in (last.weight, last.bias):
            parameter -= parameter.mean(0)
    return start


def _predicted(inputs: Tensor, teacher: nn.Module, temperature: float | None) -> Tensor:
    found = []
    with torch.no_grad():
        for start in range(0, len(inputs), 4096):
            logits = teacher(inputs[start : start + 4096].float())
            soft = temperature is not None
            found.append((logits / temperature).softmax(1) if soft else logits.argmax(1))
    return torch.cat(found)


def _noisy(samples: Samples, fit: Fit, views: int) -> Tensor:
    random = np.random.default_rng([fit.seed, 7])
    labels = samples.labels.copy()
    wrong = random.random(len(labels)) < fit.label_noise
    labels[wrong] = (
        labels[wrong] + random.integers(1, samples.num_classes, wrong.sum())
    ) % samples.num_classes
    return torch.from_numpy(np.repeat(labels, views))


def _train(
    inputs: Tensor,
    labels: Tensor,
    num_classes: int,
    make: Make,
    fit: Fit,
    loss: Loss,
    start: nn.Module | None = None,
) -> Trained:
    torch.manual_seed(fit.seed)
    module = make(inputs.shape[1], num_classes)
    if start is not None:
        module = copy.deepcopy(start).train().requires_grad_(True)
    last = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    with torch.no_grad():
        if fit.bias is not None:
            last.bias.fill_(fit.bias)
        if fit.non_negative:
            last.weight.abs_()
    decay = fit.weight_decay or 0.0
    optimizer = torch.optim.Adam(
        module.parameters(),
        lr=fit.learning_rate,
        weight_decay=decay if start is None else 0.0,
        fused=True,
    )
    right = 0.0
    for _ in range(fit.epochs):
        right = 0.0
        for chosen in torch.randperm(len(inputs)).split(fit.batch):
            targets = labels[chosen]
            logits = module(inputs[chosen].float())
            optimizer.zero_grad()
            loss(logits, targets).backward()  # type: ignore[no-untyped-call]
            if start is not None:
                for own, first in zip(module.parameters(), start.parameters(), strict=True):
                    own.grad.add_(own.detach() - first.detach(), alpha=decay)  # type: ignore[union-attr]
            optimizer.step()
            if fit.non_negative:
                with torch.no_grad():
                    last.weight.clamp_(min=0)
            hard = targets if targets.ndim == 1 else targets.argmax(1)
            right += float((logits.detach().argmax(1) == hard).sum())
    return Trained(module.eval(), right / len(inputs))
