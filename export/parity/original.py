"""Compares the graph's gradients with those of the model as the user gave it.

Everything else is measured against graphs that torch.export made, and an export drops what
changes gradients alone: the backward pass of a custom `autograd.Function`, backward hooks on
modules and tensors, a straight-through estimator. So the model itself, untraced and with
its hooks, is asked for the same gradient.
"""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.gradients import gradients_of
from sigcam.classifier.graph import ValueRecorder, give_tensors
from sigcam.core.errors import ParityError
from sigcam.core.spec import Preprocessing
from sigcam.export.parity.inputs import as_images, sample_images

_TOLERANCE = 1e-2
"""Largest difference of two gradients, as a share of the larger. Both are float32 and come
from the same operators, so they agree to rounding, or another rule was used."""

_INPUT = "the images"


def check_original(dual: DualBranch, preprocessing: Preprocessing) -> None:
    """Refuses a model whose own gradients at the target layers aren't the graph's.

    Where a target layer is a value that no module returns, gradients are compared at the
    images. A target layer at which the model itself has no gradient isn't compared, nor is a
    model whose backward pass fails (values changed in place, inference mode inside).

    Args:
        dual: the model, float32, on the CPU; it isn't changed.
        preprocessing: how an image becomes the input.

    Raises:
        ParityError: the gradients differ on every image that was tried; names the layer.

    Example:
        check_original(dual, Preprocessing(224, 224))
    """
    images = as_images(sample_images(preprocessing)[:3], preprocessing)
    worst: dict[str, float] = {}
    # A ReLU at zero may fall to one side or the other; a rule of its own shows on all images.
    for image in images:
        errors = _errors(dual, image.float())
        worst = {k: min(e, worst.get(k, e)) for k, e in errors.items()}
        if not any(error > _TOLERANCE for error in worst.values()):
            return
    place = max(worst, key=lambda name: worst[name])
    where = f"with respect to {_INPUT}" if place == _INPUT else f"at the layer {place!r}"
    named = " or name the target layer by a module," if place == _INPUT else ""
    raise ParityError(
        f"the gradient of the logits {where} differs from the model's own by {worst[place]:.2g} "
        f"of it: the model changes gradients in its backward pass (a custom autograd.Function, a "
        f"backward hook, a straight-through estimator), which no forward-only graph can follow; "
        f"nothing was written. Remove that from the model,{named} or use a target layer behind "
        f"it"
    )


def _errors(dual: DualBranch, image: Tensor) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(dual.num_classes, generator=generator)
    try:
        wanted = _own_gradients(dual, image, weights)
    except RuntimeError:  # the model can't be differentiated, so it has no rule of its own
        return {}
    got = _graph_gradients(dual, image, weights)
    errors = {}
    for place, want in wanted.items():
        size = max(float(want.norm()), float(got[place].norm()), 1e-30)
        error = float((got[place] - want).norm()) / size
        errors[place] = error if torch.isfinite(want).all() else 0.0  # another check's
    return errors


def _own_gradients(dual: DualBranch, image: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Returns the gradients that the model itself gives, by layer."""
    traced = dual.softmax_head.traced
    model = copy.deepcopy(traced.model).cpu()
    # The classifier may have been changed after it was split (a shift of its weights).
    give_tensors(model, dual.classifier_tensors())
    modules = dict(model.named_modules())
    shapes = {t.layer: t.layout.value_shape for t in dual.targets if t.layer in modules}
    places: dict[str, Tensor] = {}

    def record(layer: str) -> object:
        def hook(module: nn.Module, inputs: object, output: object) -> object:
            del module, inputs
            if not isinstance(output, Tensor) or tuple(output.shape[1:]) != shapes[layer]:
                return output
            value = output if output.requires_grad else output.detach().requires_grad_()
            places[layer] = value
            # What follows may change its input in place.
            return value.clone()

        return hook

    for layer in shapes:
        modules[layer].register_forward_hook(record(layer))
    image = image.clone().requires_grad_()
    with torch.enable_grad():
        score = (dataclasses.replace(traced, model=model).original(image * 1) * weights).sum()
        if len(places) < len(dual.targets):
            places[_INPUT] = image
        if not score.requires_grad:
            return {}
        gradients = gradients_of(score, list(places.values()), allow_unused=True)
    pairs = zip(places, gradients, strict=True)
    return {place: one for place, one in pairs if one is not None}


def _graph_gradients(dual: DualBranch, image: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Returns the gradients of the graph that is exported, by layer."""
    nodes = {target.layer: target.node for target in dual.targets}
    recorder = ValueRecorder(dual.features, set(nodes.values()))
    image = image.clone().requires_grad_()
    with torch.enable_grad():
        logits = dual.softmax_head(recorder.run(image))
        score = (dual.softmax_head.traced.squashed(logits) * weights).sum()
        places = {layer: recorder.values[node] for layer, node in nodes.items()}
        places[_INPUT] = image
        gradients = gradients_of(score, list(places.values()), allow_unused=True)
    return {
        place: torch.zeros_like(value) if one is None else one
        for (place, value), one in zip(places.items(), gradients, strict=True)
    }
