"""Compares a classifier that was read from an ONNX file with the file itself.

Everything else is measured against what was read. Here the file's own output counts: its logits,
and its differences at two points along a random direction, at the layers that maps are made of.
Where ONNX Runtime has the operators in float64, the difference of two close points is the
derivative. In float32 rounding hides that, so the points lie further apart, and the differences
of the file and of what was read, in float64, are compared; the gradient is then compared with
close differences of what was read. How far a difference is known is part of the comparison, and
an image on which it isn't known well enough (a ReLU at zero, a tie of a maximum) doesn't count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.gradients import gradients_of
from sigcam.classifier.graph import attribute, extract, module_of, tensor_of
from sigcam.classifier.layout import Value
from sigcam.classifier.onnx.channel_order import in_order
from sigcam.classifier.onnx.compare import original_logits
from sigcam.classifier.onnx.held import HeldFile
from sigcam.classifier.onnx.kept import NotKeptError, last_step
from sigcam.classifier.onnx.load import OnnxClassifier
from sigcam.classifier.onnx.tail import FileTail
from sigcam.classifier.trace import Traced
from sigcam.core.errors import ParityError
from sigcam.core.spec import OutputError
from sigcam.core.types import Array
from sigcam.export.parity.compare import compare
from sigcam.export.parity.inputs import as_images, normalised
from sigcam.export.parity.replay import Replay
from sigcam.export.parity.run import ParityRun

GRADIENT_TOLERANCE = 2e-3
"""Largest error of a derivative, as a share of the gradient's size along the direction."""

_KNOWN = 1e-3
"""How well a difference must be known for an image to count, likewise."""

_CLOSE, _APART = 1e-5, 2.0**-4
"""Half of the distance of two points, as a share of the value's size: in float64, in float32."""

_DOUBLE_ROUNDING, _FLOAT_ROUNDING = 2.0**-46, 2.0**-19
"""What a score is rounded by, as a share of its terms: by many operations, in either type."""

_IMAGES = 2
_TINY = 1e-30

Score = Callable[[float], tuple[float, float]]
"""From a step along the direction to a score, and to the size of its terms."""


def file_errors(run: ParityRun, logits: Array, *, gradients: bool) -> dict[str, OutputError]:
    """Compares an artifact with the ONNX file that its classifier was read from.

    Args:
        run: the run that the artifact was verified in.
        logits: the artifact's, [P, C], of the images `run.counted_images`.
        gradients: whether the maps are made of gradients.

    Returns:
        The errors of "logits" and "gradients"; the latter only where they can be told, and none
        at all for a classifier of another source.

    Raises:
        ParityError: the logits are outside the tolerance of the file's precision, or gradients
            outside `GRADIENT_TOLERANCE`.

    Example:
        file_errors(run, logits, gradients=True)["logits"].max_rel  # 3.1e-07
    """
    source = run.model.softmax_head.traced.model
    if not isinstance(source, OnnxClassifier) or source.held is None or not source.is_whole:
        return {}  # of another source, or with a last layer that the file doesn't have
    errors = {"logits": _logit_error(run, source, source.held, logits)}
    if gradients:
        for target in run.model.targets:
            error = _gradient_error(run, source, source.held, target)
            if error is not None and error.max_rel >= errors.get("gradients", error).max_rel:
                errors["gradients"] = error
    return errors


def _logit_error(
    run: ParityRun, source: OnnxClassifier, held: HeldFile, logits: Array
) -> OutputError:
    images = normalised(run.counted_images, run.preprocessing).astype(np.float32)
    want = original_logits(
        held.source, source.output_name, source.takes, in_order(images, source.takes),
        held.path.parent,
    )  # fmt: skip
    traced = run.model.softmax_head.traced
    got = traced.squashed(torch.from_numpy(logits)).numpy()
    error = compare(got, np.exp(want) if traced.logarithm else want)
    tolerance = max(held.tolerance, run.options.tolerance)
    if not error.max_rel <= tolerance:
        raise ParityError(
            f"the artifact's logits differ from those of {held.path.name} in ONNX Runtime by "
            f"{error.max_rel:.3g} of the largest, more than {tolerance:g}; nothing was written"
        )
    return error


def _gradient_error(
    run: ParityRun, source: OnnxClassifier, held: HeldFile, target: Value
) -> OutputError | None:
    """Returns the largest error over the images, at one layer; None where it can't be told."""
    place = _place(run.model, source, target)
    if place is None:
        return None
    tail = FileTail(source, place[1])
    if not tail.runs:
        return None
    found: list[OutputError] = []
    for image in as_images(run.images[:_IMAGES], run.preprocessing):
        error = _Point(run.model, image, place[0]).error(tail)
        found += [error] if error is not None else []
    if not found:
        return None
    worst = max(found, key=lambda error: error.max_rel)
    if worst.max_rel > GRADIENT_TOLERANCE:
        raise ParityError(
            f"the gradient of the logits at the layer {target.layer!r} differs by "
            f"{worst.max_rel:.2g} of it from differences of {held.path.name} in ONNX Runtime; "
            "nothing was written. Please report the operators behind that layer, and name a later "
            "target layer until then"
        )
    return worst


def _place(dual: DualBranch, source: OnnxClassifier, target: Value) -> tuple[str, str] | None:
    """Returns a value's name in the features and in the file: the layer's, or one before it."""
    nodes = {node.name: node for node in dual.features.graph.nodes}
    image = next(iter(dual.features.graph.nodes))
    part = extract(image, nodes[target.node], image, attribute, "images")
    cut = module_of(part, tensor_of(dual.features), "Part")
    try:
        node, step = last_step(cut, dual.softmax_head.traced, source)
    except NotKeptError:
        return None
    return (node.name, step.outputs[0]) if node.name in nodes else None


class _Point:
    """One image, with the value that the output is differentiated by."""

    def __init__(self, dual: DualBranch, image: Tensor, node: str) -> None:
        """Runs the classifier, and draws a direction and the weights of the classes' scores.

        Args:
            dual: in float64.
            image: float64 [1, n, H, W], normalised.
            node: the value's name in the features.
        """
        self._dual, self._image = dual, image
        self._replay = Replay(dual.features, node, image)
        self._value = self._replay.value
        random = np.random.default_rng(0)
        size = float(self._value.square().mean().sqrt())
        direction = torch.from_numpy(random.standard_normal(self._value.shape))
        self._direction = direction * size
        self._weights = torch.from_numpy(random.standard_normal(dual.num_classes))

    def error(self, tail: FileTail) -> OutputError | None:
        """Returns the error of the gradient along the direction; None where it can't be told."""
        gradient = self._gradient()
        slope = float((gradient * self._direction).sum())
        size = float(gradient.norm()) * float(self._direction.square().mean().sqrt())
        if not np.isfinite(size) or size < _TINY:
            return None
        if tail.is_double:
            error, known = self._error_close(slope, lambda h: self._file_score(tail, h))
        else:
            error, known = self._error_close(slope, self._read_score)
            apart, apart_known = self._error_apart(tail)
            error, known = max(error, apart), max(known, apart_known)
        if not known <= _KNOWN * size:
            return None
        return OutputError(error, error / size)

    def _gradient(self) -> Tensor:
        with torch.enable_grad():
            value = self._value.detach().requires_grad_()
            end = self._replay.differentiable(value)
            score, _ = self._score(self._dual.softmax_head(end))
            (gradient,) = gradients_of(score, [value], allow_unused=True)
        return torch.zeros_like(value) if gradient is None else gradient

    def _score(self, logits: Tensor) -> tuple[Tensor, float]:
        """Returns the weighted sum of the logits, or what the file's output says of them.

        And the size of its terms. Of probabilities, a softmax's logarithms are taken.
        """
        traced = self._dual.softmax_head.traced
        rows = logits[:, 1:] if traced.one_logit else logits
        if traced.squashing is not None and traced.squashing != "sigmoid":
            rows = rows.log_softmax(1)
        terms = rows * self._weights[: rows.shape[1]]
        return terms.sum(), float(terms.detach().norm())

    def _read_score(self, step: float) -> tuple[float, float]:
        """Returns the score of what was read, and the size of its terms, at a step away."""
        value = self._replay.of(self._value + step * self._direction)
        with torch.no_grad():
            score, size = self._score(self._dual.softmax_head(value))
        return float(score), size

    def _file_score(self, tail: FileTail, step: float) -> tuple[float, float]:
        """Returns the same of the file."""
        value = (self._value + step * self._direction).detach().numpy()
        rows = _logits(tail(value, self._image.float().numpy()), self._dual.softmax_head.traced)
        terms = rows[0] * self._weights.numpy()[: rows.shape[1]]
        return float(terms.sum()), float(np.linalg.norm(terms))

    def _error_close(self, slope: float, score: Score) -> tuple[float, float]:
        """Compares a slope with close differences; returns the error, and what it is known to."""
        here, size = score(0.0)
        half = _CLOSE / 2
        sides = [[score(sign * h)[0] for sign in (1, -1)] for h in (_CLOSE, half)]
        wide, narrow = ((f - b) / (2 * h) for (f, b), h in zip(sides, (_CLOSE, half), strict=True))
        kink = abs(sum(sides[1]) - 2 * here) / half
        known = kink + abs(wide - narrow) + _DOUBLE_ROUNDING * size / _CLOSE
        return abs(narrow - slope), known

    def _error_apart(self, tail: FileTail) -> tuple[float, float]:
        """Compares differences of the file, in float32, with those of what was read."""
        file = [self._file_score(tail, sign * _APART) for sign in (1, -1)]
        read = [self._read_score(sign * _APART) for sign in (1, -1)]
        known = _FLOAT_ROUNDING * max(size for _, size in (*file, *read)) / _APART
        slopes = [(f[0] - b[0]) / (2 * _APART) for f, b in (file, read)]
        return abs(slopes[0] - slopes[1]), known


def _logits(rows: Array, traced: Traced) -> Array:
    """Returns what `_Point._score` takes the weighted sum of, from the file's output."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if traced.squashing is None:
            return rows
        logarithms = rows if traced.logarithm else np.log(rows)
        if traced.squashing == "sigmoid":
            return logarithms - np.log1p(-np.exp(logarithms))
        return logarithms
