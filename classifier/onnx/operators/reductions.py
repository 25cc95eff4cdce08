"""Holds reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sigcam.classifier.onnx.operators.table import TABLE, Call, Operator, Value, axes_input


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def _enter(name: str, function: Callable[..., Any], known: Any) -> None:
    def compute(call: Call, x: Tensor, axes: Value = None) -> Tensor:
        own = axes_input(call, axes, [])
        if not own and call.get("noop_with_empty_axes", 0):
            return x
        result: Tensor = function(x, own or list(range(x.ndim)), bool(call.get("keepdims", 1)))
        return result

    def compute_known(call: Call, x: Any, axes: Value = None) -> Any:
        own = axes_input(call, axes, [])
        if not own and call.get("noop_with_empty_axes", 0):
            return x
        return np.asarray(
            known(np.asarray(x), axis=tuple(own) or None, keepdims=bool(call.get("keepdims", 1)))
        )

    TABLE[name] = Operator(compute, static=(1,), known=compute_known if known is not None else None)


_enter("ReduceMean", lambda x, axes, keep: x.mean(axes, keepdim=keep), None)
_enter("ReduceSum", lambda x, axes, keep: x.sum(axes, keepdim=keep), np.sum)
_enter("ReduceProd", _product, np.prod)
_enter("ReduceMax", lambda x, axes, keep: x.amax(axes, keepdim=keep), np.max)
_enter("ReduceMin", lambda x, axes, keep: x.amin(axes, keepdim=keep), np.min)
_enter("ReduceL1", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep), None)
_enter("ReduceL2", lambda x, axes, keep: (x * x).sum(axes, keepdim=keep).sqrt(), None)
_enter("ReduceSumSquare", lambda x, axes, keep: (x * x).sum(axes, keepdim=keep), None)
_enter("ReduceLogSum", lambda x, axes, keep: x.sum(axes, keepdim=keep).log(), None)
_enter("ReduceLogSumExp", lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep), None)
