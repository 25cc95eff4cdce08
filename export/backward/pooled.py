"""Finds cheaper ways to the gradient's mean in the traced backward part.

Grad-CAM needs only the mean of the gradient over the positions.

Behind a pooling the gradient is one value per channel, expanded over the grid; the
expansion is left out. Behind flatten and a linear layer (VGG, AlexNet) the last step of the
backward pass is a product with that layer's matrix, [4096, 25088] for VGG: the mean is taken of the
matrix instead, once, at export: [4096, 512].
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from sigcam.classifier.graph import ancestors, argument, outputs_of
from sigcam.classifier.layout import Layout

_aten = torch.ops.aten
_SCALINGS = {
    _aten.div.Scalar,
    _aten.mul.Scalar,
    _aten.div.Tensor,
    _aten.mul.Tensor,
    _aten.neg.default,
}
_PRODUCTS = {_aten.mm.default, _aten.linear.default}


def unexpanded(backward: fx.GraphModule, layout: Layout) -> fx.GraphModule | None:
    """Leaves out the expansion of a gradient that is the same at all positions.

    Args:
        backward: the backward part, with a single gradient as its output; it isn't changed.
        layout: where the grid is in the target layer's value.

    Returns:
        The backward part with a gradient [M, N, 1, 1] instead of [M, N, h, w]; None where the
        gradient isn't the same at all positions by construction.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda base: (base.expand(2, 5, 3, 4) / 12,))(torch.zeros(2, 5, 1, 1))
        >>> narrow = unexpanded(traced, Layout("nchw", (5, 3, 4)))
        >>> narrow(torch.ones(2, 5, 1, 1))[0].shape
        torch.Size([2, 5, 1, 1])
    """
    if layout.kind != "nchw":
        return None
    copied = fx.GraphModule(backward, _copied(backward.graph))
    (node,) = outputs_of(copied.graph)
    while node.target in _SCALINGS and len(node.all_input_nodes) == 1:
        node = argument(node)
    if node.target is not _aten.expand.default:
        return None
    base = argument(node)
    sizes = base.meta["val"].shape
    if len(sizes) != 4 or tuple(sizes[1:]) != (layout.shape[0], 1, 1):
        return None
    node.replace_all_uses_with(base)
    return _finished(copied)


def pooled(backward: fx.GraphModule, layout: Layout) -> fx.GraphModule | None:
    """Takes the mean over the positions of the last matrix instead of the gradient.

    Args:
        backward: the backward part, with a single gradient as its output; it isn't changed.
        layout: where the grid is in the target layer's value.

    Returns:
        The backward part with the gradient's mean [M, N] as its output; None where its last
        product isn't one with a constant matrix that only linear operators without other
        inputs follow.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> matrix = torch.ones(4, 60)  # of a linear layer behind flatten, 5 channels of 3x4
        >>> traced = make_fx(lambda c: ((c @ matrix).view(-1, 5, 3, 4),))(torch.zeros(2, 4))
        >>> short = pooled(traced, Layout("nchw", (5, 3, 4)))
        >>> short.pooled_weight.shape, short(torch.ones(2, 4))[0].shape
        (torch.Size([4, 5]), torch.Size([2, 5]))
    """
    copied = fx.GraphModule(backward, _copied(backward.graph))
    (gradient,) = outputs_of(copied.graph)
    product = _last_product(gradient)
    if product is None:
        return None
    matrix = _matrix(copied, product)
    rest = _after(copied, product, gradient)
    if not _is_linear(rest, matrix[:2]):
        return None
    with torch.no_grad():
        mean = layout.to_grid(rest(matrix)).mean((2, 3))
    copied.register_parameter("pooled_weight", nn.Parameter(mean.contiguous(), requires_grad=False))
    with copied.graph.inserting_before(copied.graph.output_node()):
        weight = copied.graph.get_attr("pooled_weight")
        found = copied.graph.call_function(_aten.mm.default, (product.args[0], weight))
    copied.graph.output_node().args = ((found,),)
    return _finished(copied)


def _copied(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.output(new.graph_copy(graph, val_map={}))
    return new


def _finished(module: fx.GraphModule) -> fx.GraphModule:
    # The saved values keep their placeholders, whether they are still read or not.
    module.graph.eliminate_dead_code()
    # A new one takes the tensors that the graph still reads, and no others.
    return fx.GraphModule(module, module.graph, class_name="Backward")


def _last_product(gradient: fx.Node) -> fx.Node | None:
    """Returns the last product with a constant matrix that the gradient depends on alone."""
    behind = ancestors(gradient)
    *_, cotangent = gradient.graph.find_nodes(op="placeholder")
    rows = str(cotangent.meta["val"].shape[0])
    node: fx.Node
    for node in reversed(gradient.graph.nodes):
        if node not in behind or node.target not in _PRODUCTS or len(node.args) != 2:
            continue
        if str(node.meta["val"].shape[0]) != rows:
            continue
        after = ancestors(gradient, stop=[node])
        inputs = {n for n in after if n.op == "placeholder"}
        if not inputs and _is_constant(node.args[1]):
            return node
    return None


def _is_constant(node: object) -> bool:
    return isinstance(node, fx.Node) and all(n.op != "placeholder" for n in ancestors(node))


def _matrix(module: fx.GraphModule, product: fx.Node) -> Tensor:
    """Returns the constant [D, P] of the product x @ matrix."""
    source = argument(product, 1)
    new = fx.Graph()
    new.output(new.graph_copy(_upto(source), val_map={}))
    with torch.no_grad():
        value: Tensor = fx.GraphModule(module, new)()
    return value.t() if product.target is _aten.linear.default else value


def _upto(node: fx.Node) -> fx.Graph:
    needed = ancestors(node)
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for other in node.graph.nodes:
        if other in needed:
            copies[other] = new.node_copy(other, lambda n: copies[n])
    new.output(copies[node])
    return new


def _after(module: fx.GraphModule, start: fx.Node, end: fx.Node) -> fx.GraphModule:
    needed = ancestors(end, stop=[start])
    new, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    copies[start] = new.placeholder("product")
    for other in start.graph.nodes:
        if other in needed and other not in copies:
            copies[other] = new.node_copy(other, lambda n: copies[n])
    new.output(copies[end])
    return fx.GraphModule(module, new)


def _is_linear(rest: fx.GraphModule, example: Tensor) -> bool:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    other = torch.randn(example.shape, generator=generator, dtype=example.dtype)
    with torch.no_grad():
        want = 2 * rest(one) - 3 * rest(other)
        return torch.allclose(rest(2 * one - 3 * other), want, rtol=1e-4, atol=1e-5)
