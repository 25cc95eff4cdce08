"""Cuts flat graphs at values, and runs them with some values recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, fx, nn

_sym_size = torch.ops.aten.sym_size.int


def outputs_of(graph: fx.Graph) -> list[fx.Node]:
    """Returns the values that a graph returns, as nodes.

    Example:
        >>> outputs_of(fx.symbolic_trace(nn.ReLU()).graph)
        [relu]
    """
    found = graph.output_node().args[0]
    return [found] if isinstance(found, fx.Node) else list(cast("tuple[fx.Node, ...]", found))


def argument(node: fx.Node, index: int = 0) -> fx.Node:
    """Returns an argument of a node that is known to be a node itself.

    Args:
        node: the node whose argument is taken.
        index: which of its arguments.

    Example:
        >>> (relu,) = outputs_of(fx.symbolic_trace(nn.ReLU()).graph)
        >>> argument(relu).op
        'placeholder'
    """
    return cast("fx.Node", node.args[index])


def tensor_of(module: nn.Module) -> Callable[[str], Tensor]:
    """Returns a function that looks up tensors of a module by their dotted names.

    Args:
        module: owns the parameters, buffers and other tensors.

    Example:
        >>> tensor_of(nn.Sequential(nn.Linear(3, 2)))("0.weight").shape
        torch.Size([2, 3])
    """

    def tensor(name: str) -> Tensor:
        path, _, attribute = name.rpartition(".")
        value: Tensor = getattr(module.get_submodule(path), attribute)
        return value

    return tensor


def attribute(node: fx.Node) -> str | None:
    """Returns the name of the tensor that a node fetches; None for other nodes.

    Example:
        >>> attribute(fx.Graph().get_attr("fc.weight"))
        'fc.weight'
    """
    return str(node.target) if node.op == "get_attr" else None


def has_batch(node: fx.Node, batch: fx.Node) -> bool:
    """Returns whether a value's first size is the batch size.

    Args:
        node: the value.
        batch: a value whose first size is the batch size.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda x: x.exp().mean(0), tracing_mode="symbolic")(torch.zeros(2, 3))
        >>> image, exp, mean, _ = traced.graph.nodes
        >>> has_batch(exp, image), has_batch(mean, image)
        (True, False)
    """
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.ndim > 0 and _same_size(value.shape[0], batch)


def _same_size(size: object, batch: fx.Node) -> bool:
    wanted = batch.meta["val"].shape[0]
    # Symbols are compared as expressions: `==` would add a guard to the shapes.
    return isinstance(size, torch.SymInt) and size.node.expr == wanted.node.expr


def is_batch_size(node: fx.Node, batch: fx.Node) -> bool:
    """Returns whether a node reads the batch size off a tensor.

    Args:
        node: any node.
        batch: a value whose first size is the batch size.

    Example:
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> def zeros_like_rows(x):
        ...     return x.new_zeros(x.shape[0])
        >>> traced = make_fx(zeros_like_rows, tracing_mode="symbolic")(torch.zeros(2, 3))
        >>> image, *others = traced.graph.nodes
        >>> [node.name for node in others if is_batch_size(node, image)]
        ['sym_size_int']
    """
    return node.target is _sym_size and _same_size(node.meta.get("val"), batch)


def sizes_of(node: fx.Node) -> str:
    """Writes the sizes of a value, with B for those that follow the batch.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda x: x.exp(), tracing_mode="symbolic")(torch.zeros(2, 1))
        >>> sizes_of(next(iter(traced.graph.nodes)))
        '[B, 1]'
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"[{', '.join(str(s) if isinstance(s, int) else 'B' for s in value.shape)}]"


def ancestors(node: fx.Node, stop: Iterable[fx.Node] = ()) -> set[fx.Node]:
    """Returns a node and all that it is computed from.

    Args:
        node: where the search begins.
        stop: nodes beyond which it doesn't go; they are in the result.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> image, linear, relu, _ = fx.symbolic_trace(model).graph.nodes
        >>> ancestors(relu) == {image, linear, relu}
        True
        >>> ancestors(relu, stop=[linear]) == {linear, relu}
        True
    """
    ends, found, open_nodes = set(stop), set[fx.Node](), [node]
    while open_nodes:
        current = open_nodes.pop()
        if current not in found:
            found.add(current)
            if current not in ends:
                open_nodes.extend(current.all_input_nodes)
    return found


def crossings(cut: fx.Node, end: fx.Node, image: fx.Node) -> list[fx.Node]:
    """Returns the values before a cut, beside the cut itself, that a later value needs.

    An empty list means that everything between the two is a function of the cut. Neither the
    batch size nor what doesn't depend on the images counts.

    Args:
        cut: the value at which the graph would be cut.
        end: the later value.
        image: the placeholder of the images.

    Example:
        >>> graph = fx.Graph()
        >>> image = graph.placeholder("image")
        >>> early = graph.call_function(torch.relu, (image,))
        >>> cut = graph.call_function(torch.exp, (early,))
        >>> end = graph.call_function(torch.add, (cut, early))  # goes around the cut
        >>> crossings(cut, end, image) == [early]
        True
    """
    after = {cut}
    for node in cut.graph.nodes:  # in topological order
        if any(source in after for source in node.all_input_nodes):
            after.add(node)
    sizes = [n for n in cut.graph.nodes if is_batch_size(n, image)]
    needed = ancestors(end, stop=[cut, *sizes])
    free = input_free(cut.graph, image)
    outside = [n for n in cut.graph.nodes if n in needed and n not in after and n not in free]
    return [n for n in outside if n not in sizes and any(u in after for u in n.users)]


def clean_cuts(end: fx.Node, image: fx.Node) -> list[fx.Node]:
    """Returns the values that alone lead to a later one, in the order of the graph.

    They are those without `crossings`, found in one pass over the graph; the image, if it is
    used at all, and the later value itself are among them.

    Args:
        end: the later value.
        image: the placeholder of the images.

    Example:
        >>> graph = fx.Graph()
        >>> image = graph.placeholder("image")
        >>> early = graph.call_function(torch.relu, (image,))
        >>> around = graph.call_function(torch.exp, (early,))
        >>> end = graph.call_function(torch.add, (around, early))
        >>> clean_cuts(end, image) == [image, early, end]
        True
    """
    free = input_free(end.graph, image)
    needed = ancestors(end, stop=[n for n in end.graph.nodes if is_batch_size(n, image)])
    path = [
        n for n in end.graph.nodes if n in needed and n not in free and not is_batch_size(n, image)
    ]
    place = {node: index for index, node in enumerate(path)}
    found: list[fx.Node] = []
    latest = -1  # the last place at which a value before the present one is used
    for index, node in enumerate(path):
        if latest <= index:
            found.append(node)
        latest = max([latest, *(place[user] for user in node.users if user in place)])
    return found


def input_free(graph: fx.Graph, image: fx.Node) -> set[fx.Node]:
    """Returns what doesn't depend on the images, but for their number.

    Args:
        graph: a traced graph.
        image: the placeholder of the images.

    Example:
        >>> graph = fx.Graph()
        >>> image, weight = graph.placeholder("image"), graph.placeholder("weight")
        >>> doubled = graph.call_function(torch.add, (weight, weight))
        >>> product = graph.call_function(torch.mul, (image, doubled))
        >>> input_free(graph, image) == {weight, doubled}
        True
    """
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
    """Makes a graph that computes one value from another.

    Args:
        start: becomes the placeholder `input_name`.
        end: becomes the output; several become a tuple of outputs.
        batch: a value whose first size is the batch size; batch sizes that are read off
            other values are read off the new placeholder instead.
        lifted: gives the name of the tensor that a node stands for; None for other nodes.
        input_name: the name of the new placeholder.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
        >>> image, linear, relu, _ = fx.symbolic_trace(model).graph.nodes
        >>> tail = extract(linear, relu, image, lambda node: None, "features")
        >>> [node.name for node in tail.nodes]
        ['features', '_1', 'output']
    """
    sizes = [n for n in start.graph.nodes if is_batch_size(n, batch)]
    ends = [end] if isinstance(end, fx.Node) else list(end)
    needed = set[fx.Node]().union(*(ancestors(n, stop=[start, *sizes]) for n in ends))
    new = fx.Graph()
    placeholder = new.placeholder(input_name)
    placeholder.meta = dict(start.meta)
    copies: dict[fx.Node, fx.Node] = {start: placeholder}
    size: fx.Node | None = None
    for node in start.graph.nodes:
        if node not in needed or node is start:
            continue
        name = lifted(node)
        if name is not None:
            copies[node] = new.get_attr(name)
            copies[node].meta = dict(node.meta)
        elif node in sizes:
            if size is None:
                size = new.call_function(_sym_size, (placeholder, 0))
                size.meta = dict(node.meta)
            copies[node] = size
        else:
            copies[node] = new.node_copy(node, lambda n: copies[n])
    new.output(copies[end] if isinstance(end, fx.Node) else tuple(copies[n] for n in ends))
    return new


def module_of(
    graph: fx.Graph,
    tensor: Callable[[str], Tensor],
    name: str,
    layers: Mapping[str, nn.Module] | None = None,
) -> fx.GraphModule:
    """Makes a module of a graph, with the tensors and layers that the graph names.

    Args:
        graph: what the module computes.
        tensor: looks up a tensor by the name that the graph has for it.
        name: the name of the module's class.
        layers: the modules that the graph calls, by name.

    Example:
        >>> graph = fx.Graph()
        >>> product = (graph.placeholder("x"), graph.get_attr("scale"))
        >>> _ = graph.output(graph.call_function(torch.mul, product))
        >>> module_of(graph, {"scale": torch.tensor(3.0)}.__getitem__, "Scale")(torch.ones(2))
        tensor([3., 3.])
    """
    root: dict[str, Tensor | nn.Module] = {
        str(node.target): tensor(str(node.target)) for node in graph.find_nodes(op="get_attr")
    }
    root.update(layers or {})
    graph.lint()
    return fx.GraphModule(root, graph, class_name=name)


def random_images(model: nn.Module, example: Tensor, count: int) -> Tensor:
    """Returns images of noise, always the same, on a model's device.

    Args:
        model: its first parameter tells the device.
        example: [B, n, H, W]; only the shape matters.
        count: how many.

    Returns:
        float32 [count, n, H, W].

    Example:
        >>> random_images(nn.Linear(2, 1), torch.zeros(1, 3, 4, 5), 2).shape
        torch.Size([2, 3, 4, 5])
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((count, *example.shape[1:]), generator=generator)
    return images.to(device_of(model))


def give_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copies tensors into a module's parameters and buffers, by name.

    What has no name there is left out. A plain dictionary given to `load_state_dict` lacks the
    versions that a state dict carries, without which MNASNet, for one, loads nothing.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> give_tensors(layer, {"weight": torch.ones(1, 1)})
        >>> layer.weight.item()
        1.0
    """
    state = module.state_dict()
    state.update(tensors)
    module.load_state_dict(state, strict=False)


def device_of(module: nn.Module) -> torch.device:
    """Returns the device of a module's parameters; the CPU where it has none.

    Example:
        >>> device_of(nn.ReLU())
        device(type='cpu')
    """
    return next((p.device for p in module.parameters()), torch.device("cpu"))


class ValueRecorder(fx.Interpreter):
    """Runs a graph with gradients on, and keeps the values of some nodes.

    Attributes:
        values: name of each of these nodes to its value. Gradients of what comes later can be
            taken with respect to them.

    Example:
        >>> module = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
        >>> recorder = ValueRecorder(module, {"_0"})
        >>> out = recorder.run(torch.ones(1, 2))
        >>> torch.equal(out, recorder.values["_0"].relu())
        True
    """

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        """Prepares a run.

        Args:
            module: what is run.
            names: names of nodes whose values are kept.
        """
        super().__init__(module)
        self.names, self.values = names, dict[str, Tensor]()

    def run_node(self, node: fx.Node) -> object:
        """Computes a node; a value that is kept becomes the start of a gradient if need be."""
        value = super().run_node(node)
        if node.name in self.names:
            value = value if value.requires_grad else value.detach().requires_grad_()
            self.values[node.name] = value
        return value
