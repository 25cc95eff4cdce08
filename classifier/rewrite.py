"""Rewrites copies of traced modules: into float64, and with batch norms folded.

`in_double` gives the parity check its definition. `fold_batch_norms` makes a frozen backbone
faster: its batch norms become part of the convolutions before them.
"""

from __future__ import annotations

import copy
import operator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

CONVOLUTION = torch.ops.aten.conv2d.default
BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def in_double(module: ModuleT, without: nn.Module | None = None) -> ModuleT:
    """Copies a module so that it computes in float64, with what its graphs make for themselves.

    `Module.double()` converts parameters and buffers. A traced graph also makes tensors
    (position tables, zeros) and converts types, with float32 written into its nodes.

    Args:
        module: holds graphs of `torch.export`, with their values noted; it isn't changed.
        without: a part of it that the copy has None in place of; it may be large.

    Example:
        >>> in_double(nn.Linear(2, 1)).weight.dtype
        torch.float64
    """
    double = copy.deepcopy(module, {} if without is None else {id(without): None}).double()
    for part in double.modules():
        if isinstance(part, fx.GraphModule):
            for node in part.graph.nodes:
                if node.op == "call_function":
                    _convert(node)
            part.recompile()
    return double


def fold_batch_norms(features: fx.GraphModule) -> fx.GraphModule:
    """Copies a backbone so that its batch norms are part of its convolutions.

    The copy is the same function up to rounding (the backends that run the exported graph
    fold them too). A batch norm is left alone where something else reads its convolution as
    well.

    Args:
        features: a graph of inference-mode operators, as `split` gives it; it isn't changed.

    Example:
        >>> from sigcam.classifier.dual_branch import DualBranch
        >>> net = nn.Sequential(
        ...     nn.Conv2d(3, 4, 3),
        ...     nn.BatchNorm2d(4),
        ...     nn.AdaptiveAvgPool2d(1),
        ...     nn.Flatten(),
        ...     nn.Linear(4, 2),
        ... )
        >>> features = DualBranch(net, input_size=8).features
        >>> folded = fold_batch_norms(features)
        >>> count = lambda m: len(m.graph.find_nodes(op="call_function", target=BATCH_NORM))
        >>> count(features), count(folded)
        (1, 0)
    """
    folded = copy.deepcopy(features)
    for norm in list(folded.graph.find_nodes(op="call_function", target=BATCH_NORM)):
        conv = norm.args[0]
        results = [user for user in norm.users if user.target is operator.getitem]
        if conv.target is CONVOLUTION and len(conv.users) == 1 and len(results) == 1:
            _fold(folded, conv, norm)
            results[0].replace_all_uses_with(conv)
            folded.graph.erase_node(results[0])
            folded.graph.erase_node(norm)
    folded.graph.eliminate_dead_code()
    folded.recompile()
    folded.delete_all_unused_submodules()
    return folded


def _convert(node: fx.Node) -> None:
    """Writes float64 for float32 into the arguments of a node, and where it makes a tensor."""
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


def _fold(module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    """Gives a convolution the weight and bias that make its batch norm superfluous."""
    weight, mean, variance = (_tensor(module, n) for n in (conv.args[1], *norm.args[3:5]))
    bias = _optional_tensor(module, conv.args[2] if len(conv.args) > 2 else None)
    gamma, beta = (_optional_tensor(module, argument) for argument in norm.args[1:3])
    epsilon = cast("float", norm.args[6])
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, gamma, beta)
    with module.graph.inserting_before(conv):
        nodes = []
        for part, value in zip(("weight", "bias"), folded, strict=True):
            name = f"folded_{conv.name}_{part}"
            module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))
            nodes.append(module.graph.get_attr(name))
    conv.args = (conv.args[0], *nodes, *conv.args[3:])


def _optional_tensor(module: fx.GraphModule, node: object) -> Tensor | None:
    return None if node is None else _tensor(module, node)


def _tensor(module: fx.GraphModule, node: object) -> Tensor:
    path, _, name = str(cast("fx.Node", node).target).rpartition(".")
    value: Tensor = getattr(module.get_submodule(path), name)
    return value
