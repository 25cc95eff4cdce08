"""Re-makes the last linear layer of a graph that was read, for other classes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from sigcam.classifier.onnx.linear import MOVING, SQUASHING
from sigcam.classifier.onnx.load import OnnxClassifier
from sigcam.classifier.onnx.reader import Step
from sigcam.core.errors import ModelError

_ADVICE = (
    "train on data with the file's own classes or with --labels predicted, or make the file anew "
    "from its source with a layer for these classes"
)


@dataclass(frozen=True)
class _Layer:
    """The last linear layer: the tensors' names in the module, and the axis of the classes.

    `behind` are the nodes that follow it, the last one first.
    """

    weight: str
    axis: int
    bias: str | None
    step: Step
    behind: tuple[Step, ...]


def remake_last_layer(model: OnnxClassifier, num_logits: int) -> None:
    """Gives the last linear layer fresh parameters for another number of logits, in place.

    They are drawn from torch's global random state, as torch draws those of linear layers.

    Args:
        model: what was read of a file; it is changed.
        num_logits: how many there are to be.

    Raises:
        ModelError: the graph doesn't end in one linear layer with weights of its own, or
            what follows it is written for the number of classes that it has.

    Example:
        remake_last_layer(read_classifier(Path("resnet50.onnx")).model, 3)
    """
    layer = _last_layer(model)
    old = model.get_parameter(layer.weight)
    inputs = old.numel() // old.shape[layer.axis]
    bound = 1 / math.sqrt(inputs)
    shape = [num_logits if i == layer.axis else n for i, n in enumerate(old.shape)]
    _set(model, layer.weight, torch.empty(shape).uniform_(-bound, bound))
    if layer.bias is not None:
        shape = [*model.get_parameter(layer.bias).shape[:-1], num_logits]
        _set(model, layer.bias, torch.empty(shape).uniform_(-bound, bound))
    _retarget(model, layer.behind, old.shape[layer.axis], num_logits)
    model.is_whole = False
    _check_shape(model, num_logits, layer.step)


def _last_layer(model: OnnxClassifier) -> _Layer:
    """Finds the layer by going back from the output through what may follow it.

    A bias that the file adds by itself is the layer's own by now; see `in_one_form`.
    """
    makers = {name: step for step in model.steps for name in step.outputs}
    name, behind = model.output_name, list[Step]()
    while name in makers:
        step = makers[name]
        operator = step.call.operator
        if operator in ("Gemm", "MatMul", "Conv"):
            return _checked(model, step, tuple(behind))
        if operator not in SQUASHING | MOVING:
            break
        behind.append(step)
        name = step.inputs[0]
    last = makers.get(name)
    came = "its input" if last is None else f"{last.call.name} ({last.call.operator})"
    raise ModelError(
        f"for new classes a file must end in one linear layer, this one ends in {came}; {_ADVICE}"
    )


def _checked(model: OnnxClassifier, step: Step, behind: tuple[Step, ...]) -> _Layer:
    operator, call = step.call.operator, step.call
    weight = model.tensors.get(step.inputs[1])
    own = step.inputs[2] if len(step.inputs) > 2 else ""
    bias = model.tensors.get(own) if own else None
    parameters = dict(model.named_parameters())
    wanted = [name for name in (weight, bias) if name is not None]
    shape = parameters[weight].shape if weight in parameters else torch.Size()
    linear = len(shape) == 2 or (operator == "Conv" and shape[2:].numel() == 1 and len(shape) > 2)
    grouped = call.get("group", 1) != 1 or call.get("transA", 0)
    if not linear or grouped or not all(name in parameters for name in wanted):
        raise ModelError(
            f"for new classes the last layer must have one matrix of weights and at most one bias, "
            f"{call.name} ({operator}) has others; {_ADVICE}"
        )
    _refuse_shared(model, [name for name in (step.inputs[1], own) if name], call.name)
    assert weight is not None  # noqa: S101 (it is among the parameters)
    rows_first = operator == "Conv" or (operator == "Gemm" and call.get("transB", 0))
    return _Layer(weight, 0 if rows_first else 1, bias, step, behind)


def _refuse_shared(model: OnnxClassifier, names: list[str], where: str) -> None:
    for name in names:
        users = [step.call.name for step in model.steps if name in step.inputs]
        if len(users) > 1:
            raise ModelError(
                f"for new classes the last layer must have weights of its own, {name} of {where} "
                f"is used by {', '.join(users)}; {_ADVICE}"
            )


def _set(model: OnnxClassifier, name: str, value: torch.Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))


def _retarget(model: OnnxClassifier, behind: tuple[Step, ...], old: int, new: int) -> None:
    """Gives Reshapes behind the layer, whose target names the number of classes, the new one."""
    for step in behind:
        name = step.call.name
        target = model.targets.get(name)
        if target is None and step.call.operator == "Reshape":
            target = model.known.get(step.inputs[1])
        sizes = [] if target is None else [int(n) for n in target]
        if sizes.count(old) == 1:
            model.targets[name] = [new if n == old else n for n in sizes]


def _check_shape(model: OnnxClassifier, num_logits: int, step: Step) -> None:
    takes, (height, width) = model.takes, model.size
    try:
        with torch.no_grad():
            found = model(torch.zeros(2, takes.channels, height, width))
    except ModelError as exc:
        raise ModelError(
            f"what follows the last layer {step.call.name} is written for its own number of "
            f"classes: {exc}; {_ADVICE}"
        ) from exc
    if found.reshape(len(found), -1).shape != (2, num_logits):
        raise ModelError(
            f"what follows the last layer {step.call.name} is written for its own number of "
            f"classes: of {num_logits} logits it makes {list(found.shape)}; {_ADVICE}"
        )
