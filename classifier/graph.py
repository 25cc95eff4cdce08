"""Cutting a flat graph at one value: what comes after it, on its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

_sym_size = torch.ops.aten.sym_size.int


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """The values that a graph returns."""
    found = graph.output_node().args[0]
    return [found] if isinstance(found, fx.Node) else list(cast("tuple[fx.Node, ...]", found))


def argument(node: fx.Node, index: int = 0) -> fx.Node:
    """An argument that is known to be a node."""
    return cast("fx.Node", node.args[index])


def tensor_of(module: nn.Module) -> Callable[[str], Tensor]:
    """Looks up parameters, buffers and other tensors of `module` by their dotted names."""

    def tensor(name: str) -> Tensor:
        path, _, attribute = name.rpartition(".")
        value: Tensor = getattr(module.get_submodule(path), attribute)
        return value

    return tensor


def attribute(node: fx.Node) -> str | None:
    """The name of the tensor that a node fetches; None for other nodes."""
    return str(node.target) if node.op == "get_attr" else None


def has_batch(node: fx.Node, batch: fx.Node) -> bool:
    """Whether the value's first size is the batch size of `batch`."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and _same_size(value.shape[0], batch)


def _same_size(size: object, batch: fx.Node) -> bool:
    wanted = batch.meta["val"].shape[0]
    # Symbols are compared as expressions: `==` would add a guard to the shapes.
    return isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr


def is_batch_size(node: fx.Node, batch: fx.Node) -> bool:
    """Whether the node reads the batch size off a tensor."""
    return node.target is _sym_size and _same_size(node.meta.get("val"), batch)


def ancestors(node: fx.Node, stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """`node` and all that it is computed from, not going past `stop` (included)."""
    ends, found, open_nodes = set(stop), set[fx.Node](), [node]
    while open_nodes:
        current = open_nodes.pop()
        if current not in found:
            found.add(current)
            if current not in ends:
                open_nodes.extend(current.all_input_nodes)
    return found


def crossings(cut: fx.Node, end: fx.Node, image: fx.Node) -> list[fx.Node]:
    """The values before `cut`, other than it and the batch size, that `end` needs.

    An empty list means that everything between `cut` and `end` is a function of `cut`.
    """
    after = {cut}
    for node in cut.graph.nodes:  # in topological order
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    sizes = [n for n in cut.graph.nodes if is_batch_size(n, image)]
    needed = ancestors(end, stop=[cut, *sizes])
    free = _input_free(cut.graph, image)
    outside = [n for n in cut.graph.nodes if n in needed and n not in after and n not in free]
    return [n for n in outside if n not in sizes and any(u in after for u in n.users)]


def _input_free(graph: fx.Graph, image: fx.Node) -> set[fx.Node]:
    """What doesn't depend on the images, but for their number."""
    bound = {image}
    for node in graph.nodes:
        if is_batch_size(node, image):
            continue
        if any(source in bound for source in node.all_input_nodes):
            bound.add(node)
    return set(graph.nodes) - bound


def extract(
    start: fx.Node,
    end: fx.Node | Sequence[fx.Node],
    batch: fx.Node,
    lifted: Callable[[fx.Node], str | None],
    input_name: str,
) -> fx.Graph:
    """A new graph that computes `end` from `start`.

    Args:
        start: becomes the placeholder `input_name`.
        end: becomes the output; several become a tuple of outputs.
        batch: a value whose first size is the batch; sizes read off other values are
            read off the placeholder instead.
        lifted: original name of the tensor behind a placeholder, None for others.
        input_name: name of the new placeholder.
    """
    sizes = [n for n in start.graph.nodes if is_batch_size(n, batch)]
    ends = [end] if isinstance(end, fx.Node) else list(end)
    needed = set[fx.Node]().union(*(ancestors(n, stop=[start, *sizes]) for n in ends))
    new = fx.Graph()
    placeholder = new.placeholder(input_name)
    placeholder.meta = dict(start.meta)
    made: dict[fx.Node, fx.Node] = {start: placeholder}
    size: fx.Node | None = None
    for node in start.graph.nodes:
        if node not in needed or node is start:
            continue
        name = lifted(node)
        if name is not None:
            made[node] = new.get_attr(name)
            made[node].meta = dict(node.meta)
        elif node in sizes:
            if size is None:
                size = new.call_function(_sym_size, (placeholder, 0))
                size.meta = dict(node.meta)
            made[node] = size
        else:
            made[node] = new.node_copy(node, lambda n: made[n])
    new.output(made[end] if isinstance(end, fx.Node) else tuple(made[n] for n in ends))
    return new


def module_of(
    graph: fx.Graph,
    tensor: Callable[[str], Tensor],
    name: str,
    layers: Mapping[str, nn.Module] | None = None,
) -> fx.GraphModule:
    """A GraphModule of `graph` that holds the tensors and layers which the graph names."""
    root: dict[str, Tensor | nn.Module] = {
        str(node.target): tensor(str(node.target)) for node in graph.find_nodes(op="get_attr")
    }
    root.update(layers or {})
    graph.lint()
    return fx.GraphModule(root, graph, class_name=name)
