"""Holds the activation functions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, Value, as_tensor, axis_of, operator


@operator("Relu")
def relu(call: Call, x: Tensor) -> Tensor:
    """Computes max(x, 0)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(call: Call, x: Tensor) -> Tensor:
    """Computes x, and alpha x below zero."""
    return functional.leaky_relu(x, call.get("alpha", 0.01))


@operator("PRelu", weights=(1,))
def prelu(call: Call, x: Tensor, slope: Value) -> Tensor:
    """Computes x, and slope x below zero; the slope broadcasts."""
    slope = as_tensor(slope, x)
    return torch.where(x < 0, slope * x, x)


@operator("Elu")
def elu(call: Call, x: Tensor) -> Tensor:
    """Computes x, and alpha (exp(x) - 1) below zero."""
    return functional.elu(x, call.get("alpha", 1.0))


@operator("Selu")
def selu(call: Call, x: Tensor) -> Any:
    """Computes gamma times what `elu` gives."""
    alpha = call.get("alpha", 1.6732632423543772)
    gamma = call.get("gamma", 1.0507009873554805)
    return gamma * functional.elu(x, alpha)


@operator("Celu")
def celu(call: Call, x: Tensor) -> Tensor:
    """Computes x, and alpha (exp(x / alpha) - 1) below zero."""
    return functional.celu(x, call.get("alpha", 1.0))


@operator("ThresholdedRelu")
def thresholded_relu(call: Call, x: Tensor) -> Tensor:
    """Computes x above alpha, else 0."""
    return functional.threshold(x, call.get("alpha", 1.0), 0.0)


@operator("Sigmoid")
def sigmoid(call: Call, x: Tensor) -> Tensor:
    """Computes 1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    """Computes alpha x + beta between 0 and 1."""
    return torch.clamp(call.get("alpha", 0.2) * x + call.get("beta", 0.5), 0, 1)


@operator("HardSwish")
def hard_swish(call: Call, x: Tensor) -> Tensor:
    """Computes x times (x / 6 + 1/2) between 0 and 1."""
    return functional.hardswish(x)


@operator("Mish")
def mish(call: Call, x: Tensor) -> Tensor:
    """Computes x tanh(softplus(x))."""
    return functional.mish(x)


@operator("Gelu")
def gelu(call: Call, x: Tensor) -> Tensor:
    """Computes x times the normal distribution's cumulative function at x."""
    return functional.gelu(x, approximate=call.get("approximate", "none"))


@operator("Softplus")
def softplus(call: Call, x: Tensor) -> Tensor:
    """Computes log(1 + exp(x))."""
    return functional.softplus(x)


@operator("Softsign")
def softsign(call: Call, x: Tensor) -> Tensor:
    """Computes x / (1 + |x|)."""
    return functional.softsign(x)


@operator("Softmax")
def softmax(call: Call, x: Tensor) -> Tensor:
    """Computes the softmax over an axis; before opset 13 over that and all axes behind it."""
    return _over_axes(call, x, torch.softmax)


@operator("LogSoftmax")
def log_softmax(call: Call, x: Tensor) -> Tensor:
    """Computes the logarithm of `softmax`."""
    return _over_axes(call, x, torch.log_softmax)


def _over_axes(call: Call, x: Tensor, function: Any) -> Tensor:
    result: Tensor
    if call.opset >= 13:
        result = function(x, call.get("axis", -1))
        return result
    axis = axis_of(call.get("axis", 1), x.ndim)
    if axis == x.ndim - 1:
        result = function(x, axis)
        return result
    return function(x.flatten(axis), axis).reshape(x.shape)  # type: ignore[no-any-return]
