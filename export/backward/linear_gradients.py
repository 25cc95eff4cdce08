"""Computes gradients of pooling, resizing, padding and unfolding with constant matrices.

Each function takes the arguments of the aten operator that it stands for. Sizes are
static but for the batch. No scatter: TensorRT's and others' are slow or missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigcam.export.backward import matrices
from sigcam.export.backward.matrices import Indices, Matrix


def _sizes(x: Tensor, like: Sequence[Any]) -> list[int]:
    """Returns the sizes of the last axes, as many as `like` has."""
    return [int(size) for size in x.shape[-len(like) :]]


def _split_axis(x: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Does what `unflatten` does, which is untyped."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _transposed(grad: Tensor, axis_matrices: Sequence[Matrix]) -> Tensor:
    """Computes A^T g along each of the last axes; one matrix [out, in] for each."""
    for axis, matrix in enumerate(axis_matrices, -len(axis_matrices)):
        grad = along(grad, matrix, axis)
    return grad


def along(grad: Tensor, matrix: Matrix, axis: int) -> Tensor:
    """Computes A^T g along one axis.

    Args:
        grad: g, [..., out, ...].
        matrix: A, [out, in].
        axis: where `out` is, counted from the end (negative).

    Returns:
        [..., in, ...].

    Example:
        >>> mean_of_pairs = np.array([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])
        >>> along(torch.tensor([[2.0, 6.0]]), mean_of_pairs, -1).tolist()
        [[1.0, 1.0, 3.0, 3.0]]
    """
    out, length = matrix.shape
    if out == length and bool((matrix == np.eye(out)).all()):
        return grad.clone()  # an operator may not return its own argument
    A = torch.tensor(matrix.tolist(), dtype=grad.dtype, device=grad.device)
    if axis == -1:
        return grad @ A
    if axis == -2:
        return A.T @ grad
    return (grad.movedim(axis, -1) @ A).movedim(-1, axis)


def avg_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> Tensor:
    """Computes A^T g per axis, A the means of the windows; with a divisor the sums over it.

    Example:
        >>> grad, x = torch.tensor([[[[4.0, 8.0]]]]), torch.zeros(1, 1, 2, 4)
        >>> avg_pool_backward(grad, x, [2, 2], [], [0, 0], False, True, None).tolist()
        [[[[1.0, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]]]]
    """
    del ceil_mode  # it shows in the gradient's size
    stride = stride or kernel
    spans = zip(_sizes(x, kernel), _sizes(grad, kernel), kernel, stride, padding, strict=True)
    means = [matrices.mean(*span, count_include_pad) for span in spans]
    if divisor is None:
        return _transposed(grad, means)
    sums = [(matrix > 0).astype(matrix.dtype) for matrix in means]
    sums[0] /= divisor
    return _transposed(grad, sums)


def adaptive_avg_pool(x: Tensor, sizes: Sequence[int]) -> Tensor:
    """Computes A x per axis: the exporter's translation gathers every cell of every window.

    Example:
        >>> adaptive_avg_pool(torch.tensor([[[[1.0, 3.0, 5.0, 7.0]]]]), [1, 2]).tolist()
        [[[[2.0, 6.0]]]]
    """
    pairs = zip(_sizes(x, sizes), sizes, strict=True)
    return _transposed(x, [matrices.adaptive_mean(i, o).T for i, o in pairs])


def adaptive_avg_pool_backward(grad: Tensor, x: Tensor) -> Tensor:
    """Computes A^T g per axis, A the means of the adaptive windows.

    Example:
        >>> x = torch.zeros(1, 1, 1, 4)
        >>> adaptive_avg_pool_backward(torch.tensor([[[[2.0, 6.0]]]]), x).tolist()
        [[[[1.0, 1.0, 3.0, 3.0]]]]
    """
    sizes = zip(x.shape[2 - x.ndim % 2 :], grad.shape[2 - x.ndim % 2 :], strict=True)
    return _transposed(grad, [matrices.adaptive_mean(i, o) for i, o in sizes])


def max_pool_backward(
    grad: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: Tensor,
) -> Tensor:
    """Gives the gradient to the first maximum of each window, as PyTorch does.

    Example:
        >>> x, grad = torch.tensor([[[[1.0, 5.0, 5.0, 2.0]]]]), torch.tensor([[[[10.0, 20.0]]]])
        >>> indices = torch.tensor([[[[1, 2]]]])
        >>> max_pool_backward(grad, x, [1, 2], [], [0, 0], [1, 1], False, indices).tolist()
        [[[[0.0, 10.0, 20.0, 0.0]]]]
    """
    del ceil_mode, indices
    stride = stride or kernel
    sizes = zip(_sizes(x, kernel), _sizes(grad, kernel), strict=True)
    spans = zip(sizes, kernel, stride, padding, dilation, strict=True)
    cells = [
        matrices.inside(matrices.windows(out, k, s, p, d), length, d)
        for (length, out), k, s, p, d in spans
    ]
    return _MaxPool(x, cells).backward(grad)


def adaptive_max_pool(x: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Computes the maxima of the adaptive windows and their flat positions.

    Example:
        >>> values, positions = adaptive_max_pool(torch.tensor([[[[1.0, 5.0, 4.0, 2.0]]]]), [1, 2])
        >>> values.tolist(), positions.tolist()
        ([[[[5.0, 4.0]]]], [[[[1, 2]]]])
    """
    pool = _MaxPool(x, _adaptive_cells(x, sizes))
    return pool.values, pool.positions()


def adaptive_max_pool_backward(grad: Tensor, x: Tensor, indices: Tensor) -> Tensor:
    """Gives the gradient to the first maximum of each adaptive window.

    Example:
        >>> x, grad = torch.tensor([[[[1.0, 5.0, 4.0, 2.0]]]]), torch.tensor([[[[10.0, 20.0]]]])
        >>> adaptive_max_pool_backward(grad, x, torch.tensor([[[[1, 2]]]])).tolist()
        [[[[0.0, 10.0, 20.0, 0.0]]]]
    """
    spatial = indices.shape[2 - x.ndim % 2 :]
    return _MaxPool(x, _adaptive_cells(x, spatial)).backward(grad)


class _MaxPool:
    """Does max-pooling as one pass per axis, the last first, without scattering.

    The first maximum of a window in row-major order lies in the first row whose maximum
    is the window's, at the first maximum of that row; so the passes keep the tie rule.
    `cells` lists, for each of the last axes, the cells [out, k] of each window.
    """

    def __init__(self, x: Tensor, cells: Sequence[Indices]) -> None:
        self.lengths = _sizes(x, cells)
        self.passes: list[tuple[int, Indices, Tensor, Tensor]] = []
        for axis in range(-1, -len(cells) - 1, -1):
            index = cells[axis]
            seen = _gather(x, index, axis)
            x = seen.amax(axis)
            self.passes.append((axis, index, seen, _first_maximum(seen, axis)))
        self.values = x

    def backward(self, grad: Tensor) -> Tensor:
        for axis, index, _, first in reversed(self.passes):
            spread = torch.where(first, grad.unsqueeze(axis), 0.0).flatten(axis - 1, axis)
            cells, length = index.ravel(), self.lengths[axis]
            grad = along(spread, matrices.one_hot(cells, length), axis)
        return grad

    def positions(self) -> Tensor:
        found: Tensor | None = None
        weight = 1
        for axis, index, seen, first in self.passes:
            own = torch.tensor((index * weight).tolist(), device=seen.device)
            own = own.view(*index.shape, *[1] * (-axis - 1))
            total = own if found is None else own + _gather(found, index, axis)
            found = torch.where(first, total, 0).sum(axis)
            weight *= self.lengths[axis]
        assert found is not None  # noqa: S101 - there is at least one axis
        return found


def _adaptive_cells(x: Tensor, sizes: Sequence[int]) -> list[Indices]:
    pairs = zip(_sizes(x, sizes), sizes, strict=True)
    return [matrices.adaptive_windows(length, out) for length, out in pairs]


def _gather(x: Tensor, index: Indices, axis: int) -> Tensor:
    """Gathers the windows of one axis: [..., length, ...] to [..., out, k, ...]."""
    flat = index.ravel().tolist()
    if not matrices.is_whole(flat, x.shape[axis]):
        x = x.index_select(axis, torch.tensor(flat, device=x.device))
    return _split_axis(x, axis, index.shape)


def _first_maximum(seen: Tensor, axis: int) -> Tensor:
    """Marks the first maximum along an axis: the maxima get falling ranks, the top one wins."""
    ranks = torch.arange(seen.shape[axis], 0, -1, dtype=seen.dtype, device=seen.device)
    ranks = ranks.view(-1, *[1] * (-axis - 1))
    score = torch.where(seen >= seen.amax(axis, keepdim=True), ranks, 0.0)
    return score >= score.amax(axis, keepdim=True)


def resize(make: Callable[..., Matrix]) -> Callable[..., Tensor]:
    """Makes a resizing, A x per axis: the exporter's translation gathers.

    Args:
        make: gives A for one axis, `matrices.linear` or `matrices.cubic`.

    Example:
        >>> enlarge = resize(matrices.linear)
        >>> enlarge(torch.tensor([[[0.0, 4.0]]]), [3], True).tolist()  # corners aligned
        [[[0.0, 2.0, 4.0]]]
    """

    def forward(x: Tensor, output_size: Sequence[int], align: bool, *scales: Any) -> Tensor:
        found = _interpolations(make, _sizes(x, output_size), output_size, scales, align)
        return _transposed(x, [matrix.T for matrix in found])

    return forward


def resize_backward(make: Callable[..., Matrix], *, corners: bool) -> Callable[..., Tensor]:
    """Makes the gradient of a resizing, A^T g per axis.

    Args:
        make: gives A for one axis, a function of `matrices`.
        corners: whether the operator has an argument that aligns corners.

    Example:
        >>> backward = resize_backward(matrices.linear, corners=True)
        >>> backward(torch.tensor([[[1.0, 10.0, 100.0]]]), [3], [1, 1, 2], True).tolist()
        [[[6.0, 105.0]]]
    """

    def backward(
        grad: Tensor, output_size: Sequence[int], input_size: Sequence[int], *rest: Any
    ) -> Tensor:
        align, scales = (rest[:1], rest[1:]) if corners else ((), rest)
        return _transposed(grad, _interpolations(make, input_size[2:], output_size, scales, *align))

    return backward


def _interpolations(
    make: Callable[..., Matrix],
    lengths: Sequence[int],
    outs: Sequence[int],
    scales: Sequence[float | None],
    *align: bool,
) -> list[Matrix]:
    spans = zip(lengths, outs, scales or [None] * len(outs), strict=True)
    return [make(length, out, *align, scale) for length, out, scale in spans]


def pad_backward(mode: Callable[[Indices, int], Indices]) -> Callable[..., Tensor]:
    """Makes the gradient of a padding, A^T g per axis.

    Args:
        mode: which cells are copied, `matrices.reflected` or `matrices.replicated`.

    Example:
        >>> backward = pad_backward(matrices.replicated)
        >>> grad, x = torch.tensor([[[1.0, 10.0, 100.0, 1000.0]]]), torch.zeros(1, 1, 2)
        >>> backward(grad, x, [2, 0]).tolist()
        [[[111.0, 1000.0]]]
    """

    def backward(grad: Tensor, x: Tensor, padding: Sequence[int]) -> Tensor:
        pairs = list(zip(padding[::2], padding[1::2], strict=True))[::-1]
        spans = zip(_sizes(x, pairs), pairs, strict=True)
        return _transposed(grad, [matrices.padded(i, *pair, mode) for i, pair in spans])

    return backward


def unfold_backward(
    grad: Tensor, input_sizes: Sequence[int], axis: int, size: int, step: int
) -> Tensor:
    """Adds windows back to where they were cut: one-hot A^T g.

    Example:
        >>> grad = torch.tensor([[1.0, 2.0], [10.0, 20.0]])  # two windows that share a cell
        >>> unfold_backward(grad, [3], 0, size=2, step=1).tolist()
        [1.0, 12.0, 20.0]
    """
    axis %= len(input_sizes)
    index = matrices.windows(grad.shape[axis], size, step, 0).ravel()
    laid = grad.movedim(-1, axis + 1).flatten(axis, axis + 1)
    return along(laid, matrices.one_hot(index, input_sizes[axis]), axis - laid.ndim)


def im2col(
    x: Tensor,
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Computes `unfold`: the cells of all windows, one-hot A x; padding reads 0.

    Example:
        >>> x = torch.tensor([[[[1.0, 2.0, 3.0]]]])
        >>> im2col(x, [1, 2], [1, 1], [0, 0], [1, 1]).tolist()  # one column a window
        [[[1.0, 2.0], [2.0, 3.0]]]
    """
    size = _sizes(x, kernel)
    spans, outs = _window_spans(size, kernel, dilation, padding, stride)
    laid = _transposed(x, [matrix.T for matrix in _window_cells(spans, outs)])
    wide = _split_axis(_split_axis(laid, -1, (kernel[1], outs[1])), -3, (kernel[0], outs[0]))
    # From [.., kh, oh, kw, ow].
    return wide.transpose(-3, -2).flatten(-5, -3).flatten(-2)


def col2im(
    x: Tensor,
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    """Computes `fold`, `unfold`'s gradient: adds up the cells of all windows, one-hot A^T x.

    Example:
        >>> windows = torch.tensor([[[1.0, 2.0], [10.0, 20.0]]])
        >>> col2im(windows, [1, 3], [1, 2], [1, 1], [0, 0], [1, 1]).tolist()  # 2 + 10 overlap
        [[[[1.0, 12.0, 20.0]]]]
    """
    spans, outs = _window_spans(size, kernel, dilation, padding, stride)
    wide = _split_axis(_split_axis(x, -1, outs), -3, (-1, *kernel))
    laid = wide.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return _transposed(laid, _window_cells(spans, outs))


def _window_spans(
    size: Sequence[int],
    kernel: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
    stride: Sequence[int],
) -> tuple[list[tuple[int, ...]], list[int]]:
    spans: list[tuple[int, ...]] = list(zip(size, kernel, stride, padding, dilation, strict=True))
    return spans, [(i + 2 * p - d * (k - 1) - 1) // s + 1 for i, k, s, p, d in spans]


def _window_cells(spans: Sequence[tuple[int, ...]], outs: Sequence[int]) -> list[Matrix]:
    """Returns one-hot rows, by the cell's place in its window, then by the window: [k o, in]."""
    return [
        matrices.one_hot(matrices.windows(o, k, s, p, d).T.ravel(), i)
        for o, (i, k, s, p, d) in zip(outs, spans, strict=True)
    ]
