"""Finds the layer that maps are made of, and checks those that a user names.

The logits must depend on a target layer (`check_reach`), and its grid must lie as the image
does (`sigcam.classifier.place`). Where the user names none, it is the branch
layer, or the last layer before it that the logits depend on everywhere (`default_target`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from sigcam.classifier.gradients import gradients_of
from sigcam.classifier.graph import ValueRecorder, device_of
from sigcam.classifier.layer_names import name_of
from sigcam.classifier.layout import Layout, Value, layout_of, operator_name
from sigcam.core.errors import ModelError

_NORMS = {"layer_norm", "rms_norm", "batch_norm"}


class _NoDerivativeError(ModelError):
    """The gradient of the logits can't be taken."""


def default_target(
    features: fx.GraphModule, branch: Value, head: nn.Module, example: Tensor
) -> Value:
    """Returns the branch layer, or the last normalisation before it whose whole grid counts.

    Where there is no such normalisation, it is the last grid of any kind.

    In a vision transformer that classifies by its class token, the logits don't depend
    on the other tokens of the last block any more: their gradients are zero. The last
    values on which they depend at every position are those that enter the last attention,
    which is also the layer that users of gradient CAMs name by hand (the first layer
    normalisation of the last block). It is found by a gradient on random weights of the head.

    Args:
        features: images to the branch layer's value.
        branch: the branch layer's value.
        head: from that value to the logits.
        example: float32 [B, 3, H, W]; only its shape matters.

    Raises:
        ModelError: there is no such layer, or the head has no gradient.

    Example:
        target = default_target(dual.features, dual.branch, dual.softmax_head, images)
        target.layer, target.layout.shape  # ("encoder.layers.encoder_layer_11.ln_1", (768, 14, 14))
    """
    if branch.layout.kind == "nchw":
        return branch
    image = next(iter(features.graph.nodes))
    grids: dict[str, tuple[fx.Node, Layout]] = {}
    for node in features.graph.nodes:
        layout = layout_of(node, image)
        if layout is not None:
            grids[node.name] = node, layout
    norms = {
        name: (node, layout)
        for name, (node, layout) in grids.items()
        if operator_name(node) in _NORMS or name == branch.node
    }
    for candidates in (norms, grids):
        gradients = _gradients(features, set(candidates), head, example)
        for name, (node, layout) in reversed(candidates.items()):
            gradient = gradients.get(name)
            if gradient is not None and bool((layout.to_grid(gradient).abs().sum(1) > 0).all()):
                layer = branch.layer if name == branch.node else name_of(features.graph, node)
                return Value(layer, layout, name)
    some = [
        name_of(features.graph, node)
        for name, (node, layout) in grids.items()
        if (found := gradients.get(name)) is not None and bool(layout.to_grid(found).any())
    ]
    if not some:
        raise ModelError(
            "the logits must depend on the grid of some layer, but their gradients are zero "
            "everywhere (a detach or a rounding follows); use a network without it"
        )
    raise ModelError(
        f"the logits depend on no layer at every position of its grid; name a target layer on "
        f"which they depend at some, such as {some[-1]!r}"
    )


def check_reach(
    features: fx.GraphModule, targets: Sequence[Value], head: nn.Module, example: Tensor
) -> None:
    """Refuses target layers that the logits don't depend on: their maps would be empty.

    The tokens of a vision transformer's last block are such a layer, if a class token alone
    is classified; or what a detach or a rounding cuts off.

    Args:
        features: images to the branch layer's value.
        targets: the target layers' values in `features`.
        head: from the branch layer's value to the logits.
        example: float32 [B, 3, H, W]; only its shape matters.

    Raises:
        ModelError: the logits don't depend on a target layer; names it.

    Example:
        check_reach(dual.features, targets, dual.softmax_head, torch.zeros(1, 3, 224, 224))
    """
    try:
        gradients = _gradients(features, {target.node for target in targets}, head, example)
    except _NoDerivativeError:
        return  # the methods without gradients are left, and export says so
    for target in targets:
        gradient = gradients.get(target.node)
        if gradient is None or not bool(target.layout.to_grid(gradient).any()):
            raise ModelError(
                f"the logits must depend on the grid of the target layer {target.layer!r}, but "
                f"their gradient there is zero at every position (a class token alone is "
                f"classified, or a detach or a rounding follows); leave the target layer out, or "
                f"name an earlier one"
            )


def _gradients(
    features: fx.GraphModule, names: set[str], head: nn.Module, example: Tensor
) -> dict[str, Tensor | None]:
    """Returns the gradients of a random sum of the logits with respect to some values."""
    generator = torch.Generator().manual_seed(0)
    device = device_of(features)
    images = torch.randn((1, *example.shape[1:]), generator=generator).to(device)
    # Random, as a fresh head may be all zeros; scaled, or attention saturates and its
    # gradients round to zero.
    tensors = {
        name: (torch.randn(value.shape, generator=generator) / _fan_in(value) ** 0.5).to(device)
        for name, value in head.named_parameters()
    }
    recorder = ValueRecorder(features, names)
    try:
        with torch.enable_grad():
            logits = functional_call(head, tensors, (recorder.run(images),))
            weights = torch.randn(logits.shape, generator=generator).to(device)
            total = (logits * weights).sum()
            if not total.requires_grad:
                return dict.fromkeys(recorder.values)
            values = list(recorder.values.values())
            gradients = gradients_of(total, values, allow_unused=True)
    except RuntimeError as exc:  # an operator without a derivative
        raise _NoDerivativeError(
            f"the gradient of the logits can't be taken, so no target layer is found: {exc}; name "
            f"a target layer"
        ) from exc
    return dict(zip(recorder.values, gradients, strict=True))


def _fan_in(value: Tensor) -> int:
    return value[0].numel() if value.ndim > 1 else 1
