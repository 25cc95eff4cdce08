"""Copies of traced modules in float64."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def in_double(module: ModuleT) -> ModuleT:
    """A copy that computes in float64, with what its graphs make for themselves.

    `Module.double()` converts parameters and buffers. A traced graph also makes tensors
    (position tables, zeros) and converts types, with float32 written into its nodes.

    Args:
        module: holds graphs of `torch.export`, with their values noted; it isn't changed.
    """
    twin = copy.deepcopy(module).double()
    for part in twin.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                if node.op == "call_function":
                    _convert(node)
            part.recompile()
    return twin


def _convert(node: fx.Node) -> None:
    node.args = tuple(_wider(argument) for argument in node.args)
    node.kwargs = {name: _wider(value) for name, value in node.kwargs.items()}
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        return
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    makes = not any(isinstance(n.meta.get("val"), Tensor) for n in node.all_input_nodes)
    if makes and "dtype" in names:
        node.kwargs = {**node.kwargs, "dtype": torch.float64}


def _wider(argument: Any) -> Any:
    return torch.float64 if argument is torch.float32 else argument
