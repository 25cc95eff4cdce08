"""Rewrites a traced graph to make it smaller and friendlier to ONNX backends.

What is computed doesn't change. The tracer leaves behind sizes computed at run time
where a -1 would do, weights expanded to the batch for a batched product, max-pooling
with indices that nobody reads, and aliases.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

_aten = torch.ops.aten
_ALIASES = (_aten.alias.default, _aten.detach.default, _aten.detach_.default)
_VIEWS = (_aten.view.default, _aten._unsafe_view.default)
_GLOBAL_POOLS: dict[Any, list[int]] = {
    _aten.adaptive_avg_pool1d.default: [-1],
    _aten.adaptive_avg_pool2d.default: [-1, -2],
    _aten.adaptive_avg_pool3d.default: [-1, -2, -3],
}
_MAX_POOLS: dict[Any, Any] = {
    _aten.max_pool2d_with_indices.default: _aten.max_pool2d.default,
    _aten.max_pool3d_with_indices.default: _aten.max_pool3d.default,
}
_RESIZES: dict[Any, Any] = {
    getattr(_aten, name).vec: getattr(_aten, name).default
    for name in (
        "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
        "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
        "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
    )
}  # fmt: skip
_COPIES = (_aten.lift_fresh_copy.default, _aten.clone.default)


def simplify(module: fx.GraphModule) -> fx.GraphModule:
    """Rewrites a graph from `make_fx` in place.

    Args:
        module: traced from functional code with only the batch size symbolic.

    Returns:
        `module`.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda x: x.clone().relu_())(torch.zeros(2))
        >>> [str(node.target) for node in traced.graph.nodes]
        ['x_1', 'aten.clone.default', 'aten.relu_.default', 'output']
        >>> [str(node.target) for node in simplify(traced).graph.nodes]
        ['x_1', 'aten.relu.default', 'output']
    """
    graph = module.graph
    # First of all: a copy may be there only to be changed in place.
    for node in graph.nodes:
        _make_functional(node)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _drop_no_op(node) or _fold_expanded(node) or _drop_indices(node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        _free_batch(node)
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return module


def prepare(graph: fx.Graph) -> None:
    """Rewrites a head's graph in place, before it is traced again with its backward pass.

    Takes out what depends on strides. A view is right only for the strides that it was
    recorded with; attention by the math kernel, for one, gives its result others than the
    fused kernel. Global average pooling of channels-last values sets its result's strides
    in place, and the gradient of that scatters into memory; as a mean it does neither.
    Checks of types and strides go.

    Resizing gets its output size as numbers: PyTorch's kernel that works it out fixes a
    symbolic batch to its example.

    Args:
        graph: what `torch.export` made, with its composite operators whole and its values noted.

    Example:
        >>> graph = fx.Graph()
        >>> flat = graph.call_function(_aten.view.default, (graph.placeholder("x"), [4]))
        >>> prepare(graph)
        >>> str(flat.target)
        'aten.reshape.default'
    """
    for node in list(graph.nodes):
        if node.target is _aten.view.default:
            node.target = _aten.reshape.default
        elif node.target is _aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.target in _GLOBAL_POOLS:
            axes = _GLOBAL_POOLS[node.target]
            if list(node.args[1]) == [1] * len(axes):
                node.target, node.args = _aten.mean.dim, (node.args[0], axes, True)
        elif node.target in _RESIZES:
            x, _, *align, factors = node.args
            sizes = [int(size) for size in node.meta["val"].shape[2:]]
            node.target = _RESIZES[node.target]
            node.args = (x, sizes, *align, *(factors or [None] * len(sizes)))


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _replace(node: fx.Node, new: fx.Node) -> bool:
    node.replace_all_uses_with(new, propagate_meta=False)
    node.graph.erase_node(node)
    return True


def _make_functional(node: fx.Node) -> None:
    """Replaces an in-place operator, as some of autograd's formulas have, by its twin that returns.

    Only where nobody reads the old value later: the tracer already gave later readers of
    the changed tensor the operator's own result.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return
    packet = getattr(_aten, target._opname[:-1], None) if target._opname.endswith("_") else None
    changed = node.args[0]
    if packet is None or not isinstance(changed, fx.Node) or target.namespace != "aten":
        return
    if any(node < user for user in changed.users) or changed.target in (*_VIEWS, *_ALIASES):
        return
    if target._overloadname in packet.overloads():
        node.target = getattr(packet, target._overloadname)


def _drop_no_op(node: fx.Node) -> bool:
    """Drops aliases, copies, and views or expansions to the shape that is there already."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(_value(source), Tensor):
        return False
    if node.target in _ALIASES or node.target in _COPIES:
        return _replace(node, source)
    if node.target in (*_VIEWS, _aten.expand.default) and _same_shape(source, node):
        return _replace(node, source)
    return False


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    # As text: comparing symbols would add guards to their environment.
    return [str(s) for s in _value(one).shape] == [str(s) for s in _value(other).shape]


def _fold_expanded(node: fx.Node) -> bool:
    """Writes bmm(x, w expanded to the batch) as matmul(x, w): no copy of w for each image."""
    if node.target is not _aten.bmm.default:
        return False
    left, right = node.args
    plain = [_unexpanded(left), _unexpanded(right)]
    if plain == [None, None] or None not in plain:
        return False
    with node.graph.inserting_before(node):
        new = node.graph.call_function(_aten.matmul.default, (plain[0] or left, plain[1] or right))
    new.meta["val"] = _value(node)
    return _replace(node, new)


def _unexpanded(node: Any) -> fx.Node | None:
    """Returns the matrix [n, m] that `node` [b, n, m] repeats, transposed if it was."""
    swapped = node.target is _aten.transpose.int and {a % 3 for a in node.args[1:]} == {1, 2}
    base: Any = node.args[0] if swapped else node
    shape = _value(base).shape[-2:]
    while base.target in (*_VIEWS, _aten.expand.default) and _value(base).shape[-2:] == shape:
        base = base.args[0]
    matrix = _value(base)
    if not isinstance(matrix, Tensor) or matrix.shape != shape:
        return None
    if not swapped:
        found: fx.Node = base
        return found
    with node.graph.inserting_after(base):
        turned: fx.Node = node.graph.call_function(_aten.t.default, (base,))
    turned.meta["val"] = matrix.t()
    return turned


def _drop_indices(node: fx.Node) -> bool:
    """Drops max-pooling's indices that nobody reads: backends but ONNX Runtime lack them."""
    plain = _MAX_POOLS.get(node.target)
    users = [user for user in node.users if user.target is operator.getitem]
    if plain is None or any(user.args[1] != 0 and user.users for user in users):
        return False
    with node.graph.inserting_before(node):
        new = node.graph.call_function(plain, node.args, node.kwargs)
    new.meta["val"] = _value(node)[0]
    for user in users:
        if user.args[1] == 0:
            user.replace_all_uses_with(new, propagate_meta=False)
    return True


def _free_batch(node: fx.Node) -> None:
    """Writes -1 for the one size of a view that isn't a number."""
    if node.target not in _VIEWS:
        return
    # A dropped copy may have made the strides contiguous; a view would insist on that.
    node.target = _aten.reshape.default
    sizes: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    free = [axis for axis, size in enumerate(sizes) if not isinstance(size, int)]
    if len(free) == 1 and -1 not in sizes:
        sizes[free[0]] = -1
        node.args = (node.args[0], sizes)
