"""Holds what takes elements by place: gathers, slices, padding, the largest elements."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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


def _known_gather(call: Call, x: Any, indices: Any) -> Any:
    return np.asarray(np.take(np.asarray(x), np.asarray(indices, dtype=np.int64),
                              axis=call.get("axis", 0)))  # fmt: skip


@operator("Gather", weights=(0,), known=_known_gather)
def gather(call: Call, x: Value, indices: Value) -> Any:
    """Takes slices along an axis by their numbers, which may count from the end."""
    x = as_tensor(x, indices if isinstance(indices, Tensor) else None)
    axis = axis_of(call.get("axis", 0), x.ndim)
    if not isinstance(indices, Tensor) and np.asarray(indices).ndim == 0:
        return x.select(axis, ints(indices)[0])
    chosen = as_tensor(indices, x).to(torch.int64)
    if axis != 0 or isinstance(x.shape[0], int):
        chosen = torch.where(chosen < 0, chosen + x.shape[axis], chosen)
    rows = x.index_select(axis, chosen.reshape(-1))
    return rows.reshape([*x.shape[:axis], *chosen.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def gather_elements(call: Call, x: Tensor, indices: Value) -> Tensor:
    """Takes single elements along an axis."""
    axis = axis_of(call.get("axis", 0), x.ndim)
    chosen = as_tensor(indices, x).to(torch.int64)
    return x.gather(axis, torch.where(chosen < 0, chosen + x.shape[axis], chosen))


def _known_scatter(call: Call, x: Any, indices: Any, updates: Any) -> Any:
    _refuse_reduction(call)
    result = np.array(x)
    result[tuple(np.moveaxis(np.asarray(indices, dtype=np.int64), -1, 0))] = updates
    return result


@operator("ScatterND", known=_known_scatter)
def scatter_nd(call: Call, x: Value, indices: Value, updates: Value) -> Tensor:
    """Puts slices into a value, at places along its first axes."""
    _refuse_reduction(call)
    like = next((v for v in (x, updates, indices) if isinstance(v, Tensor)), None)
    x, updates = as_tensor(x, like), as_tensor(updates, like)
    places = as_tensor(indices, like).to(torch.int64).unbind(-1)
    put: Tensor = x.index_put(places, updates)
    return put


def _refuse_reduction(call: Call) -> None:
    reduction = call.get("reduction", "none")
    if reduction != "none":
        raise call.refused("no reduction", reduction, "export the model without it")


def _bounds(call: Call, rank: int, starts: Any, ends: Any, axes: Any, steps: Any) -> list[Any]:
    """Returns (axis, start, end, step) for each axis that a Slice cuts."""
    first = ints(call.get("starts") if starts is None else starts)
    last = ints(call.get("ends") if ends is None else ends)
    own = axes_input(call, axes, list(range(len(first))))
    strides = [1] * len(first) if steps is None else ints(steps)
    return [
        (axis_of(a, rank), s, e, t) for a, s, e, t in zip(own, first, last, strides, strict=True)
    ]


def _known_slice(
    call: Call, x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Any:
    array = np.asarray(x)
    cut = [slice(None)] * array.ndim
    for axis, start, end, step in _bounds(call, array.ndim, starts, ends, axes, steps):
        # An end before the first element means "up to and with it" for steps backwards.
        stop = None if step < 0 and end < -array.shape[axis] else end
        cut[axis] = slice(start, stop, step)
    return array[tuple(cut)]


@operator("Slice", static=(1, 2, 3, 4), known=_known_slice)
def cut(
    call: Call, x: Tensor, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None
) -> Tensor:
    """Cuts ranges with steps out of axes; a step below zero goes backwards."""
    for axis, start, end, step in _bounds(call, x.ndim, starts, ends, axes, steps):
        if step > 0:
            whole = not is_symbolic(end) and end > 2**31 - 2 and step == 1
            if whole and not is_symbolic(start) and start == 0:
                continue
            x = x[(slice(None),) * axis + (slice(start, end, step),)]
            continue
        places = list(range(int(x.shape[axis])))
        stop = None if end < -len(places) else end
        chosen = torch.tensor(places[start:stop:step], dtype=torch.int64, device=x.device)
        x = x.index_select(axis, chosen)
    return x


_MODES = ("constant", "reflect", "edge", "wrap")


@operator("Pad", static=(1, 2, 3))
def pad(call: Call, x: Tensor, pads: Any = None, value: Any = None, axes: Any = None) -> Tensor:
    """Pads axes before and after; numbers below zero cut off."""
    amounts = ints(call.get("pads") if pads is None else pads)
    own = [axis_of(a, x.ndim) for a in (range(x.ndim) if axes is None else ints(axes))]
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(own):
        before[axis], after[axis] = amounts[i], amounts[i + len(own)]
    mode = call.get("mode", "constant")
    if mode not in _MODES:
        raise call.refused(f"one of the modes {', '.join(_MODES)}", mode, "export without it")
    if mode == "constant":
        fill = call.get("value", 0.0) if value is None else float(np.asarray(value).reshape(-1)[0])
        used = next((i for i in range(x.ndim) if before[i] or after[i]), x.ndim)
        pairs = [n for i in reversed(range(used, x.ndim)) for n in (before[i], after[i])]
        return functional.pad(x, pairs, value=fill) if pairs else x
    return _pad_by_place(x, before, after, mode)


def _pad_by_place(x: Tensor, before: list[int], after: list[int], mode: Any) -> Tensor:
    """Pads with elements of x itself, axis after axis, as np.pad does."""
    for axis in range(x.ndim):
        if before[axis] or after[axis]:
            length = int(x.shape[axis])
            grown = (max(0, before[axis]), max(0, after[axis]))
            places = np.pad(np.arange(length), grown, mode=mode)
            places = places[max(0, -before[axis]) : len(places) - max(0, -after[axis])]
            x = x.index_select(axis, torch.from_numpy(places).to(x.device))
    return x


@operator("ArgMax")
def arg_max(call: Call, x: Tensor) -> Tensor:
    """Returns the number of the largest element along an axis; of equal ones the first."""
    if call.get("select_last_index", 0):
        raise call.refused("the first of equal elements", "the last", "export without that")
    return x.argmax(call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("ArgMin")
def arg_min(call: Call, x: Tensor) -> Tensor:
    """Returns the number of the smallest element along an axis; of equal ones the first."""
    if call.get("select_last_index", 0):
        raise call.refused("the first of equal elements", "the last", "export without that")
    return x.argmin(call.get("axis", 0), keepdim=bool(call.get("keepdims", 1)))


@operator("TopK", static=(1,))
def top_k(call: Call, x: Tensor, k: Any = None) -> Any:
    """Returns the k largest (or smallest) elements along an axis, in order, and their numbers."""
    number = call.get("k") if k is None else ints(k)[0]
    largest = bool(call.get("largest", 1))
    values, places = torch.topk(x, number, call.get("axis", -1), largest, True)
    return values, places


@operator("OneHot", static=(1, 2))
def one_hot(call: Call, indices: Tensor, depth: Any, values: Any) -> Tensor:
    """Returns one value at the named places along a new axis, and another elsewhere."""
    off, on = (float(v) for v in np.asarray(values).reshape(-1))
    number = ints(depth)[0]
    axis = axis_of(call.get("axis", -1), indices.ndim + 1)
    counted = torch.arange(number, device=indices.device)
    counted = counted.reshape([-1 if i == axis else 1 for i in range(indices.ndim + 1)])
    places = torch.remainder(indices.to(torch.int64), number).unsqueeze(axis)
    return torch.where(places == counted, on, off)


@operator("Trilu", static=(1,))
def triangle(call: Call, x: Tensor, k: Any = None) -> Tensor:
    """Keeps the upper or the lower triangle of matrices."""
    diagonal = 0 if k is None else ints(k)[0]
    return torch.triu(x, diagonal) if call.get("upper", 1) else torch.tril(x, diagonal)


@operator("CumSum", static=(1,))
def running_sum(call: Call, x: Tensor, axis: Any) -> Tensor:
    """Sums up along an axis."""
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise call.refused("a plain running sum", "an exclusive or reverse one", "export without")
    return torch.cumsum(x, ints(axis)[0])
