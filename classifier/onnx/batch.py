"""Makes the batch of a graph dynamic that was written for one image, or for a fixed number.

A graph for one image has 1 where others have the batch: in the targets of its Reshapes, mostly,
also multiplied with other sizes (the heads of an attention). Where the batch goes is found by a
run on fake images whose number is a large prime: an axis that it divides holds the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sigcam.classifier.onnx.operators.shapes import target_shape
from sigcam.classifier.onnx.operators.table import Call, ints
from sigcam.classifier.onnx.reader import OnnxGraph, Step
from sigcam.core.errors import ModelError

_PRIME = 10_007
"""The number of fake images; no size of a network is a multiple of it."""


class _Probe(OnnxGraph):
    """Runs a graph on fake images and plans the targets of its Reshapes on the way."""

    def _run(self, step: Step, values: dict[str, Any]) -> Any:
        if step.call.operator == "Reshape":
            x, target = (self._value(name, values) for name in step.inputs[:2])
            if isinstance(x, Tensor) and not isinstance(target, Tensor):
                target = _for_one(ints(target), list(x.shape), self.written_for)
                planned = _planned(step.call, x.shape, target)
                if planned is not None:
                    self.targets[step.call.name] = planned
        return super()._run(step, values)


def plan_batch(graph: OnnxGraph, shape: Sequence[int], batch: int = 1) -> tuple[int, ...]:
    """Finds the targets that leave the batch dynamic, and puts them into the graph.

    Args:
        graph: the graph; its `targets` are set.
        shape: of one input, without the batch, in the graph's own layout.
        batch: the number of images that the graph was written for.

    Returns:
        The output's shape without the batch.

    Raises:
        ModelError: a node depends on how many images there are, or the output has no batch.
    """
    kind = type(graph)
    # The same object under another class, so that no weight is copied.
    graph.__class__ = _Probe
    graph.written_for = batch
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            found = graph(torch.empty(_PRIME, *shape))
    finally:
        graph.__class__ = kind
    if not isinstance(found, Tensor) or found.ndim == 0 or found.shape[0] != _PRIME:
        came = ["B" if n == _PRIME else n for n in getattr(found, "shape", ())]
        raise ModelError(
            f"the output {graph.output_name} must be logits [B, C] of B images, it is {came}; "
            "name another output (model.onnx#NAME), or export the model with a dynamic batch"
        )
    return tuple(int(n) for n in found.shape[1:])


def _for_one(target: list[Any], sizes: list[Any], batch: int) -> list[Any]:
    """Returns a target for a fixed number of images as it would be for one.

    Only the outermost axis is looked at, and only of values that begin with the batch.
    """
    first = target[0] if target else 0
    if batch == 1 or not isinstance(first, int) or first <= 0 or first % batch:
        return target
    return [first // batch, *target[1:]] if sizes[0] % _PRIME == 0 else target


def _planned(call: Call, sizes: Sequence[int], target: list[Any]) -> list[int] | None:
    """Returns a Reshape's target with -1 for the batch; None where it needs no change."""
    target = target_shape(call, list(sizes), [int(n) for n in target])
    held = [i for i, n in enumerate(sizes) if n % _PRIME == 0]
    if len(held) != 1 or any(n % _PRIME == 0 and n for n in target):
        return None
    axis = held[0]
    own = [n // _PRIME if i == axis else n for i, n in enumerate(sizes)]
    resolved = _resolved(own, axis, target)
    if resolved is None:
        return None  # a target for any batch; the -1 takes it in
    place = _place(own, axis, resolved)
    if place is None:
        raise call.refused(
            "a target shape that leaves the batch whole",
            f"{target} for [{', '.join('B' if n == _PRIME else str(n) for n in sizes)}]",
            "export the model with a dynamic batch",
        )
    if -1 in target and target[place] != -1:
        target = resolved
    return [-1 if i == place else n for i, n in enumerate(target)]


def _resolved(own: list[int], axis: int, target: list[int]) -> list[int] | None:
    """Returns a target for one image without -1; None if -1 takes the batch in by itself."""
    total, known = math.prod(own), math.prod(n for n in target if n != -1)
    if -1 not in target:
        return target if known == total else None
    if known == 0 or total % known:
        return None
    if total == known or (target[0] == -1 and math.prod(own[: axis + 1]) == 1):
        return None
    rest = total // known
    return [rest if n == -1 else n for n in target]


def _place(own: list[int], axis: int, target: list[int]) -> int | None:
    """Returns the axis of a target that the batch goes into.

    Args:
        own: the input's shape for one image.
        axis: where the batch is in it, outermost or innermost of that axis.
        target: the output's shape for one image.
    """
    behind = math.prod(own[axis + 1 :])
    found = []
    for stride in dict.fromkeys((behind * own[axis], behind)):  # outermost, innermost
        for place in range(len(target)):
            inner = math.prod(target[place + 1 :])
            if inner == stride or inner * target[place] == stride:
                found.append(place)
    # An axis of size 1 has no other reason to be there. The last axis holds features; of the
    # others the later one: an attention's heads rather than its tokens.
    alone = [place for place in found if target[place] == 1]
    inner_most = [place for place in sorted(found, reverse=True) if place < len(target) - 1]
    return next(iter([*alone, *inner_most, *found]), None)
