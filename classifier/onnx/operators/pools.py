"""Holds pooling over windows and over the whole grid."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.convolutions import padded, pads_of
from sigcam.classifier.onnx.operators.table import Call, operator

_MAX: dict[int, Any] = {
    1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d,
}  # fmt: skip
_AVERAGE: dict[int, Any] = {
    1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d,
}  # fmt: skip


def _windows(call: Call, x: Tensor) -> tuple[list[int], list[int], list[int], list[int], list[int]]:
    """Returns kernel, strides, dilations, and the padding that all windows of a pool need.

    A last window that ceil_mode adds gets its missing positions as padding after the grid,
    if it begins inside the grid or the padding before it.
    """
    kernel = list(call.get("kernel_shape"))
    strides = list(call.get("strides", [1] * len(kernel)))
    dilations = list(call.get("dilations", [1] * len(kernel)))
    sizes = [int(n) for n in x.shape[2:]]
    begin, end = pads_of(call, sizes, kernel, strides, dilations)
    if call.get("ceil_mode", 0) and call.get("auto_pad", "NOTSET") in ("NOTSET", ""):
        for axis, size in enumerate(sizes):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            free = size + begin[axis] + end[axis] - reach
            steps = math.ceil(free / strides[axis])
            if steps * strides[axis] >= size + begin[axis]:
                steps -= 1
            end[axis] += max(0, steps * strides[axis] - free)
    return kernel, strides, dilations, begin, end


@operator("MaxPool")
def max_pool(call: Call, x: Tensor) -> Tensor:
    """Takes the largest element of each window; padding never counts."""
    if call.num_outputs > 1:
        raise call.refused("one output", "the indices too", "export a classifier without unpooling")
    kernel, strides, dilations, begin, end = _windows(call, x)
    # torch pads with minus infinity itself, up to half a window and the same on both sides.
    if begin != end or any(2 * b > k for b, k in zip(begin, kernel, strict=True)):
        x, begin = padded(x, begin, end, -math.inf), [0] * len(kernel)
    result: Tensor = _MAX[len(kernel)](x, kernel, strides, begin, dilations)
    return result


@operator("AveragePool")
def average_pool(call: Call, x: Tensor) -> Any:
    """Takes the mean of each window, with the padding or without (count_include_pad)."""
    kernel, strides, dilations, begin, end = _windows(call, x)
    if any(d != 1 for d in dilations):
        raise call.refused("dilations of 1", dilations, "export the model without dilated pooling")
    pool = _AVERAGE[len(kernel)]
    if begin == end and all(2 * b <= k for b, k in zip(begin, kernel, strict=True)):
        include = bool(call.get("count_include_pad", 0)) or not any(begin)
        if not call.get("ceil_mode", 0):
            result: Tensor = pool(x, kernel, strides, begin, False, include)
            return result
    counted = _counted(call, x, begin, end)
    sums = pool(padded(x, begin, end), kernel, strides)
    shares: Tensor = pool(counted, kernel, strides)
    return sums / shares


def _counted(call: Call, x: Tensor, begin: list[int], end: list[int]) -> Tensor:
    """Returns 1 where a position of the padded grid counts, else 0; [1, 1, ...]."""
    rank = len(begin)
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if not call.get("count_include_pad", 0):
        return padded(ones, begin, end)
    # The padding that the node names counts, the positions that ceil_mode adds don't.
    own = list(call.get("pads", [0] * (2 * rank)))
    if call.get("auto_pad", "NOTSET") not in ("NOTSET", ""):
        own = [*begin, *end]
    rest = [e - o for e, o in zip(end, own[rank:], strict=True)]
    return padded(padded(ones, own[:rank], own[rank:], 1.0), [0] * rank, rest)


@operator("LpPool")
def lp_pool(call: Call, x: Tensor) -> Any:
    """Takes the p-norm of each window."""
    kernel, strides, dilations, begin, end = _windows(call, x)
    if any(d != 1 for d in dilations):
        raise call.refused("dilations of 1", dilations, "export the model without dilated pooling")
    p, size = call.get("p", 2), math.prod(kernel)
    means: Tensor = _AVERAGE[len(kernel)](padded(x.abs() ** p, begin, end), kernel, strides)
    return (means * size) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(call: Call, x: Tensor) -> Tensor:
    """Takes the mean over the grid, whose axes stay with a size of 1."""
    return x.mean(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(call: Call, x: Tensor) -> Tensor:
    """Takes the largest element over the grid, whose axes stay with a size of 1."""
    return x.amax(list(range(2, x.ndim)), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(call: Call, x: Tensor) -> Any:
    """Takes the p-norm over the grid, whose axes stay with a size of 1."""
    p = call.get("p", 2)
    powers: Tensor = (x.abs() ** p).sum(list(range(2, x.ndim)), keepdim=True)
    return powers ** (1 / p)
