"""Holds what changes the form of a value, and what computes with shapes.

Most entries have a second form for NumPy arrays: a graph's shape computations run there, so that
nothing but the batch size stays a symbol, and a Reshape is told numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.onnx.operators.table import (
    Call,
    Value,
    as_tensor,
    axes_input,
    axis_of,
    ints,
    is_symbolic,
    operator,
)

_TYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32,
    7: torch.int64, 9: torch.bool, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
_FLOATS = {torch.float16, torch.bfloat16, torch.float64}


def _known_cast(call: Call, x: Any) -> Any:
    target = _TYPES.get(call.get("to"))
    if target in (torch.int32, torch.int64):
        whole = np.frompyfunc(lambda n: n if is_symbolic(n) else int(n), 1, 1)
        return np.asarray(whole(np.asarray(x, dtype=object)), dtype=object)
    if target is torch.bool:
        return np.asarray(x).astype(bool)
    array = np.asarray(x)
    symbolic = array.dtype == object and any(is_symbolic(n) for n in array.reshape(-1))
    return array if symbolic else array.astype(np.float32)


@operator("Cast", weights=(0,), known=_known_cast)
def cast(call: Call, x: Tensor) -> Tensor:
    """Changes the type; what is half or double precision in the file is float32 here."""
    target = _TYPES.get(call.get("to"))
    if target is None:
        raise call.refused("a number type", f"type {call.get('to')}", "export without that cast")
    return x.to(torch.float32 if target in _FLOATS else target)


@operator("CastLike", weights=(0,))
def cast_like(call: Call, x: Value, like: Tensor) -> Tensor:
    """Changes the type to that of another value."""
    return as_tensor(x, like).to(like.dtype)


def _known_shape(call: Call, x: Any) -> Any:
    return shape(call, np.asarray(x))


@operator("Shape", known=_known_shape)
def shape(call: Call, x: Value) -> Any:
    """Returns a value's shape, or a part of it (from opset 15 on), as known integers."""
    return np.array(list(x.shape)[call.get("start", 0) : call.get("end")], dtype=object)


@operator("Size", known=lambda call, x: np.array(np.asarray(x).size, dtype=object))
def size(call: Call, x: Tensor) -> Any:
    """Returns a value's number of elements, as a known integer."""
    return np.array(math.prod(x.shape), dtype=object)


def _constant_of_shape(call: Call, sizes: Any) -> Any:
    value = np.asarray(call.get("value", np.zeros(1, np.float32))).reshape(-1)[0]
    target = ints(sizes)
    if any(is_symbolic(n) for n in target):
        return torch.full(target, value.item(), dtype=torch.from_numpy(np.array(value)).dtype)
    return np.full(target, value, dtype=object if value.dtype.kind in "iu" else None)


@operator("ConstantOfShape", static=(0,), known=_constant_of_shape)
def constant_of_shape(call: Call, sizes: Any) -> Any:
    """Makes a constant of a shape."""
    return _constant_of_shape(call, sizes)


def _known_range(call: Call, start: Any, limit: Any, delta: Any) -> Any:
    first, last, step = (np.asarray(v, dtype=object).reshape(-1)[0] for v in (start, limit, delta))
    if any(is_symbolic(v) for v in (first, last, step)):
        return torch.arange(first, last, step)
    return np.arange(first, last, step)


@operator("Range", static=(0, 1, 2), known=_known_range)
def number_range(call: Call, start: Any, limit: Any, delta: Any) -> Any:
    """Counts from one number to another."""
    return _known_range(call, start, limit, delta)


def target_shape(call: Call, sizes: list[Any], target: list[Any]) -> list[Any]:
    """Returns a Reshape's target with its zeros replaced by the input's sizes.

    Example:
        >>> target_shape(Call("n", "Reshape", 13), [2, 8, 3], [0, -1])
        [2, -1]
    """
    if call.get("allowzero", 0):
        return target
    return [sizes[i] if not is_symbolic(n) and n == 0 else n for i, n in enumerate(target)]


@operator(
    "Reshape",
    weights=(0,),
    static=(1,),
    known=lambda call, x, shape: np.asarray(x).reshape(
        target_shape(call, list(np.asarray(x).shape), ints(shape))
    ),
)
def reshape(call: Call, x: Tensor, shape: Any) -> Tensor:
    """Gives the elements another shape: 0 keeps a size, -1 takes what is left."""
    return x.reshape(target_shape(call, list(x.shape), ints(shape)))


@operator("Flatten")
def flatten(call: Call, x: Tensor) -> Tensor:
    """Makes a matrix: the axes before one, and those from it on."""
    axis = axis_of(call.get("axis", 1), x.ndim)
    return x.reshape([math.prod(x.shape[:axis]), math.prod(x.shape[axis:])])


def _known_squeeze(call: Call, x: Any, axes: Any = None) -> Any:
    array = np.asarray(x)
    own = axes_input(call, axes, [])
    return np.squeeze(array, tuple(own)) if own else np.squeeze(array)


@operator("Squeeze", weights=(0,), static=(1,), known=_known_squeeze)
def squeeze(call: Call, x: Tensor, axes: Value = None) -> Tensor:
    """Takes axes of size 1 away; all of them where none is named."""
    ones = [i for i, n in enumerate(x.shape) if isinstance(n, int) and n == 1]
    own = axes_input(call, axes, ones)
    return torch.squeeze(x, tuple(own)) if own else x


def _known_unsqueeze(call: Call, x: Any, axes: Any = None) -> Any:
    return np.expand_dims(np.asarray(x), tuple(axes_input(call, axes, [])))


@operator("Unsqueeze", weights=(0,), static=(1,), known=_known_unsqueeze)
def unsqueeze(call: Call, x: Tensor, axes: Value = None) -> Tensor:
    """Adds axes of size 1, counted in the result."""
    own = axes_input(call, axes, [])
    for axis in sorted(axis_of(a, x.ndim + len(own)) for a in own):
        x = x.unsqueeze(axis)
    return x


def _known_transpose(call: Call, x: Any) -> Any:
    return np.transpose(np.asarray(x), call.get("perm"))


@operator("Transpose", weights=(0,), known=_known_transpose)
def transpose(call: Call, x: Tensor) -> Tensor:
    """Permutes the axes; reverses them where no order is named."""
    return x.permute(call.get("perm") or list(range(x.ndim))[::-1])


def _known_concat(call: Call, *values: Any) -> Any:
    return np.concatenate([np.asarray(v) for v in values], call.get("axis"))


@operator("Concat", weights=(-1,), known=_known_concat)
def concat(call: Call, *values: Value) -> Tensor:
    """Joins values along an axis.

    One that has a size of 1 where another has the batch is repeated: a class token in a file
    that is written for one image.
    """
    like = next((v for v in values if isinstance(v, Tensor)), None)
    tensors = [as_tensor(v, like) for v in values]
    axis = axis_of(call.get("axis", 1), tensors[0].ndim)
    if axis != 0:
        batch = next((t.shape[0] for t in tensors if t.shape[0] != 1), 1)
        tensors = [t if t.shape[0] != 1 else t.expand(batch, *t.shape[1:]) for t in tensors]
    return torch.cat(tensors, axis)


def _known_expand(call: Call, x: Any, shape: Any) -> Any:
    sizes = ints(shape)
    if any(is_symbolic(n) for n in sizes):
        return expand(call, as_tensor(x), shape)
    array = np.asarray(x)
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, tuple(sizes)))


@operator("Expand", weights=(0,), static=(1,), known=_known_expand)
def expand(call: Call, x: Tensor, shape: Any) -> Tensor:
    """Repeats axes of size 1, as broadcasting with a shape does; other axes stay."""
    sizes = ints(shape)
    own = [1] * (len(sizes) - x.ndim) + list(x.shape)
    sizes = [1] * (len(own) - len(sizes)) + sizes
    kept = [n if not is_symbolic(w) and w == 1 else w for n, w in zip(own, sizes, strict=True)]
    return x.expand(kept)


@operator("Tile", static=(1,))
def tile(call: Call, x: Tensor, repeats: Any) -> Tensor:
    """Repeats a value along its axes."""
    return x.repeat(ints(repeats))


def _sections(call: Call, length: int, sizes: Value) -> list[int]:
    own = ints(sizes) if sizes is not None else call.get("split")
    if own is not None:
        return list(own)
    number = call.get("num_outputs", call.num_outputs)
    chunk = -(-length // number)
    return [chunk] * (number - 1) + [length - chunk * (number - 1)]


def _known_split(call: Call, x: Any, sizes: Value = None) -> Any:
    axis = call.get("axis", 0)
    parts = _sections(call, x.shape[axis], sizes)
    return tuple(np.split(np.asarray(x), np.cumsum(parts)[:-1], axis))


@operator("Split", static=(1,), known=_known_split)
def split(call: Call, x: Tensor, sizes: Value = None) -> Any:
    """Cuts a value along an axis: into named sizes, or equal parts of which the last is less."""
    axis = call.get("axis", 0)
    return torch.split(x, _sections(call, int(x.shape[axis]), sizes), axis)


@operator("DepthToSpace")
def depth_to_space(call: Call, x: Tensor) -> Tensor:
    """Moves channels into the grid: blocks of positions for one position."""
    block, (_, channels, h, w) = int(call.get("blocksize")), x.shape
    rest = channels // block**2
    if call.get("mode", "DCR") == "DCR":
        parts = x.reshape(-1, block, block, rest, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(-1, rest, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(-1, rest, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call, x: Tensor) -> Tensor:
    """Moves blocks of positions into the channels."""
    block, (_, channels, h, w) = int(call.get("blocksize")), x.shape
    parts = x.reshape(-1, channels, h // block, block, w // block, block)
    return parts.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels * block**2, h // block, w // block)
