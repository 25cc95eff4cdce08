"""Fits a classifier that is linear in its parameters by L-BFGS over the whole set."""

from __future__ import annotations

import copy
import time

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from sigcam.core.errors import UsageError
from sigcam.core.progress import Bar
from sigcam.train.checkpoint import Interruption
from sigcam.train.fit import Fit, mode

ITERATIONS = 10
"""Iterations per epoch: between two checkpoints and lines of metrics."""

TOLERANCE = 1e-5
"""The run ends when the gradient's largest entry is this share of the first gradient's."""


def fit_lbfgs(fit: Fit, neck_shape: tuple[int, ...], resume: bool) -> float:
    """Minimises mean loss + weight_decay / 2 |theta - start|^2 over all samples.

    torch's L-BFGS with a strong Wolfe line search. Logits that are linear in the
    parameters make the problem convex, so what it converges to is the one minimum.

    Args:
        fit: with cached samples, in one process.
        neck_shape: shape of the classifier's input without the batch.
        resume: whether to go on from the checkpoint.

    Returns:
        Largest absolute entry of the objective's gradient at the end.

    Raises:
        UsageError: the classifier isn't linear in its parameters, or several processes.
        TrainingError: a loss that isn't finite; nothing to resume.
        KeyboardInterrupt: Ctrl-C; the checkpoint is that of the last whole epoch.
    """
    if fit.world.size > 1:
        raise UsageError("L-BFGS runs in one process; start it without torchrun, or use Adam")
    if not linear_in_parameters(fit.classifier, neck_shape):
        raise UsageError(
            "L-BFGS is for heads whose trained part is one linear layer; this one isn't "
            "linear in its parameters, so use Adam"
        )
    rate, epochs, _ = fit.settings.steps
    optimizer = torch.optim.LBFGS(
        fit.classifier.parameters(),
        lr=rate,
        max_iter=ITERATIONS,
        max_eval=4 * ITERATIONS,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )
    if resume:
        fit.resume(optimizer)
    else:
        fit.save(optimizer)
    with mode(fit.classifier, training=False), Interruption() as interruption:
        objective = _Objective(fit, interruption)
        return _run(fit, optimizer, objective, epochs)


def _run(fit: Fit, optimizer: torch.optim.LBFGS, objective: _Objective, epochs: int) -> float:
    norm = objective.gradient()
    if fit.state.first_gradient is None:
        fit.state.first_gradient = norm
    enough = TOLERANCE * fit.state.first_gradient
    with Bar(epochs, unit="epoch", label="L-BFGS", done=fit.state.epoch, shown=fit.progress) as bar:
        while fit.state.epoch < epochs and norm > enough:
            started = time.perf_counter()
            before = objective.value
            optimizer.step(objective)  # type: ignore[no-untyped-call]
            norm = objective.gradient()
            fit.state.sums = objective.sums
            fit.end_epoch(optimizer, started)
            bar.note(f"loss={objective.loss:.4g}, gradient={norm:.2g}")
            bar.advance()
            objective.stop_if_asked()  # during validation or saving
            if objective.value >= before:  # float32 has no smaller step to offer
                break
    return norm


class _Objective:
    """The closure: value and gradients over the whole set."""

    def __init__(self, fit: Fit, interruption: Interruption) -> None:
        self._fit, self._interruption = fit, interruption
        size, rows = fit.train.size, fit.settings.steps[2]
        self._chunks = [np.arange(i, min(i + rows, size)) for i in range(0, size, rows)]
        self._parameters = list(fit.classifier.parameters())
        self.loss = self.value = 0.0
        self.sums = fit.new_sums()

    def __call__(self) -> torch.Tensor:
        fit, decay = self._fit, self._fit.settings.decay
        for parameter in self._parameters:
            parameter.grad = None
        value = torch.zeros((), device=fit.world.device, dtype=torch.float64)
        sums = fit.new_sums()
        with torch.enable_grad():
            for x, targets in fit.train.batches(self._chunks, 0):
                self.stop_if_asked()
                logits = fit.classifier(x)
                part = fit.loss(logits, targets) * (len(targets) / fit.train.size)
                part.backward()  # type: ignore[no-untyped-call]
                value += part.detach()
                fit.accuracy.add(sums[2:], logits, targets)
        self.loss, self.sums = float(value), sums
        sums[0], sums[1] = self.loss * fit.train.size, fit.train.size
        fit.check_finite(self.loss)
        for parameter, moved in fit.decayed():
            value += 0.5 * decay * moved.double().square().sum()
            if parameter.grad is not None:
                parameter.grad.add_(moved, alpha=decay)
        self.value = float(value)
        return value

    def stop_if_asked(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self._interruption.asked:
            raise KeyboardInterrupt

    def gradient(self) -> float:
        """Evaluates once; the largest absolute entry of the gradient."""
        self()
        return max(float(p.grad.abs().max()) for p in self._parameters if p.grad is not None)


def linear_in_parameters(classifier: nn.Module, neck_shape: tuple[int, ...]) -> bool:
    """Returns whether the logits are affine in the classifier's parameters, tried on random ones.

    f(t a + (1 - t) b) must equal t f(a) + (1 - t) f(b) in float64. Two linear layers in
    a row fail (they multiply parameters), and so does any activation between them.

    Example:
        >>> linear = nn.Linear(4, 3)
        >>> linear_in_parameters(linear, (4,))
        True
        >>> linear_in_parameters(nn.Sequential(linear, nn.ReLU(), nn.Linear(3, 2)), (4,))
        False
    """
    generator = torch.Generator().manual_seed(0)

    def random(shape: torch.Size | tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    twin = copy.deepcopy(classifier).cpu().double().eval()
    x = random((3, *neck_shape))
    a = {name: random(p.shape) for name, p in twin.named_parameters()}
    b = {name: random(p.shape) for name, p in twin.named_parameters()}
    mixed = {name: 0.3 * a[name] + 0.7 * b[name] for name in a}
    try:
        with torch.no_grad():
            fa, fb, fm = (functional_call(twin, p, (x,)) for p in (a, b, mixed))
    except RuntimeError:  # an operator that takes only float32 is no linear layer
        return False
    return bool(a) and torch.allclose(fm, 0.3 * fa + 0.7 * fb, rtol=1e-9, atol=1e-9)
