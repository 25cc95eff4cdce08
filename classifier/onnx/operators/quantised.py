"""Holds the quantisation of values, which a gradient can't pass, and its inverse.

A quantised network's float path is the network without the rounding between its layers: a
QuantizeLinear whose result only goes on into a DequantizeLinear is taken out, with that. What
is left are the weights, which are stored as integers and come out as float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sigcam.classifier.onnx.operators.table import Call, Value, as_tensor, operator

_RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127), torch.int16: (-32768, 32767)}


def _along(call: Call, values: Value, x: Tensor) -> Tensor:
    """Returns scales or zero points in a form that broadcasts along their axis of x."""
    figures = as_tensor(values, x)
    if figures.ndim == 0 or figures.numel() == 1:
        return figures.reshape(())
    if figures.ndim > 1 or call.get("block_size", 0):
        raise call.refused("one scale, or one per channel", "blocks", "quantise per channel")
    axis = call.get("axis", 1) % x.ndim
    return figures.reshape([-1 if i == axis else 1 for i in range(x.ndim)])


@operator("DequantizeLinear")
def dequantize(call: Call, x: Value, scale: Value, zero: Value = None) -> Any:
    """Computes (x - zero) scale, as float32."""
    x = as_tensor(x)
    shifted = x.to(torch.float32)
    if zero is not None:
        shifted = shifted - _along(call, as_tensor(zero, x), x).to(torch.float32)
    return shifted * _along(call, scale, x).to(torch.float32)


@operator("QuantizeLinear")
def quantize(call: Call, x: Tensor, scale: Value, zero: Value = None) -> Tensor:
    """Computes round(x / scale) + zero in the range of the zero point's type."""
    kind = torch.uint8 if zero is None else as_tensor(zero).dtype
    if kind not in _RANGES:
        raise call.refused("8 or 16 bits", str(kind), "quantise to 8 bits")
    rounded = torch.round(x / _along(call, scale, x))
    if zero is not None:
        rounded = rounded + _along(call, as_tensor(zero, x), x).to(torch.float32)
    return torch.clamp(rounded, *_RANGES[kind]).to(kind)
