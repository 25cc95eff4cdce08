"""Writes backward operators with forward ones, for `make_fx(decomposition_table=...)`.

ONNX has no backward operators. `DECOMPOSITIONS` holds PyTorch's own decompositions where
they are plain arithmetic, and ours where PyTorch has none or one that needs a scatter
with reduction, which TensorRT refuses. Trace with `sdpa_kernel(SDPBackend.MATH)`, so
that attention is matrix products and a softmax before autograd sees it. Only the batch
size may be symbolic. Gradients of parameters are never wanted. Each function takes the arguments
of the aten operator that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table, get_decompositions

from sigcam.export.backward import linear_gradients as linear
from sigcam.export.backward import matrices
from sigcam.export.backward import move_gradients as moves
from sigcam.export.backward import norm_gradients as norm

_aten = torch.ops.aten

_PYTORCH = (
    # Activations.
    _aten.elu_backward, _aten.gelu_backward, _aten.glu_backward, _aten.hardsigmoid_backward,
    _aten.hardswish_backward, _aten.hardtanh_backward, _aten.leaky_relu_backward,
    _aten.log_sigmoid_backward, _aten.mish_backward, _aten._prelu_kernel_backward,
    _aten.rrelu_with_noise_backward, _aten.sigmoid_backward, _aten.silu_backward,
    _aten.softplus_backward, _aten.tanh_backward, _aten.threshold_backward,
    _aten.logit_backward,
    _aten._softmax_backward_data, _aten._log_softmax_backward_data,
    _aten.native_dropout_backward,
)  # fmt: skip


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """Computes the input's gradient: the transposed convolution with the same weight.

    y[o] = sum_t w[t] x[o s - p + t d], so dL/dx[i] = sum of w[t] g[o] over o s - p + t d = i.
    Of the input sizes that a stride maps to one output size, `output_padding` picks x's.

    Raises:
        ExportError: the gradient of the weight or the bias is wanted.

    Example:
        >>> grad, x = torch.tensor([[[1.0, 10.0]]]), torch.zeros(1, 1, 4)
        >>> weight = torch.tensor([[[1.0, 2.0]]])  # y[o] = x[2 o] + 2 x[2 o + 1]
        >>> found, _, _ = convolution_backward(
        ...     grad, x, weight, None, [2], [0], [1], False, [0], 1, [True, False, False]
        ... )
        >>> found.tolist()
        [[[1.0, 2.0, 10.0, 20.0]]]
    """
    del bias_sizes, output_padding
    norm.only_input(output_mask, "convolution")
    sizes = x.shape[2:]
    zeros = [0] * len(sizes)
    if transposed:
        found = _aten.convolution.default(
            grad, weight, None, stride, padding, dilation, False, zeros, groups
        )
        for axis, size in enumerate(sizes, 2):
            found = found.narrow(axis, 0, size)
        return found, None, None
    axes = zip(sizes, grad.shape[2:], stride, padding, dilation, weight.shape[2:], strict=True)
    extra = [i - ((o - 1) * s - 2 * p + d * (k - 1) + 1) for i, o, s, p, d, k in axes]
    found = _aten.convolution.default(
        grad, weight, None, stride, padding, dilation, True, extra, groups
    )
    return found, None, None


def addcmul(x: Tensor, one: Tensor, other: Tensor, *, value: float = 1) -> Tensor:
    """Computes it in plain arithmetic: the operator's broadcasting fails on a symbolic batch.

    Example:
        >>> addcmul(torch.tensor([1.0]), torch.tensor([2.0]), torch.tensor([3.0]), value=10).item()
        61.0
    """
    return x + (one * other if value == 1 else one * other * value)


def addcdiv(x: Tensor, one: Tensor, other: Tensor, *, value: float = 1) -> Tensor:
    """Computes it in plain arithmetic, as `addcmul`.

    Example:
        >>> addcdiv(torch.tensor([1.0]), torch.tensor([6.0]), torch.tensor([3.0]), value=10).item()
        21.0
    """
    return x + (one / other if value == 1 else one / other * value)


def shrink_backward(grad: Tensor, x: Tensor, limit: float) -> Tensor:
    """Computes the gradient of `softshrink` and `hardshrink`: none where |x| <= limit.

    Example:
        >>> shrink_backward(torch.ones(3), torch.tensor([-2.0, 0.25, 2.0]), 0.5).tolist()
        [1.0, 0.0, 1.0]
    """
    found: Tensor = torch.where(x.abs() <= limit, 0.0, grad)
    return found


def safe_softmax(x: Tensor, axis: int, dtype: torch.dtype | None = None) -> Tensor:
    """Computes a softmax that is 0, not NaN, in rows that are masked altogether.

    Such a row's maximum is -inf, which is cheaper to see than a row of -inf cells.

    Example:
        >>> safe_softmax(torch.tensor([[1.0, 1.0], [-torch.inf, -torch.inf]]), -1).tolist()
        [[0.5, 0.5], [0.0, 0.0]]
    """
    masked = x.amax(axis, keepdim=True) == -torch.inf
    found: Tensor = torch.where(masked, 0.0, torch.softmax(x, axis, dtype))
    return found


def _writes_out(op: Any) -> bool:
    return any(argument.is_out for argument in op._schema.arguments)


_resize_linear, _resize_cubic = linear.resize(matrices.linear), linear.resize(matrices.cubic)
_linear_backward = linear.resize_backward(matrices.linear, corners=True)
_cubic_backward = linear.resize_backward(matrices.cubic, corners=True)
_nearest_backward = linear.resize_backward(matrices.nearest, corners=False)
_nearest_exact_backward = linear.resize_backward(partial(matrices.nearest, half=0.5), corners=False)
_reflected_backward = linear.pad_backward(matrices.reflected)
_replicated_backward = linear.pad_backward(matrices.replicated)

_OURS: dict[Any, Callable[..., Any]] = {
    _aten.convolution_backward.default: convolution_backward,
    _aten.native_layer_norm.default: norm.layer_norm,
    _aten.native_layer_norm_backward.default: norm.layer_norm_backward,
    _aten.native_group_norm.default: norm.group_norm,
    _aten.native_group_norm_backward.default: norm.group_norm_backward,
    _aten.native_batch_norm_backward.default: norm.batch_norm_backward,
    _aten.var_mean.correction: norm.var_mean,
    _aten.std_mean.correction: norm.std_mean,
    _aten.addcmul.default: addcmul,
    _aten.addcdiv.default: addcdiv,
    _aten.softshrink_backward.default: shrink_backward,
    _aten.hardshrink_backward.default: shrink_backward,
    _aten.avg_pool2d_backward.default: linear.avg_pool_backward,
    _aten.avg_pool3d_backward.default: linear.avg_pool_backward,
    _aten._adaptive_avg_pool2d_backward.default: linear.adaptive_avg_pool_backward,
    _aten._adaptive_avg_pool3d_backward.default: linear.adaptive_avg_pool_backward,
    _aten._adaptive_avg_pool2d.default: linear.adaptive_avg_pool,
    _aten._adaptive_avg_pool3d.default: linear.adaptive_avg_pool,
    _aten.max_pool2d_with_indices_backward.default: linear.max_pool_backward,
    _aten.max_pool3d_with_indices_backward.default: linear.max_pool_backward,
    _aten.adaptive_max_pool2d.default: linear.adaptive_max_pool,
    _aten.adaptive_max_pool3d.default: linear.adaptive_max_pool,
    _aten.adaptive_max_pool2d_backward.default: linear.adaptive_max_pool_backward,
    _aten.adaptive_max_pool3d_backward.default: linear.adaptive_max_pool_backward,
    _aten.upsample_linear1d.default: _resize_linear,
    _aten.upsample_bilinear2d.default: _resize_linear,
    _aten.upsample_trilinear3d.default: _resize_linear,
    _aten.upsample_bicubic2d.default: _resize_cubic,
    _aten.upsample_linear1d_backward.default: _linear_backward,
    _aten.upsample_bilinear2d_backward.default: _linear_backward,
    _aten.upsample_trilinear3d_backward.default: _linear_backward,
    _aten.upsample_bicubic2d_backward.default: _cubic_backward,
    _aten.upsample_nearest1d_backward.default: _nearest_backward,
    _aten.upsample_nearest2d_backward.default: _nearest_backward,
    _aten.upsample_nearest3d_backward.default: _nearest_backward,
    _aten._upsample_nearest_exact1d_backward.default: _nearest_exact_backward,
    _aten._upsample_nearest_exact2d_backward.default: _nearest_exact_backward,
    _aten._upsample_nearest_exact3d_backward.default: _nearest_exact_backward,
    _aten.reflection_pad1d_backward.default: _reflected_backward,
    _aten.reflection_pad2d_backward.default: _reflected_backward,
    _aten.reflection_pad3d_backward.default: _reflected_backward,
    _aten.replication_pad1d_backward.default: _replicated_backward,
    _aten.replication_pad2d_backward.default: _replicated_backward,
    _aten.replication_pad3d_backward.default: _replicated_backward,
    _aten.unfold_backward.default: linear.unfold_backward,
    _aten.im2col.default: linear.im2col,
    _aten.col2im.default: linear.col2im,
    _aten.constant_pad_nd.default: moves.constant_pad_nd,
    _aten.slice_backward.default: moves.slice_backward,
    _aten.select_backward.default: moves.select_backward,
    _aten._safe_softmax.default: safe_softmax,
    _aten.scatter.src: moves.scatter,
    _aten.scatter_add.default: moves.scatter_add,
    _aten.index_add.default: moves.index_add,
    _aten.index.Tensor: moves.index,
    _aten.index_put.default: moves.index_put,
}

DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **{op: f for op, f in get_decompositions(_PYTORCH).items() if not _writes_out(op)},
    **_OURS,
}
"""Operator overload to its decomposition; pass it to `make_fx`."""

_SCATTERS = (
    _aten.scatter_add.default, _aten.scatter_add_.default, _aten.scatter_reduce.two,
    _aten.scatter_reduce_.two, _aten.index_add.default, _aten.index_add_.default,
    _aten.index_reduce.default, _aten._unsafe_index_put.default,
)  # fmt: skip
"""Translated to a scatter with reduction, or not at all."""
_DATA_DEPENDENT = (
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._local_scalar_dense.default,
)
_INDEX_PUTS = (_aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


def untranslatable(graph: fx.Graph) -> list[str]:
    """Lists the operators of a traced graph that can't go into a portable ONNX graph.

    They are those that neither the ONNX exporter nor PyTorch's decompositions to what it knows
    can express, whatever is left of a backward pass, and what ends as a scatter with
    reduction or a shape that depends on data.

    Args:
        graph: from `make_fx` with `DECOMPOSITIONS`, dead code eliminated.

    Returns:
        Sorted names such as "aten._cdist_backward.default"; empty if all is well.

    Example:
        traced = make_fx(lambda x: torch.nonzero(x))(torch.ones(2))
        untranslatable(traced.graph)  # ['aten.nonzero.default']
    """
    known = _translations()
    targets = {node.target: node for node in graph.nodes if node.op == "call_function"}
    puts = {
        node.target
        for node in graph.nodes
        if node.target in _INDEX_PUTS and len(node.args) > 3 and node.args[3]
    }
    found = [
        str(target)
        for target in targets
        if isinstance(target, torch._ops.OpOverload)
        and (target in puts or not _is_translatable(target, known))
    ]
    return sorted(found)


def _is_translatable(target: torch._ops.OpOverload, known: Callable[[Any], bool]) -> bool:
    if "backward" in str(target) or target in (*_SCATTERS, *_DATA_DEPENDENT):
        return False
    if target._schema.is_mutable or "as_strided" in str(target):
        return False  # right only for the memory layout that was traced
    if target.namespace != "aten":  # such as prims, which can't be functionalised
        return False
    return known(target) or target in decomposition_table or target._can_decompose()


def _translations() -> Callable[[Any], bool]:
    """Returns a function that says whether the ONNX exporter translates an operator."""
    try:
        # No public way to ask yet; in PyTorch 2.11 to 2.14 it is here.
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        registry = ONNXRegistry.from_torchlib()
        known: Callable[[Any], bool] = registry.is_registered
    except (ImportError, AttributeError):
        # Moved: the check is then by name alone, and the exporter has the last word.
        return lambda _: True
    return known
