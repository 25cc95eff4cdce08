"""Holds normalisations, in the form that they have in inference."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, Value, as_tensor, axis_of, operator


@operator("BatchNormalization", weights=(1, 2))
def batch_norm(
    call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    """Normalises channels by stored figures; before opset 9 there is a form for positions."""
    if not call.get("spatial", 1):
        raise call.refused("figures of channels", "those of positions", "export it for opset 9 on")
    return functional.batch_norm(
        x, mean, variance, scale, shift, training=False, eps=call.get("epsilon", 1e-5)
    )


@operator("InstanceNormalization", weights=(1, 2))
def instance_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalises each channel of each image over its grid."""
    return functional.group_norm(x, x.shape[1], scale, shift, call.get("epsilon", 1e-5))


@operator("GroupNormalization", weights=(1, 2))
def group_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Normalises groups of channels; before opset 21 there is a weight per group."""
    groups, channels = int(call.get("num_groups")), int(x.shape[1])
    if call.opset < 21 and groups != channels:
        scale = scale.repeat_interleave(channels // groups)
        shift = shift.repeat_interleave(channels // groups)
    return functional.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


@operator("LayerNormalization", weights=(1, 2))
def layer_norm(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    """Normalises over the axes from one on."""
    if call.num_outputs > 1:
        raise call.refused("one output", call.num_outputs, "export the model for inference")
    shape = [int(n) for n in x.shape[axis_of(call.get("axis", -1), x.ndim) :]]
    epsilon = call.get("epsilon", 1e-5)
    if list(scale.shape) == shape and (shift is None or shift.shape == scale.shape):
        return functional.layer_norm(x, shape, scale, shift, epsilon)
    y = functional.layer_norm(x, shape, eps=epsilon) * scale
    return y if shift is None else y + shift


@operator("LpNormalization")
def lp_norm(call: Call, x: Tensor) -> Any:
    """Divides by the p-norm along an axis."""
    axis, p = call.get("axis", -1), call.get("p", 2)
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


@operator("MeanVarianceNormalization")
def mean_variance_norm(call: Call, x: Tensor) -> Tensor:
    """Takes off the mean over some axes and divides by the deviation."""
    axes = list(call.get("axes", [0, 2, 3]))
    centred = x - x.mean(axes, keepdim=True)
    return centred / ((centred * centred).mean(axes, keepdim=True).sqrt() + 1e-9)


@operator("LRN")
def local_response_norm(call: Call, x: Tensor) -> Any:
    """Divides by the mean square of the channels beside each one."""
    size = int(call.get("size"))
    before = math.floor((size - 1) / 2)
    padding = (*[0, 0] * (x.ndim - 2), before, size - 1 - before)
    windows = functional.pad(x * x, padding).unfold(1, size, 1).sum(-1)
    alpha, beta, bias = call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    return x / (bias + alpha / size * windows) ** beta


@operator("Dropout", "Identity", weights=(0,), known=lambda call, x, *ignored: x)
def identity(call: Call, x: Value, *ignored: Value) -> Value:
    """Gives its input; a dropout does nothing in inference."""
    if call.num_outputs > 1:
        return x, torch.ones_like(as_tensor(x), dtype=torch.bool)
    return x
