"""Compares a graph's outputs with their definition, and finds where that can't be done.

A gradient can jump: a ReLU whose input lies within rounding of zero may be open on one
backend and shut on another. `is_unstable` finds the images where that happens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from sigcam.core.errors import ParityError
from sigcam.core.spec import OutputError
from sigcam.core.types import Array
from sigcam.export.parity.reference import Reference

GRADIENT_OUTPUTS = ("cams", "cam_weights")
"""Outputs that depend on gradients and may jump; the others count on every image."""

_SMOOTH_OUTPUTS = ("logits", "features", "all_scores")
_FLOOR = 1e-6
"""Outputs that are smaller than this everywhere are compared absolutely."""
_TINY = 1e-30
_CANCELLED = 1e-3
"""CAMs that are smaller than this share of their terms are compared with that share."""
_NOISE = 2.0**-22
_TRIALS = 8


def compare(got: Array, want: Array, floor: float = _FLOOR) -> OutputError:
    """Returns the largest errors of one output; NaN where either side has NaN or infinity.

    Args:
        got: what the graph gave, of any shape.
        want: what it should have given, in the same shape.
        floor: errors are relative to the largest value of `want`, or to this where it is
            larger.

    Raises:
        ParityError: the shapes differ.

    Example:
        >>> compare(np.array([2.0, 4.0]), np.array([2.0, 5.0]))
        OutputError(max_abs=1.0, max_rel=0.2)
    """
    if got.shape != want.shape:
        raise ParityError(f"an output has shape {list(got.shape)}, expected {list(want.shape)}")
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return OutputError(math.nan, math.nan)
    difference = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    size = max(float(np.abs(want).max(initial=0)), floor, _TINY)
    return OutputError(difference, difference / size)


def logit_floors(references: Iterable[Reference]) -> dict[str, float]:
    """Returns how large the logits of some images are, which their errors are relative to.

    One image doesn't tell: a class's logit may lie near zero by chance, and with two classes
    both do on an image that the classifier is undecided about.

    Args:
        references: the definition for each image, one or more.

    Returns:
        Name of each output that consists of logits to the largest one of its branch.

    Example:
        references = [Reference(model, one, options) for one in as_images(images, preprocessing)]
        floors = logit_floors(references)  # {"logits": 11.2, "evidence_logits": 4.6, ...}
    """
    references = list(references)
    softmax = max(float(one.logits.abs().max()) for one in references)
    sigmoid = max(float(one.sigmoid_logits.abs().max()) for one in references)
    scores = sigmoid if references[0].options.branch == "sigmoid" else softmax
    return {
        "logits": softmax,
        "evidence_logits": sigmoid,
        "sigmoid_logits": sigmoid,
        "scores": scores,
        "all_scores": scores,
    }


def errors_of(
    got: Mapping[str, Array], want: Mapping[str, Tensor], floors: Mapping[str, float]
) -> dict[str, OutputError]:
    """Returns the errors of each output of one image.

    Args:
        got: what the graph gave, by name.
        want: what `Reference.outputs` gives for the same classes.
        floors: what `logit_floors` gives for all images.

    Example:
        >>> got = {"logits": np.array([[2.0, 1.5]])}
        >>> want = {"logits": torch.tensor([[2.0, 1.0]]), "cam_size": torch.tensor(1.0)}
        >>> errors_of(got, want, {"logits": 10.0})  # the largest logit of all images is 10
        {'logits': OutputError(max_abs=0.5, max_rel=0.05)}
    """
    floors = {**floors, "cams": _CANCELLED * float(want["cam_size"]), "cam_weights": 0.0}
    return {
        name: compare(value, want[name].numpy(), floors.get(name, _FLOOR))
        for name, value in got.items()
    }


def worse(one: OutputError, other: OutputError) -> OutputError:
    """Returns the larger of two errors, each way; NaN counts as the largest.

    Example:
        >>> worse(OutputError(1.0, 0.1), OutputError(0.5, 0.2))
        OutputError(max_abs=1.0, max_rel=0.2)
    """
    return OutputError(_nan_max(one.max_abs, other.max_abs), _nan_max(one.max_rel, other.max_rel))


def is_unstable(reference: Reference, class_ids: Tensor, floors: Mapping[str, float]) -> bool:
    """Returns whether the definition moves by more than the tolerance under rounding.

    The pixels and the weights are moved by 2^-22 of their size, what a few float32
    operations may do, eight times; the outputs without gradients must stay.

    Args:
        reference: the definition for one image; its model isn't changed.
        class_ids: the classes whose CAMs are looked at, int64 [1, K].
        floors: what `logit_floors` gives for all images.

    Example:
        is_unstable(references[0], torch.tensor([[281, 7]]), logit_floors(references))
    """
    options = reference.options
    want = reference.outputs(class_ids)
    for moved in _moved(reference):
        errors = _moved_errors(moved.outputs(class_ids), want, floors)
        smooth = max(errors[name].max_rel for name in _SMOOTH_OUTPUTS)
        jumping = max(errors[name].max_rel for name in GRADIENT_OUTPUTS if name in errors)
        if smooth <= options.tolerance < jumping:
            return True
    return False


def is_ill_conditioned(reference: Reference, floors: Mapping[str, float]) -> bool:
    """Returns whether logits or features move by more than the tolerance under rounding.

    They are moved as in `is_unstable`. A network that normalises its own input does so on an
    image of one colour, whose deviation is zero but for rounding.

    Args:
        reference: the definition for one image; its model isn't changed.
        floors: what `logit_floors` gives for all images.

    Example:
        is_ill_conditioned(references[0], logit_floors(references))
    """
    ids = torch.zeros(1, 1, dtype=torch.int64)
    want = reference.outputs(ids)
    for moved in _moved(reference):
        errors = _moved_errors(moved.outputs(ids), want, floors)
        if not all(errors[name].max_rel <= reference.options.tolerance for name in _SMOOTH_OUTPUTS):
            return True
    return False


def _moved(reference: Reference) -> Iterator[Reference]:
    """Makes the definitions with pixels and weights moved by rounding."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIALS):
        model = copy.deepcopy(reference.model)
        with torch.no_grad():
            for value in model.parameters():
                value.mul_(1 + _NOISE * _random(value.shape, generator))
        images = reference.images
        images = images * (1 + _NOISE * _random(images.shape, generator))
        yield Reference(model, images, reference.options)


def _moved_errors(
    moved: Mapping[str, Tensor], want: Mapping[str, Tensor], floors: Mapping[str, float]
) -> dict[str, OutputError]:
    compared = [n for n in (*_SMOOTH_OUTPUTS, *GRADIENT_OUTPUTS) if n in moved]
    arrays = {name: moved[name].numpy() for name in compared}
    return errors_of(arrays, want, floors)


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def _nan_max(a: float, b: float) -> float:
    return float(np.maximum(a, b))  # max() would lose a NaN
