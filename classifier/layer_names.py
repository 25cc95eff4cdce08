"""Translates between names of layers and the values in a traced graph that they stand for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils.hooks import RemovableHandle

from sigcam.classifier.graph import ancestors, has_batch, sizes_of
from sigcam.classifier.layout import layout_of, operator_name
from sigcam.classifier.trace import LAYER, MARK, Traced
from sigcam.core.errors import ModelError

_FORWARD = "forward"
_RUN = re.compile(r"(.+)#([1-9][0-9]*)")
"""A name and which of the values that it stands for is meant, in the order of the forward pass."""


def modules_among(model: nn.Module, layers: Iterable[str]) -> list[str]:
    """Returns the modules that some layers name; the others are named "<module>:<operator>".

    Args:
        model: the classifier.
        layers: names of layers; "<module>#<run>" names one run of a module that runs several
            times.

    Raises:
        ModelError: a module that doesn't exist; lists near names.

    Example:
        >>> modules_among(nn.Sequential(nn.ReLU()), ["0", "0#1", "forward:mean"])
        ['0', '0']
    """
    known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    found = []
    for layer in layers:
        name, _ = _parted(layer, known)
        if name in known:
            found.append(name)
        elif ":" not in name:
            raise _unknown(model, name, known)
    return found


def _parted(layer: str, modules: Collection[str]) -> tuple[str, int | None]:
    """Returns a layer's name without the number of its run, and that number."""
    found = None if layer in modules else _RUN.fullmatch(layer)
    return (layer, None) if found is None else (found[1], int(found[2]))


def _unknown(model: nn.Module, name: str, known: Collection[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    top = [n for n, _ in model.named_children()]
    hint = f"did you mean {', '.join(near)}" if near else f"the top level has {', '.join(top)}"
    return ModelError(f"the model has no layer {name!r}; {hint}")


def named_value(traced: Traced, layer: str) -> fx.Node:
    """Returns the value on the path to the logits that a layer's name stands for.

    Args:
        traced: the classifier, with the outputs of modules that may be named marked.
        layer: a module's name, or "<module>:<operator>", which stands for the last such value:
            of those with a grid, if there are any. With "#<number>" behind it, for the
            first, second, ... run of the module, or value.

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
    modules = {name for name, _ in traced.model.named_modules(remove_duplicate=False) if name}
    name, run = _parted(layer, modules)
    if name in modules:
        runs = _marks(traced, name)
        used = [n for n in runs if run is None or n.args[2] == run]
        if used:
            return _unwrapped(used[-1])
        raise ModelError(
            f"the logits don't depend on the output of the layer {layer!r} in inference mode; "
            + (f"of its runs they depend on {_runs(runs)}" if runs else "name a layer that the "
               "forward pass goes through")
        )  # fmt: skip
    value = _named_operator(traced, name, run)
    if value is not None:
        return value
    raise ModelError(
        f"the model has no value {layer!r} on the way to its logits; "
        f"name a module, or leave the layer out"
    )


def other_runs(traced: Traced, layer: str) -> dict[str, fx.Node]:
    """Returns the other runs of a layer that lead to the logits, or values of an operator, by name.

    Args:
        traced: the classifier, with the layer marked if it is a module.
        layer: the layer's name, with the number of a run or without.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> conv = nn.Conv2d(3, 3, 3)
        >>> net = nn.Sequential(conv, nn.ReLU(), conv, nn.Flatten(), nn.Linear(48, 2))
        >>> list(other_runs(trace(net, torch.zeros(1, 3, 8, 8), layers=["0"]), "0"))
        ['0#1']
    """
    modules = {name for name, _ in traced.model.named_modules(remove_duplicate=False) if name}
    name, _ = _parted(layer, modules)
    if name in modules:
        runs = {int(n.args[2]): _unwrapped(n) for n in _marks(traced, name)}
    else:
        runs = dict(enumerate(_same_operator(traced, name), 1))
    own = named_value(traced, layer) if runs else None
    return {f"{name}#{number}": node for number, node in runs.items() if node is not own}


def _marks(traced: Traced, module: str) -> list[Any]:
    """Returns the marks on the outputs of a module that lead to the logits."""
    on_path = ancestors(traced.logits)
    marks = traced.graph.find_nodes(op="call_function", target=MARK)
    return [n for n in marks if n.args[1] == LAYER + module and n in on_path]


def _named_operator(traced: Traced, name: str, run: int | None = None) -> fx.Node | None:
    found = _same_operator(traced, name)
    if run is not None:
        return found[run - 1] if run <= len(found) else None
    grids = [n for n in found if layout_of(n, traced.image) is not None]
    return (grids or found)[-1] if found else None


def _runs(marks: Iterable[fx.Node]) -> str:
    return " and ".join(f"#{int(cast('float', n.args[2]))}" for n in marks)


def _same_operator(traced: Traced, name: str) -> list[fx.Node]:
    """Returns the values that "<module>:<operator>" may stand for, in the graph's order."""
    path, _, operator = name.rpartition(":")
    on_path = ancestors(traced.logits)
    return [
        n
        for n in traced.graph.nodes
        if n in on_path
        and operator_name(n) == operator
        and (_path(n) or _FORWARD) == path
        and has_batch(n, traced.image)
    ]


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
    """Names a value by the graph alone: a module that ends with it, or "<module>:<operator>".

    It is a name for messages. Whether it leads back to the value, `ModuleRuns` knows.

    Args:
        graph: the traced graph.
        node: the value.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> name_of(traced.graph, traced.logits), name_of(traced.graph, traced.image)
        ('3', 'forward:images')
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


class ModuleRuns:
    """Finds names that lead back to their values, by what each module really returns.

    The graph doesn't tell what a module returns: the last operator in it may have given one
    entry of a dictionary, or something that the module keeps for itself. So the model runs
    with hooks on the modules that a value lies in, and a module's name is taken only if that
    module returned this very tensor.

    Example:
        >>> import torch
        >>> from sigcam.classifier.trace import trace
        >>> layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
        >>> traced = trace(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
        >>> relu = traced.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default)
        >>> runs, images = ModuleRuns(traced, relu), torch.randn(2, 3, 8, 8)
        >>> with runs:
        ...     _ = traced.model(images)
        >>> runs.name(relu[0], traced.model[1](traced.model[0](images)))
        '1'
    """

    def __init__(self, traced: Traced, nodes: Iterable[fx.Node]) -> None:
        """Notes which modules are to be watched.

        Args:
            traced: the classifier; its model is to be run while this is entered.
            nodes: values of its graph that are to be named.
        """
        self._traced = traced
        self._outputs: dict[str, list[Tensor | None]] = {
            path: [] for node in nodes for path in _stack(node) if path
        }
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> ModuleRuns:  # noqa: PYI034 (Self is new in Python 3.11)
        for path, runs in self._outputs.items():
            module = self._traced.model.get_submodule(path)
            self._hooks.append(module.register_forward_hook(_keep_output(runs)))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def name(self, node: fx.Node, value: Tensor) -> str:
        """Returns the name of a value: the outermost module that returns it, or its operator's.

        Args:
            node: the value in the traced graph.
            value: what it was in the run, computed by that graph.
        """
        for path in _stack(node):
            runs = self._outputs.get(path, []) if not _dropout_follows(node, path) else []
            same = [number for number, got in enumerate(runs, 1) if _equal(got, value)]
            if same:
                return path if same[-1] == len(runs) else f"{path}#{same[-1]}"
        name = f"{_path(node) or _FORWARD}:{operator_name(node)}"
        if _named_operator(self._traced, name) is node:
            return name
        return f"{name}#{_same_operator(self._traced, name).index(node) + 1}"


def _keep_output(runs: list[Tensor | None]) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs
        # A copy: what follows may write into the tensor.
        runs.append(output.detach().clone() if isinstance(output, Tensor) else None)

    return hook


def _equal(got: Tensor | None, value: Tensor) -> bool:
    if got is None or got.shape != value.shape:
        return False
    value = value.detach()
    largest = float(value.nan_to_num().abs().max())
    return torch.allclose(got, value, rtol=1e-4, atol=1e-5 * largest, equal_nan=True)


def _dropout_follows(node: fx.Node, path: str) -> bool:
    """Returns whether a module drops entries of a value out before it returns it."""
    return any(
        user.target is MARK and not _is_layer_mark(user) and path in _stack(user)
        for user in node.users
    )


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
    text = f"{_path(node) or _FORWARD}:{operator_name(node)} {sizes_of(node)}"
    source = node
    while not _path(source) and source.all_input_nodes:
        source = source.all_input_nodes[0]
    return text if _path(node) or not _path(source) else f"{text} out of {_path(source)}"


def _stack(node: fx.Node) -> list[str]:
    return [
        str(path).partition("@")[0] for path, _ in node.meta.get("nn_module_stack", {}).values()
    ]


def _path(node: fx.Node) -> str:
    stack = _stack(node)
    return stack[-1] if stack else ""
