"""Holds convolutions and their transposed form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, operator

_CONVS: dict[int, Any] = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED: dict[int, Any] = {
    1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d,
}  # fmt: skip


def pads_of(
    call: Call, sizes: list[int], kernel: list[int], strides: list[int], dilations: list[int]
) -> tuple[list[int], list[int]]:
    """Returns the padding before and after each axis of a window's grid.

    Args:
        call: the node, with its `pads` or `auto_pad`.
        sizes: the extent of x along each axis of the grid.
        kernel: the window's, likewise.
        strides: the steps between windows.
        dilations: the steps inside a window.

    Example:
        >>> same = Call("n", "Conv", 11, {"auto_pad": "SAME_UPPER"})
        >>> pads_of(same, [4, 5], [3, 3], [2, 2], [1, 1])
        ([0, 1], [1, 1])
    """
    rank, mode = len(kernel), call.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = list(call.get("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return [0] * rank, [0] * rank
    begin, end = [], []
    for size, k, step, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        windows = -(-size // step)
        total = max(0, (windows - 1) * step + (k - 1) * dilation + 1 - size)
        less, more = total // 2, total - total // 2
        begin.append(less if mode == "SAME_UPPER" else more)
        end.append(more if mode == "SAME_UPPER" else less)
    return begin, end


def padded(x: Tensor, begin: list[int], end: list[int], value: float = 0.0) -> Tensor:
    """Pads the last axes of x; the first number of each list is that of the first of them."""
    if not any(begin) and not any(end):
        return x
    pairs = [n for b, e in zip(reversed(begin), reversed(end), strict=True) for n in (b, e)]
    return functional.pad(x, pairs, value=value)


@operator("Conv", weights=(1, 2))
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves; padding that differs between two sides comes as an operator of its own."""
    rank = weight.ndim - 2
    strides = call.get("strides", [1] * rank)
    dilations = call.get("dilations", [1] * rank)
    begin, end = pads_of(call, list(x.shape[2:]), list(weight.shape[2:]), strides, dilations)
    if begin != end or min(begin, default=0) < 0:
        x, begin = padded(x, begin, end), [0] * rank
    result: Tensor = _CONVS[rank](x, weight, bias, strides, begin, dilations, call.get("group", 1))
    return result


@operator("ConvTranspose", weights=(1, 2))
def conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolves with the strides on the output's side; what is padded is cut off the result."""
    rank = weight.ndim - 2
    strides = call.get("strides", [1] * rank)
    dilations = call.get("dilations", [1] * rank)
    extra = list(call.get("output_padding", [0] * rank))
    full = [
        (size - 1) * s + (k - 1) * d + 1
        for size, s, k, d in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    begin, end = _transposed_pads(call, list(x.shape[2:]), strides, full, extra)
    # Without padding or extra rows first; then what is to go is cut off, and the rest added.
    result: Tensor = _TRANSPOSED[rank](
        x, weight, None, strides, 0, 0, call.get("group", 1), dilations
    )
    after = [e - more for e, more in zip(end, extra, strict=True)]
    result = padded(result, [-b for b in begin], [-a for a in after])
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _transposed_pads(
    call: Call, sizes: list[int], strides: list[int], full: list[int], extra: list[int]
) -> tuple[list[int], list[int]]:
    rank, mode, shape = len(full), call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if shape is None and mode in ("NOTSET", "", "VALID"):
        pads = [0] * (2 * rank) if mode == "VALID" else list(call.get("pads", [0] * (2 * rank)))
        return pads[:rank], pads[rank:]
    wanted = shape or [n * s for n, s in zip(sizes, strides, strict=True)]
    totals = [f + e - w for f, e, w in zip(full, extra, wanted[-rank:], strict=True)]
    less = [t // 2 for t in totals]
    more = [t - t // 2 for t in totals]
    return (less, more) if mode == "SAME_UPPER" else (more, less)
