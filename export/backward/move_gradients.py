"""Computes operators that move, cut or choose values, and their gradients, without scattering.

The gradient of a slice is padded. What an index chose is put back by comparing the index with
all rows: exact, and the comparisons of constant indices are constants in the graph.
Each function takes the arguments of the aten operator that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher

_aten = torch.ops.aten


def constant_pad_nd(x: Tensor, padding: Sequence[int], value: float = 0) -> Any:
    """Writes negative padding as slices: backends differ on ONNX's negative pads.

    Example:
        >>> constant_pad_nd(torch.tensor([1.0, 2.0, 3.0]), [-1, 2], 9.0).tolist()
        [2.0, 3.0, 9.0, 9.0]
    """
    if all(amount >= 0 for amount in padding):
        if torch._C._dispatch_tls_is_dispatch_key_included(torch._C.DispatchKey.PythonDispatcher):
            return NotImplemented
        # Once more by its Python kernel: the C++ one fixes a symbolic batch to its example.
        with enable_python_dispatcher():
            return _aten.constant_pad_nd.default(x, padding, value)
    for axis in range(len(padding) // 2):
        before, after = padding[2 * axis], padding[2 * axis + 1]
        if before < 0 or after < 0:
            start = max(-before, 0)
            length = x.shape[-1 - axis] - start - max(-after, 0)
            x = x.narrow(-1 - axis, start, length)
    grown = [max(amount, 0) for amount in padding]
    return _aten.constant_pad_nd.default(x, grown, value) if any(grown) else x.clone()


def slice_backward(
    grad: Tensor, sizes: Sequence[int], axis: int, start: int, end: int, step: int
) -> Tensor:
    """Puts the slice back among zeros: padding, after zeros between the rows for a step.

    Example:
        >>> grad = torch.tensor([1.0, 2.0])  # of x[1:5:2], where x has 6 values
        >>> slice_backward(grad, [6], 0, 1, 5, 2).tolist()
        [0.0, 1.0, 0.0, 2.0, 0.0, 0.0]
    """
    del end  # it shows in the gradient's size
    axis %= len(sizes)
    length, count = sizes[axis], grad.shape[axis]
    start = min(max(start + length if start < 0 else start, 0), length)
    if step > 1 and count > 0:
        spread = _pad(grad.unsqueeze(axis + 1), axis + 1, 0, step - 1)
        grad = spread.flatten(axis, axis + 1).narrow(axis, 0, (count - 1) * step + 1)
    return _pad(grad, axis, start, length - start - grad.shape[axis])


def select_backward(grad: Tensor, sizes: Sequence[int], axis: int, index: int) -> Tensor:
    """Puts one row back among zeros by padding.

    Example:
        >>> select_backward(torch.tensor([1.0, 2.0]), [3, 2], 0, -1).tolist()
        [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]
    """
    axis %= len(sizes)
    index %= sizes[axis]
    return _pad(grad.unsqueeze(axis), axis, index, sizes[axis] - 1 - index)


def _pad(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    if before == 0 and after == 0:
        return x
    found: Tensor = _aten.constant_pad_nd.default(x, [0, 0] * (x.ndim - 1 - axis) + [before, after])
    return found


def scatter(x: Tensor, axis: int, index: Tensor, source: Tensor) -> Any:
    """Puts one value per row where the index says: the gradient of a maximum along an axis.

    Example:
        >>> index, source = torch.tensor([[2], [0]]), torch.tensor([[5.0], [7.0]])
        >>> scatter(torch.zeros(2, 3), 1, index, source).tolist()
        [[0.0, 0.0, 5.0], [7.0, 0.0, 0.0]]
    """
    if x.ndim == 0 or index.shape != source.shape or index.shape[axis] != 1:
        return NotImplemented
    return torch.where(_one_hot(index, x, axis), source, x)


def scatter_add(x: Tensor, axis: int, index: Tensor, source: Tensor) -> Any:
    """Computes the gradient of `gather`: x + sum_k [index_k = row] source_k, no reduction.

    Example:
        >>> index, source = torch.tensor([1, 1, 0]), torch.tensor([10.0, 20.0, 5.0])
        >>> scatter_add(torch.zeros(3), 0, index, source).tolist()
        [5.0, 30.0, 0.0]
    """
    if x.ndim == 0 or index.shape != source.shape:
        return NotImplemented
    for row in range(index.shape[axis]):
        here = _one_hot(index.narrow(axis, row, 1), x, axis)
        x = x + torch.where(here, source.narrow(axis, row, 1), 0.0)
    return x


def _one_hot(index: Tensor, x: Tensor, axis: int) -> Tensor:
    axis %= x.ndim
    rows = torch.arange(x.shape[axis], device=x.device)
    hot: Tensor = index == rows.view(-1, *[1] * (x.ndim - 1 - axis))
    return hot


def index_add(x: Tensor, axis: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """Computes the gradient of `index_select`: x + M^T source with M[k, n] = [index_k = n].

    Example:
        >>> index, source = torch.tensor([1, 1, 0]), torch.tensor([10.0, 20.0, 5.0])
        >>> index_add(torch.zeros(3), 0, index, source).tolist()
        [5.0, 30.0, 0.0]
    """
    rows = torch.arange(x.shape[axis], device=x.device)
    hot = (index.reshape(-1, 1) == rows).to(x.dtype)
    added = (source.movedim(axis, -1) @ hot).movedim(-1, axis)
    return x + (added if alpha == 1 else added * alpha)


def index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Indexes one axis by `index_select`: one Gather, where the exporter has GatherND.

    Example:
        >>> x = torch.tensor([[1, 2, 3], [4, 5, 6]])
        >>> index(x, [None, torch.tensor([2, -2])]).tolist()
        [[3, 2], [6, 5]]
    """
    used = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(used) != 1 or used[0][1].dtype == torch.bool:
        return NotImplemented
    ((axis, rows),) = used
    rows = torch.where(rows < 0, rows + x.shape[axis], rows)
    found = x.index_select(axis, rows.reshape(-1))
    return found.reshape(*x.shape[:axis], *rows.shape, *x.shape[axis + 1 :])


def index_put(
    x: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False
) -> Any:
    """Computes the gradient of indexing with integers in neighbouring axes, as `index_add`.

    The axes are flattened to one, i_0 n_1 + i_1 for two.

    Example:
        >>> rows, columns = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])
        >>> values = torch.tensor([5.0, 10.0, 20.0])
        >>> index_put(torch.zeros(2, 3), [rows, columns], values, accumulate=True).tolist()
        [[0.0, 0.0, 5.0], [30.0, 0.0, 0.0]]
    """
    used = [axis for axis, index in enumerate(indices) if index is not None]
    first, last = used[0], used[-1]
    tensors = [index for index in indices if index is not None]
    neighbours = last - first + 1 == len(used)
    if not accumulate or not neighbours or any(t.dtype == torch.bool for t in tensors):
        return NotImplemented
    flat = torch.zeros((), dtype=torch.int64, device=x.device)
    for axis, index in zip(used, tensors, strict=True):
        size = x.shape[axis]
        flat = flat * size + torch.where(index < 0, index + size, index)
    rows = x.flatten(first, last)
    source = values.expand(*x.shape[:first], *flat.shape, *x.shape[last + 1 :])
    source = source.flatten(first, first + flat.ndim - 1) if flat.ndim else source.unsqueeze(first)
    found = index_add(rows, first, flat.reshape(-1), source)
    return found.reshape(x.shape)
