"""Translates attention to ONNX: products of matrices and a softmax, for values of any rank.

The exporter's own translation takes four axes only (windowed transformers have three or
five), reads sizes that are known at run time again, and attends to everything in a row whose
mask hides everything, where PyTorch gives zeros.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir
from onnxscript import opset18 as op


def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Writes softmax(scale q k^T + mask) v, as `torch.onnx.export` wants a translation.

    Args:
        query: [..., heads, L, D].
        key: [..., heads, S, D], or with fewer heads for `enable_gqa`.
        value: [..., heads, S, E].
        attn_mask: bool (True takes part) or float, added to the scores; of [L, S] or a shape
            that is repeated to [..., heads, L, S].
        dropout_p: 0, as in inference.
        is_causal: whether position l attends to none after it.
        scale: 1 / sqrt(D) when None.
        enable_gqa: whether each head of key and value serves several of the query.

    Returns:
        [..., heads, L, E].

    Raises:
        ValueError: dropout, or a causal mask of a size that isn't fixed.

    Example:
        table = {torch.ops.aten.scaled_dot_product_attention.default: scaled_dot_product_attention}
        torch.onnx.export(program, custom_translation_table=table, dynamo=True)
    """
    if dropout_p:
        raise ValueError("attention has a dropout that acts in inference mode")
    axes, mask = len(key.shape), attn_mask
    if is_causal:
        mask = _causal(query.shape[-2], key.shape[-2])
    if enable_gqa:
        key, value = (_repeated(one, int(query.shape[-3])) for one in (key, value))
    scale = 1 / math.sqrt(int(query.shape[-1])) if scale is None else scale
    transposed = op.Transpose(key, perm=[*range(axes - 2), axes - 1, axes - 2])
    scores = op.MatMul(op.Mul(query, _number(scale)), transposed)
    if mask is None:
        return op.MatMul(op.Softmax(scores, axis=-1), value)
    if mask.dtype == onnx_ir.DataType.BOOL:
        mask = op.Where(mask, _number(0.0), _number(-math.inf))
    shares = op.Softmax(op.Add(scores, mask), axis=-1)
    if not is_causal:  # a causal row sees itself at least
        # Softmax gives NaN where all is hidden; what is hidden is in the mask alone, which
        # is a constant in most networks.
        highest = op.ReduceMax(mask, _numbers(-1), keepdims=1)
        shares = op.Where(op.Equal(highest, _number(-math.inf)), _number(0.0), shares)
    return op.MatMul(shares, value)


def _number(value: float) -> Any:
    return op.Constant(value_float=value)


def _numbers(*values: int) -> Any:
    return op.Constant(value_ints=values)


def _causal(length: object, other_length: object) -> Any:
    if not (isinstance(length, int) and isinstance(other_length, int)):
        raise ValueError("causal attention needs a fixed number of positions")  # noqa: TRY004
    visible = np.tril(np.ones((length, other_length), bool))
    mask: Any = onnx_ir.tensor(np.where(visible, np.float32(0), np.float32(-np.inf)))
    return op.Constant(value=mask)


def _repeated(value: Any, heads: int) -> Any:
    """Repeats the heads of key or value, each as often as it serves a head of the query."""
    *leading, own, length, size = value.shape
    times, before = heads // int(own), len(leading)
    apart = op.Unsqueeze(value, _numbers(before + 1))
    copies = op.Expand(apart, _numbers(*[1] * (before + 1), times, 1, 1))
    # A 0 keeps the size, so that the batch may vary.
    return op.Reshape(copies, _numbers(*[0] * before, heads, int(length), int(size)))
