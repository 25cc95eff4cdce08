"""Differences of a graph's outputs from their definition, and whether those can be told.

A gradient can jump: a ReLU whose input lies within rounding of zero may be open on one
backend and shut on another. `is_unstable` finds the images where that happens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ParityError
from sigcam.core.spec import OutputError, Preprocessing
from sigcam.core.types import Array
from sigcam.export.options import GraphOptions
from sigcam.export.parity.inputs import as_images
from sigcam.export.parity.reference import Reference

_FLOOR = 1e-6
"""Outputs that are smaller than this everywhere are compared absolutely."""
_TINY = 1e-30
_CANCELLED = 1e-3
"""CAMs that are smaller than this share of their terms are compared with that share."""
_PLAIN = ("logits", "features", "all_scores")
JUMPING = ("cams", "cam_weights")
"""Outputs that hang on gradients and may jump; the others count on every image."""
_NOISE = 2.0**-22
_TRIALS = 8


def compare(got: Array, want: Array, floor: float = _FLOOR) -> OutputError:
    """The largest errors of one output; NaN where either side has NaN or infinity.

    Relative to the largest value, or to `floor` where that is larger.
    """
    if got.shape != want.shape:
        raise ParityError(f"an output has shape {list(got.shape)}, expected {list(want.shape)}")
    if not (np.isfinite(got).all() and np.isfinite(want).all()):
        return OutputError(math.nan, math.nan)
    difference = float(np.abs(got.astype(np.float64) - want).max(initial=0))
    size = max(float(np.abs(want).max(initial=0)), floor, _TINY)
    return OutputError(difference, difference / size)


def errors_of(got: Mapping[str, Array], want: Mapping[str, Tensor]) -> dict[str, OutputError]:
    """The errors of each output of one image; `want` is what `Reference.outputs` gives."""
    # One class's logit may lie near zero by chance; the logits of all say how large they are.
    evidence, scores = (float(want[name].abs().max()) for name in ("sigmoid_logits", "all_scores"))
    floors = {
        "cams": _CANCELLED * float(want["cam_size"]),
        "cam_weights": 0.0,
        "evidence_logits": evidence,
        "scores": scores,
    }
    return {
        name: compare(value, want[name].numpy(), floors.get(name, _FLOOR))
        for name, value in got.items()
    }


def worse(one: OutputError, other: OutputError) -> OutputError:
    """The larger of two errors, each way; NaN counts as the largest."""
    return OutputError(_nan_max(one.max_abs, other.max_abs), _nan_max(one.max_rel, other.max_rel))


def is_unstable(
    twin: DualBranch,
    images: Array,
    preprocessing: Preprocessing,
    options: GraphOptions,
    ids: Tensor,
    tolerance: float,
) -> bool:
    """Whether the definition moves by more than the tolerance under rounding.

    The pixels and the weights are moved by 2^-22 of their size, what a few float32
    operations may do, eight times; the outputs without gradients must stay.
    """
    (inputs,) = as_images(images, preprocessing)
    want = Reference(twin, inputs, options).outputs(ids)
    generator = torch.Generator().manual_seed(0)
    for _ in range(_TRIALS):
        moved = copy.deepcopy(twin)
        with torch.no_grad():
            for value in [*moved.parameters()]:
                value.mul_(1 + _NOISE * _random(value.shape, generator))
        nudged = inputs * (1 + _NOISE * _random(inputs.shape, generator))
        got = Reference(moved, nudged, options).outputs(ids)
        numbers = {name: got[name].numpy() for name in (*_PLAIN, *JUMPING)}
        errors = errors_of(numbers, want)
        plain = max(errors[name].max_rel for name in _PLAIN)
        if plain <= tolerance < max(errors[name].max_rel for name in JUMPING):
            return True
    return False


def _random(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator, dtype=torch.float64) - 1


def _nan_max(a: float, b: float) -> float:
    return float(np.maximum(a, b))  # max() would lose a NaN
