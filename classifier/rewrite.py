"""Copies of traced modules in float64.

Batch norms folded into the convolutions before them, to run a frozen backbone faster.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

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


_CONV = torch.ops.aten.conv2d.default
_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default


def fold_batch_norms(features: fx.GraphModule) -> fx.GraphModule:
    """A copy of a backbone whose batch norms are part of its convolutions.

    The same function up to rounding (the backends that run the exported graph fold them
    too). A batch norm is left alone where something else reads its convolution as well.

    Args:
        features: a graph of inference-mode operators, as `split` gives it.
    """
    folded = copy.deepcopy(features)
    for norm in list(folded.graph.find_nodes(op="call_function", target=_NORM)):
        conv = norm.args[0]
        taken = [user for user in norm.users if user.target is operator.getitem]
        if conv.target is _CONV and len(conv.users) == 1 and len(taken) == 1:
            _fold(folded, conv, norm)
            taken[0].replace_all_uses_with(conv)
            folded.graph.erase_node(taken[0])
            folded.graph.erase_node(norm)
    folded.graph.eliminate_dead_code()
    folded.recompile()
    folded.delete_all_unused_submodules()
    return folded


def _fold(module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    weight, mean, variance = (_tensor(module, n) for n in (conv.args[1], *norm.args[3:5]))
    bias = _optional(module, conv.args[2] if len(conv.args) > 2 else None)
    gamma, beta = (_optional(module, argument) for argument in norm.args[1:3])
    epsilon = cast("float", norm.args[6])
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, gamma, beta)
    with module.graph.inserting_before(conv):
        nodes = []
        for part, value in zip(("weight", "bias"), folded, strict=True):
            name = f"folded_{conv.name}_{part}"
            module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
            nodes.append(module.graph.get_attr(name))
    conv.args = (conv.args[0], *nodes, *conv.args[3:])


def _optional(module: fx.GraphModule, node: object) -> Tensor | None:
    return None if node is None else _tensor(module, node)


def _tensor(module: fx.GraphModule, node: object) -> Tensor:
    path, _, name = str(cast("fx.Node", node).target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(path), name)
    return value
