"""Holds arithmetic, comparisons and functions of single elements, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.onnx.operators.table import (
    TABLE,
    Call,
    Operator,
    Value,
    as_tensor,
    is_symbolic,
    operator,
)


def _first_tensor(values: tuple[Value, ...]) -> Tensor | None:
    return next((v for v in values if isinstance(v, Tensor)), None)


def _tensors(values: tuple[Value, ...]) -> list[Tensor]:
    like = _first_tensor(values)
    return [as_tensor(v, like) for v in values]


def _enter_binary(name: str, function: Callable[..., Any], known: Callable[..., Any]) -> None:
    def compute(call: Call, a: Value, b: Value) -> Any:
        return function(*_tensors((a, b)))

    def compute_known(call: Call, a: Any, b: Any) -> Any:
        return np.asarray(known(a, b))

    TABLE[name] = Operator(compute, weights=(0, 1), known=compute_known)


def _divided(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")  # integers are cut towards zero


def _known_quotient(a: Any, b: Any) -> Any:
    kinds = [np.asarray(v) for v in (a, b)]
    if any(k.dtype.kind == "f" for k in kinds):
        return np.asarray(a) / np.asarray(b)
    return np.frompyfunc(lambda x, y: x // y if is_symbolic(x) else int(x / y), 2, 1)(*kinds)


_enter_binary("Add", torch.add, np.add)
_enter_binary("Sub", torch.sub, np.subtract)
_enter_binary("Mul", torch.mul, np.multiply)
_enter_binary("Div", _divided, _known_quotient)
_enter_binary("Equal", torch.eq, np.equal)
_enter_binary("Greater", torch.gt, np.greater)
_enter_binary("GreaterOrEqual", torch.ge, np.greater_equal)
_enter_binary("Less", torch.lt, np.less)
_enter_binary("LessOrEqual", torch.le, np.less_equal)
_enter_binary("And", torch.logical_and, np.logical_and)
_enter_binary("Or", torch.logical_or, np.logical_or)
_enter_binary("Xor", torch.logical_xor, np.logical_xor)


@operator("Pow")
def power(call: Call, x: Value, exponent: Value) -> Tensor:
    """Computes x to a power; the result has x's type."""
    x, exponent = _tensors((x, exponent))
    return torch.pow(x, exponent).to(x.dtype)


def _known_modulo(call: Call, a: Any, b: Any) -> Any:
    return np.asarray((np.fmod if call.get("fmod", 0) else np.mod)(a, b))


@operator("Mod", known=_known_modulo)
def modulo(call: Call, a: Value, b: Value) -> Tensor:
    """Computes the rest of a division, with the divisor's sign, or with fmod the dividend's."""
    a, b = _tensors((a, b))
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _known_fold(function: Any) -> Callable[..., Any]:
    return lambda call, *values: np.asarray(reduce(function, values))


@operator("Max", weights=(), known=_known_fold(np.maximum))
def maximum(call: Call, *values: Value) -> Tensor:
    """Computes the largest of any number of values."""
    return reduce(torch.maximum, _tensors(values))


@operator("Min", weights=(), known=_known_fold(np.minimum))
def minimum(call: Call, *values: Value) -> Tensor:
    """Computes the smallest of any number of values."""
    return reduce(torch.minimum, _tensors(values))


@operator("Sum", weights=(-1,))
def total(call: Call, *values: Value) -> Tensor:
    """Computes the sum of any number of values."""
    return reduce(torch.add, _tensors(values))


@operator("Mean")
def mean(call: Call, *values: Value) -> Tensor:
    """Computes the mean of any number of values."""
    return reduce(torch.add, _tensors(values)) / len(values)


def _known_where(call: Call, condition: Any, a: Any, b: Any) -> Any:
    return np.where(np.asarray(condition).astype(bool), a, b)


@operator("Where", known=_known_where)
def where(call: Call, condition: Value, a: Value, b: Value) -> Tensor:
    """Takes elements of a where the condition holds, else of b."""
    condition, a, b = _tensors((condition, a, b))
    return torch.where(condition, a, b)


@operator("Clip")
def clip(call: Call, x: Tensor, low: Value = None, high: Value = None) -> Tensor:
    """Limits x; bounds are attributes before opset 11, inputs since, and either may be missing."""
    low = call.get("min") if low is None else as_tensor(low, x)
    high = call.get("max") if high is None else as_tensor(high, x)
    if low is not None:
        x = torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _enter_unary(name: str, function: Callable[..., Any], known: Any = None) -> None:
    def compute(call: Call, x: Value) -> Any:
        return function(as_tensor(x))

    def compute_known(call: Call, x: Any) -> Any:
        return np.asarray(known(x))

    TABLE[name] = Operator(compute, known=compute_known if known is not None else None)


def _known_rounded(function: Any) -> Any:
    # Symbols and integers are whole numbers already.
    return lambda x: x if np.asarray(x).dtype.kind not in "f" else function(x)


_PLAIN: dict[str, Callable[..., Any]] = {
    "Exp": torch.exp, "Log": torch.log, "Tanh": torch.tanh, "Erf": torch.erf,
    "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Atan": torch.atan, "Sign": torch.sign,
    "Reciprocal": torch.reciprocal, "Round": torch.round, "IsNaN": torch.isnan,
}  # fmt: skip
for _name, _function in _PLAIN.items():
    _enter_unary(_name, _function)
_enter_unary("Abs", torch.abs, np.abs)
_enter_unary("Neg", torch.neg, np.negative)
_enter_unary("Not", torch.logical_not, np.logical_not)
_enter_unary("Sqrt", torch.sqrt, lambda x: np.sqrt(np.asarray(x, dtype=np.float32)))
_enter_unary("Floor", torch.floor, _known_rounded(np.floor))
_enter_unary("Ceil", torch.ceil, _known_rounded(np.ceil))
