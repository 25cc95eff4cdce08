"""Holds matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sigcam.classifier.onnx.operators.table import Call, Value, as_tensor, operator


@operator("Gemm", weights=(1, 2))
def gemm(call: Call, a: Tensor, b: Value, c: Value = None) -> Any:
    """Computes alpha A B + beta C, with A or B transposed; C broadcasts."""
    b = as_tensor(b, a)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.t() if call.get("transA", 0) else a
    rows_last = b if call.get("transB", 0) else b.t()  # [outputs, inputs], as a linear layer has
    c = None if c is None else as_tensor(c, a)
    if alpha == 1.0 and beta == 1.0 and (c is None or c.shape == rows_last.shape[:1]):
        return functional.linear(a, rows_last, c)
    product = alpha * functional.linear(a, rows_last)
    return product if c is None else product + beta * c


@operator("MatMul", weights=(0, 1))
def matmul(call: Call, a: Value, b: Value) -> Tensor:
    """Multiplies matrices of any rank, with broadcasting of the axes in front."""
    a = as_tensor(a, b if isinstance(b, Tensor) else None)
    b = as_tensor(b, a)
    if b.ndim == 2 and a.ndim > 1:  # a linear layer, however many axes are in front
        return functional.linear(a, b.t())
    return torch.matmul(a, b)


@operator("Einsum", weights=(-1,))
def einsum(call: Call, *values: Tensor) -> Tensor:
    """Computes a sum of products along named axes."""
    return torch.einsum(call.get("equation").replace(" ", ""), *values)
