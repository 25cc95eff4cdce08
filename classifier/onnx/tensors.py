"""Turns what an ONNX graph stores into NumPy arrays and the modules that own its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sigcam.core.errors import ModelError

if TYPE_CHECKING:
    import onnx

_MEANT = str.maketrans("@#:", "___")
"""Characters with a meaning in the names of layers: torch's and sigcam's number of a call, and
what is before an operator."""
_PARTS = {"value_int", "value_ints", "value_float", "value_floats"}


class Owner(nn.Module):
    """A module that may own tensors of an ONNX graph, under the last part of their names.

    Attributes:
        fans: name of a parameter to the number of inputs that each output of its layer sums
            up; `reset_parameters` draws it as torch draws those of linear layers.
        filled: name of a parameter to the number that it begins with: scales of norms with 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fans: dict[str, int] = {}
        self.filled: dict[str, float] = {}

    def reset_parameters(self) -> None:
        """Draws the parameters anew whose layers are known; leaves the others as they are."""
        with torch.no_grad():
            for name, fan in self.fans.items():
                bound = 1 / math.sqrt(max(1, fan))
                nn.init.uniform_(self.get_parameter(name), -bound, bound)
            for name, value in self.filled.items():
                self.get_parameter(name).fill_(value)


def array_of(tensor: onnx.TensorProto, folder: Path | None = None) -> Any:
    """Returns a stored tensor as an array; floating ones of every width become float32.

    Integers of fewer than 8 bits become int8 or uint8. The array may be one that can't be written.

    Args:
        tensor: the tensor.
        folder: where the file lies that holds it, for one that is left there.

    Raises:
        ModelError: it holds no real numbers, or not as many as its shape says.
    """
    from onnx import numpy_helper

    try:
        array = np.asarray(numpy_helper.to_array(tensor, "" if folder is None else str(folder)))
    except Exception as exc:  # onnx's and NumPy's, for what is damaged
        reason = str(exc).partition("\n")[0]
        raise ModelError(
            f"the tensor {tensor.name or '(of a node)'} can't be read: {reason}; copy the file "
            "again, or export it anew"
        ) from exc
    name = array.dtype.name
    if name.startswith(("float", "bfloat")):
        return array.astype(np.float32, copy=False)
    if name in ("int2", "int4", "uint2", "uint4"):
        return array.astype(np.int8 if name.startswith("i") else np.uint8)
    if array.dtype.kind not in "biu":
        raise ModelError(
            f"the tensor {tensor.name or '(of a node)'} must hold numbers, it holds {name}; export "
            "the model without it"
        )
    return np.array(array)


def constant_of(node: onnx.NodeProto) -> Any:
    """Returns what a node Constant holds.

    Raises:
        ModelError: a text or a sparse tensor.
    """
    import onnx

    for attribute in node.attribute:
        if attribute.name == "value":
            return array_of(attribute.t)
        if attribute.name in _PARTS:
            value = np.asarray(onnx.helper.get_attribute_value(attribute))
            return value.astype(np.float32 if value.dtype.kind == "f" else np.int64)
    raise ModelError(
        f"the node {node.name or node.output[0]} (Constant) must hold numbers, it holds "
        f"{', '.join(a.name for a in node.attribute)}; export the model anew"
    )


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Returns a node's attributes as numbers, texts, lists and arrays."""
    import onnx

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, onnx.TensorProto):
            value = array_of(value)
        elif isinstance(value, Iterable) and not isinstance(value, str):
            value = list(value)
        found[attribute.name] = value
    return found


def place(root: nn.Module, name: str, module: nn.Module) -> str:
    """Puts a module under a dotted name into a tree; parts that are taken get an underscore.

    So do characters that mean something in the names of layers: "@", "#" and ":".

    Returns:
        The name that it has there.

    Example:
        >>> root = nn.Module()
        >>> place(root, "a.b", Owner()), place(root, "a.b", Owner()), place(root, "a", Owner())
        ('a.b', 'a.b_', 'a_')
        >>> place(root, "MaxPool@0", Owner())
        'MaxPool_0'
    """
    owner, path, leaf = _owner(root, name.translate(_MEANT))
    owner.add_module(leaf, module)
    return f"{path}.{leaf}" if path else leaf


def store(root: nn.Module, name: str, value: Tensor, *, trained: bool) -> tuple[Owner, str, str]:
    """Puts a tensor under a dotted name into a tree, as a parameter or as a buffer.

    Returns:
        The module that owns it, the name in there, and the whole name.
    """
    owner, path, leaf = _owner(root, name)
    if trained:
        owner.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    else:
        owner.register_buffer(leaf, value)
    return owner, leaf, f"{path}.{leaf}" if path else leaf


def _owner(root: nn.Module, name: str) -> tuple[Any, str, str]:
    """Returns the module that a name's last part goes into, its path, and that part, free."""
    *path, leaf = [part or "_" for part in name.split(".")] or ["_"]
    path = [part.translate(_MEANT) for part in path]
    module, walked = root, []
    for part in path:
        while True:
            below = module._modules.get(part)
            if below is not None or not (hasattr(module, part) or part in _declared(module)):
                break
            part += "_"  # an attribute of modules, or a tensor
        if below is None:
            below = Owner()
            module.add_module(part, below)
        module = below
        walked.append(part)
    while hasattr(module, leaf) or leaf in _declared(module):
        leaf += "_"
    return module, ".".join(walked), leaf


def _declared(module: nn.Module) -> set[str]:
    """Returns attributes that a module's class declares, and may set later."""
    return {name for kind in type(module).__mro__ for name in vars(kind).get("__annotations__", ())}
