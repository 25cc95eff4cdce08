"""Translates between names of layers and the values in a traced graph that they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import Tensor, fx, nn

from sigcam.classifier.graph import ancestors
from sigcam.classifier.layout import layout_of, operator_name
from sigcam.classifier.trace import LAYER, MARK, Traced
from sigcam.core.errors import ModelError

_FORWARD = "forward"


def modules_among(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Returns those layers that name a module; the others name "<module>:<operator>".

    Args:
        model: the classifier.
        layers: names of layers.

    Raises:
        ModelError: a module that doesn't exist; lists near names.

    Example:
        >>> modules_among(nn.Sequential(nn.ReLU()), ["0", "forward:mean"])
        ['0']
    """
    modules = [layer for layer in layers if ":" not in layer]
    for layer in modules:
        _check_name(model, layer)
    return modules


def _check_name(model: nn.Module, name: str) -> None:
    known = [n for n, _ in model.named_modules() if n]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    top = [n for n, _ in model.named_children()]
    hint = f"did you mean {', '.join(near)}" if near else f"the top level has {', '.join(top)}"
    raise ModelError(f"the model has no layer {name!r}; {hint}")


def named_value(traced: Traced, layer: str) -> fx.Node:
    """Returns the value on the path to the logits that a layer's name stands for.

    Args:
        traced: the classifier, with the outputs of modules that may be named marked.
        layer: a module's name, or "<module>:<operator>".

    Raises:
        ModelError: there is no such value.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8), layers=["1"])
        >>> named_value(traced, "1").name, named_value(traced, "0:conv2d").name
        ('relu', 'conv2d')
    """
    on_path = ancestors(traced.logits)
    if ":" not in layer:
        marks = traced.graph.find_nodes(op="call_function", target=MARK)
        used = [n for n in marks if n.args[1] == LAYER + layer and n in on_path]
        if used:
            return _unwrapped(used[-1])
        raise ModelError(
            f"the logits don't depend on the output of the layer {layer!r} in inference mode; "
            f"name a layer that the forward pass goes through"
        )
    path, _, operator = layer.rpartition(":")
    found: list[fx.Node] = [
        n
        for n in traced.graph.nodes
        if n in on_path
        and operator_name(n) == operator
        and (_path(n) or _FORWARD) == path
        and layout_of(n, traced.image) is not None
    ]
    if not found:
        raise ModelError(
            f"the model has no value {layer!r} with a grid on the way to its logits; "
            f"name a module, or leave the layer out"
        )
    return found[-1]


def _is_layer_mark(node: fx.Node) -> bool:
    return node.target is MARK and str(node.args[1]).startswith(LAYER)


def _unwrapped(node: fx.Node) -> fx.Node:
    """Returns the value that a mark of a layer, or of several, passes on."""
    while _is_layer_mark(node):
        source = node.args[0]
        assert isinstance(source, fx.Node)  # noqa: S101 (a mark's first argument is a tensor)
        node = source
    return node


def name_of(graph: fx.Graph, node: fx.Node) -> str:
    """Names a value: the outermost module that returns it, else "<module>:<operator>".

    Args:
        graph: the traced graph.
        node: the value.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> name_of(traced.graph, traced.logits), name_of(traced.graph, traced.image)
        ('3', 'forward:input')
    """
    last: dict[str, fx.Node] = {}
    for other in graph.nodes:
        if not _is_layer_mark(other):
            for path in _stack(other):
                last[path] = other
    for path in _stack(node):
        if path and last[path] is node:
            return path
    return f"{_path(node) or _FORWARD}:{operator_name(node)}"


def describe(node: fx.Node) -> str:
    """Describes a value for people: the layer that it comes from, and its sizes.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> describe(traced.logits)
        '3:linear [B, 2]'
    """
    text = f"{_path(node) or _FORWARD}:{operator_name(node)} {sizes(node)}"
    source = node
    while not _path(source) and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return text if _path(node) or not _path(source) else f"{text} out of {_path(source)}"


def sizes(node: fx.Node) -> str:
    """Writes the sizes of a value, with B for those that follow the batch.

    Example:
        >>> import torch
        >>> from torch.fx.experimental.proxy_tensor import make_fx
        >>> traced = make_fx(lambda x: x.exp(), tracing_mode="symbolic")(torch.zeros(2, 1))
        >>> sizes(next(iter(traced.graph.nodes)))
        '[B, 1]'
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"[{', '.join(str(s) if isinstance(s, int) else 'B' for s in value.shape)}]"


def _stack(node: fx.Node) -> list[str]:
    return [
        str(path).partition("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values()
    ]


def _path(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""
