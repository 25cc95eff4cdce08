"""Makes the batch of a graph dynamic that was written for one image, or for a fixed number.

A graph for one image has 1 where others have the batch: in the targets of its Reshapes, mostly,
also multiplied with other sizes (the heads of an attention). Where the batch goes is found by a
run on fake images whose number is a large prime: an axis that it divides holds the batch. Where in
that axis, between which other sizes that were multiplied with it, is followed from node to node.
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
    """Runs a graph on fake images and plans the targets of its Reshapes on the way.

    Attributes:
        behind: name of a value to the number of elements behind one step of the batch, for
            values in whose axis the batch is multiplied with other sizes.
    """

    behind: dict[str, int]

    def _run(self, step: Step, values: dict[str, Any]) -> Any:
        x = self._value(step.inputs[0], values) if step.inputs else None
        behind = self._behind(step.inputs[0], x) if step.inputs else None
        if step.call.operator == "Reshape":
            target = self._value(step.inputs[1], values)
            if isinstance(x, Tensor) and not isinstance(target, Tensor):
                target = _for_one(ints(target), list(x.shape), self.written_for)
                planned = _planned(step.call, x.shape, target, behind)
                if planned is not None:
                    self.targets[step.call.name] = planned
        found = super()._run(step, values)
        results = found if isinstance(found, (tuple, list)) else (found,)
        for name, result in zip(step.outputs, results, strict=False):
            if not isinstance(result, Tensor) or not _merged(result.shape):
                continue
            if step.call.operator not in ("Reshape", "Flatten"):
                behind = self._inherited(step, values, result)
            if behind is not None:
                self.behind[name] = behind
        return found

    def _behind(self, name: str, value: Any) -> int | None:
        """Returns how many elements are behind one step of the batch; None where not known."""
        held = _held(value.shape) if isinstance(value, Tensor) else []
        if len(held) != 1:
            return None
        assert isinstance(value, Tensor)  # noqa: S101 (it has the batch)
        own = math.prod(value.shape[held[0] + 1 :])
        return own if value.shape[held[0]] == _PRIME else self.behind.get(name)

    def _inherited(self, step: Step, values: dict[str, Any], found: Tensor) -> int | None:
        """Returns the same for what a node gives that leaves the order within axes as it is."""
        held = _held(found.shape)
        for name in step.inputs:
            value = self._value(name, values)
            behind = self._behind(name, value)
            if behind is None or len(held) != 1:
                continue
            (axis,) = _held(value.shape)
            if value.shape[axis] == found.shape[held[0]]:
                inner = behind // int(math.prod(value.shape[axis + 1 :]))
                return inner * math.prod(found.shape[held[0] + 1 :])
        return None


def _held(sizes: Sequence[int]) -> list[int]:
    """Returns the axes that hold the batch."""
    return [i for i, n in enumerate(sizes) if n and n % _PRIME == 0]


def _merged(sizes: Sequence[int]) -> bool:
    """Returns whether the batch is multiplied with other sizes in an axis."""
    return any(n != _PRIME and n % _PRIME == 0 for n in sizes if n)


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
    vars(graph)["behind"] = {}
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            found = graph(torch.empty(_PRIME, *shape))
    finally:
        graph.__class__ = kind
        del vars(graph)["behind"]
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


def _planned(
    call: Call, sizes: Sequence[int], target: list[Any], behind: int | None
) -> list[int] | None:
    """Returns a Reshape's target with -1 for the batch; None where it needs no change."""
    target = target_shape(call, list(sizes), [int(n) for n in target])
    held = _held(sizes)
    if len(held) != 1 or any(n % _PRIME == 0 and n for n in target):
        return None
    axis = held[0]
    own = [n // _PRIME if i == axis else n for i, n in enumerate(sizes)]
    resolved = _resolved(own, axis, target)
    if resolved is None:
        return None  # a target for any batch; the -1 takes it in
    place = _place(own, axis, resolved, behind)
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


def _place(own: list[int], axis: int, target: list[int], behind: int | None) -> int | None:
    """Returns the axis of a target that the batch goes into.

    Args:
        own: the input's shape for one image.
        axis: where the batch is in it.
        target: the output's shape for one image.
        behind: the number of elements behind one step of the batch; None where that isn't known,
            and the batch is outermost or innermost of its axis.
    """
    inner = math.prod(own[axis + 1 :])
    found = []
    for stride in dict.fromkeys((inner * own[axis], inner) if behind is None else (behind,)):
        for place, size in enumerate(target):
            rest = math.prod(target[place + 1 :])
            if rest <= stride <= rest * size and stride % rest == 0:
                found.append(place)
    # An axis of size 1 has no other reason to be there. The last axis holds features; of the
    # others the later one: an attention's heads rather than its tokens.
    alone = [place for place in found if target[place] == 1]
    inner_most = [place for place in sorted(found, reverse=True) if place < len(target) - 1]
    return next(iter([*alone, *inner_most, *found]), None)
