"""Which layer a map is made of, where the user names none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from sigcam.runtime.errors import ModelError
from sigcam.train.layers import name_of
from sigcam.train.layout import Layout, Value, layout_of, operator_name

_NORMS = {"layer_norm", "rms_norm", "batch_norm"}


def default_target(
    features: fx.GraphModule, branch: Value, head: nn.Module, example: Tensor
) -> Value:
    """The branch layer, or the last normalisation before it whose whole grid counts.

    In a vision transformer that classifies by its class token, the logits don't depend
    on the other tokens of the last block any more: their gradients are zero. The last
    values on which they depend at every position are those that enter the last attention,
    which is also the layer that users of gradient CAMs name by hand (the first layer
    normalisation of the last block). Found by a gradient on random weights of the head.

    Args:
        features: images to the branch layer's value.
        branch: that value.
        head: from it to the logits.
        example: float32 [B, 3, H, W]; only its shape matters.

    Raises:
        ModelError: there is no such layer, or the head has no gradient.
    """
    if branch.layout.kind == "nchw":
        return branch
    image = next(iter(features.graph.nodes))
    candidates: dict[str, tuple[fx.Node, Layout]] = {}
    for node in features.graph.nodes:
        layout = layout_of(node, image)
        if layout is not None and (operator_name(node) in _NORMS or node.name == branch.node):
            candidates[node.name] = node, layout
    gradients = _gradients(features, set(candidates), head, example)
    for name, (node, layout) in reversed(candidates.items()):
        gradient = gradients.get(name)
        if gradient is not None and bool((layout.to_grid(gradient).abs().sum(1) > 0).all()):
            layer = branch.layer if name == branch.node else name_of(features.graph, node)
            return Value(layer, layout, name)
    raise ModelError(
        "the logits depend on no layer at every position of its grid; name a target layer"
    )


def check_reach(
    features: fx.GraphModule, targets: Sequence[Value], head: nn.Module, example: Tensor
) -> None:
    """Refuses target layers that the logits don't depend on: their maps would be empty.

    The tokens of a vision transformer's last block are such a layer, if a class token alone
    is classified; or what a detach or a rounding cuts off.

    Args:
        features: images to the branch layer's value.
        targets: values in there.
        head: from the branch layer's value to the logits.
        example: float32 [B, 3, H, W]; only its shape matters.

    Raises:
        ModelError: names the layer.
    """
    gradients = _gradients(features, {target.node for target in targets}, head, example)
    for target in targets:
        gradient = gradients.get(target.node)
        if gradient is None or not bool(target.layout.to_grid(gradient).any()):
            raise ModelError(
                f"the logits must depend on the grid of the target layer {target.layer!r}, but "
                f"their gradient there is zero at every position (a class token alone is "
                f"classified, or a detach or a rounding follows); leave the target layer out, or "
                f"name an earlier one"
            )


class Probe(fx.Interpreter):
    """Runs features with gradients on, and keeps the values of some nodes.

    Attributes:
        values: node name to its value; gradients of what comes later can be taken with
            respect to them.
    """

    def __init__(self, features: fx.GraphModule, names: set[str]) -> None:
        super().__init__(features)
        self.names, self.values = names, dict[str, Tensor]()

    def run_node(self, node: fx.Node) -> object:
        """Computes a node; a wanted one without a gradient becomes the start of one."""
        value = super().run_node(node)
        if node.name in self.names:
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.values[node.name] = value
        return value


def _gradients(
    features: fx.GraphModule, names: set[str], head: nn.Module, example: Tensor
) -> dict[str, Tensor | None]:
    """Gradients of a random sum of the logits with respect to the candidates."""
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in features.parameters()), torch.device("cpu"))
    images = torch.randn((1, *example.shape[1:]), generator=generator).to(device)
    # Random, as a fresh head may be all zeros; scaled, or attention saturates and its
    # gradients round to zero.
    tensors = {
        name: (torch.randn(value.shape, generator=generator) / _fan_in(value) ** 0.5).to(device)
        for name, value in head.named_parameters()
    }
    probe = Probe(features, names)
    try:
        with torch.enable_grad():
            logits = functional_call(head, tensors, (probe.run(images),))
            weights = torch.randn(logits.shape, generator=generator).to(device)
            total = (logits * weights).sum()
            if not total.requires_grad:
                return dict.fromkeys(probe.values)
            found = torch.autograd.grad(total, list(probe.values.values()), allow_unused=True)
    except RuntimeError as exc:  # an operator without a derivative
        raise ModelError(
            f"the gradient of the logits can't be taken: {exc}; name a target layer"
        ) from exc
    return dict(zip(probe.values, found, strict=True))


def _fan_in(value: Tensor) -> int:
    return value[0].numel() if value.ndim > 1 else 1
