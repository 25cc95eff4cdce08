"""Finds out which methods can be exported of a classifier, without writing anything."""

from __future__ import annotations

import copy

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import SigcamError
from sigcam.export.methods import METHODS, RUN_TIME_METHODS
from sigcam.export.modules import CamGraph
from sigcam.export.options import ExportOptions


def applicable_methods(dual: DualBranch) -> dict[str, str]:
    """Tries the methods on a classifier's own head (the branch softmax).

    The part of the graph that belongs to a method is built, with the backward pass where it has
    one, and neither exported nor compared. Methods of the same need share it.

    Args:
        dual: the model; it isn't changed.

    Returns:
        Name of each method to why it can't be exported; "" where it can.

    Example:
        >>> from torch import nn
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> found = applicable_methods(DualBranch(nn.Sequential(*layers), input_size=8))
        >>> found["cam"], found["refinecam"].partition(",")[0]
        ('', 'refinecam multiplies the CAMs of several target layers')
    """
    frozen = copy.deepcopy(dual).cpu().eval()
    by_need: dict[str, str] = {}
    found = {}
    for name, method in {**METHODS, **RUN_TIME_METHODS}.items():
        similar = min(method.options.get("similar", 1), max(1, dual.num_classes - 1))
        options = {"similar": similar} if "similar" in method.options else {}
        key = f"{method.need} {method.refines}"
        if key not in by_need or method.contrasts:
            by_need[key] = _refusal(frozen, name, options)
        found[name] = by_need[key]
    return found


def _refusal(dual: DualBranch, method: str, numbers: dict[str, float]) -> str:
    try:
        options = ExportOptions(
            method=method, branch="softmax", has_sigmoid=False, method_options=numbers
        )
        CamGraph(dual, options)
    except SigcamError as exc:
        return str(exc)
    return ""
