"""Holds the table from ONNX operators to torch functions, and what such a function is told.

The values that pass between operators are of two kinds. Tensors hold what is computed from the
image. NumPy arrays hold what is known without it: integers that shapes are computed with, and
constants. Their elements may be symbolic (the batch size), so those arrays are of type object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigcam.core.errors import ModelError

Value = Any
"""A Tensor, a NumPy array (what is known without the image), or None for an input left out."""


@dataclass(frozen=True)
class Call:
    """One node of a graph, as the function of its operator sees it.

    Attributes:
        name: the node's name, for messages.
        operator: its operator, such as "Conv".
        opset: the version of the operator set that the graph is written for.
        attributes: name to value: int, float, str, list or NumPy array.
        num_outputs: how many outputs the node has.
    """

    name: str
    operator: str
    opset: int
    attributes: dict[str, Any] = field(default_factory=dict)
    num_outputs: int = 1

    def get(self, attribute: str, default: Any = None) -> Any:
        """Returns an attribute's value, or the default where the node doesn't have it."""
        return self.attributes.get(attribute, default)

    def refused(self, wanted: str, came: object, advice: str) -> ModelError:
        """Makes the error for a node that can't be read.

        Example:
            >>> str(Call("n", "Pad", 13).refused("one of two modes", "wrap", "export anew"))
            'the node n (Pad) must have one of two modes, it has wrap; export anew'
        """
        return ModelError(
            f"the node {self.name} ({self.operator}) must have {wanted}, it has {came}; {advice}"
        )


@dataclass(frozen=True)
class Operator:
    """An entry of the table.

    Attributes:
        function: takes a `Call` and the node's inputs, and returns one value or a tuple of them.
        weights: which inputs a trained weight may be; -1 for all of them.
        static: which inputs must be known without the image, and come as NumPy arrays.
        known: the same on NumPy arrays alone, for shape computations; None if it isn't had.
    """

    function: Callable[..., Any]
    weights: tuple[int, ...] = ()
    static: tuple[int, ...] = ()
    known: Callable[..., Any] | None = None


TABLE: dict[str, Operator] = {}
"""Operator of ONNX's own domain to its entry."""


def operator(
    *names: str,
    weights: tuple[int, ...] = (),
    static: tuple[int, ...] = (),
    known: Callable[..., Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enters a function into the table under the names of its operators; see `Operator`."""

    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            TABLE[name] = Operator(function, weights, static, known)
        return function

    return enter


def ints(value: Value) -> list[Any]:
    """Returns a known value's elements as a list of integers, which may be symbolic.

    Example:
        >>> ints(np.array([2, -1])), ints(np.array(3)), ints([1])
        ([2, -1], [3], [1])
    """
    return [n if is_symbolic(n) else int(n) for n in np.asarray(value, dtype=object).reshape(-1)]


def is_symbolic(number: object) -> bool:
    """Returns whether a number is one of torch's symbols, for the batch size."""
    return isinstance(number, (torch.SymInt, torch.SymFloat, torch.SymBool))


def axis_of(axis: int, rank: int) -> int:
    """Returns an axis counted from the front.

    Example:
        >>> axis_of(-1, 4), axis_of(1, 4)
        (3, 1)
    """
    return axis + rank if axis < 0 else axis


def axes_input(call: Call, axes: Value, default: list[int]) -> list[int]:
    """Returns the axes of a node: an input since one opset or another, an attribute before."""
    if axes is not None:
        return ints(axes)
    own = call.get("axes")
    return list(own) if own is not None else default


def as_tensor(value: Value, like: Tensor | None = None) -> Tensor:
    """Returns a value as a tensor; a known one becomes a constant.

    Args:
        value: a tensor or a NumPy array.
        like: a tensor whose device the constant is put on.

    Example:
        >>> as_tensor(np.array([1, 2], dtype=object))
        tensor([1, 2])
    """
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    device = None if like is None else like.device
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if array.dtype != object:
        return torch.from_numpy(np.array(array)).to(device)
    elements = list(array.reshape(-1))
    if not any(is_symbolic(e) for e in elements):
        return torch.tensor(elements, device=device).reshape(array.shape)
    parts = [torch.full((), e, dtype=torch.int64, device=device) for e in elements]
    return torch.stack(parts).reshape(array.shape)
