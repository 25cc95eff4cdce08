"""Computes normalisations and their gradients in plain arithmetic.

The forward operators are here too: the backward pass needs the mean and the deviation,
which backends' LayerNormalization doesn't give out. With x^ = (x - mean) rstd over the
normalised cells, dL/dx = rstd (g - mean(g) - x^ mean(g x^)), where g is the gradient of x^.
Each function takes the arguments of the aten operator that it stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sigcam.core.errors import ExportError


def layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `native_layer_norm`: the output, the mean and 1 / deviation over the last axes.

    Example:
        >>> import torch
        >>> found, mean, rstd = layer_norm(torch.tensor([[1.0, 5.0]]), [2], None, None, eps=0.0)
        >>> found.tolist(), mean.tolist(), rstd.tolist()
        ([[-1.0, 1.0]], [[3.0]], [[0.5]])
    """
    scaled, mean, rstd = _normalised(x, _last(shape), eps)
    return _affine(scaled, weight, bias), mean, rstd


def layer_norm_backward(
    grad: Tensor,
    x: Tensor,
    shape: Sequence[int],
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """Computes the input's gradient of layer normalisation.

    Example:
        >>> import torch
        >>> x, grad = torch.tensor([[1.0, 1.0, 5.0, 5.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0]])
        >>> _, mean, rstd = layer_norm(x, [4], None, None, eps=0.0)
        >>> mask = [True, False, False]
        >>> layer_norm_backward(grad, x, [4], mean, rstd, None, None, mask)[0].tolist()
        [[0.25, -0.25, 0.0, 0.0]]
    """
    del bias
    only_input(output_mask, "layer normalisation")
    grad = grad if weight is None else grad * weight
    return _backward(grad, (x - mean) * rstd, rstd, _last(shape)), None, None


def group_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    batch: int,
    channels: int,
    cells: int,
    groups: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes `native_group_norm`: the output, and mean and 1 / deviation of each group [B, G].

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0], [5.0], [10.0], [30.0]]])  # four channels in two groups
        >>> found, mean, rstd = group_norm(x, None, None, 1, 4, 1, 2, eps=0.0)
        >>> mean.tolist()
        [[3.0, 20.0]]
        >>> found.flatten().tolist()
        [-1.0, 1.0, -1.0, 1.0]
    """
    del cells
    scaled, mean, rstd = _normalised(x.reshape(batch, groups, -1), [-1], eps)
    wide = [channels] + [1] * (x.ndim - 2)
    affine = [None if p is None else p.reshape(wide) for p in (weight, bias)]
    return _affine(scaled.reshape(x.shape), *affine), mean.squeeze(-1), rstd.squeeze(-1)


def group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    batch: int,
    channels: int,
    cells: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """Computes the input's gradient of group normalisation.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 1.0], [5.0, 5.0]]])  # two channels, one group
        >>> grad = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
        >>> _, mean, rstd = group_norm(x, None, None, 1, 2, 2, 1, eps=0.0)
        >>> mask = [True, False, False]
        >>> group_norm_backward(grad, x, mean, rstd, None, 1, 2, 2, 1, mask)[0].tolist()
        [[[0.25, -0.25], [0.0, 0.0]]]
    """
    del cells
    only_input(output_mask, "group normalisation")
    if weight is not None:
        grad = grad * weight.reshape([channels] + [1] * (x.ndim - 2))
    rstd = rstd.unsqueeze(-1)
    scaled = (x.reshape(batch, groups, -1) - mean.unsqueeze(-1)) * rstd
    found = _backward(grad.reshape(batch, groups, -1), scaled, rstd, [-1])
    return found.reshape(x.shape), None, None


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, None, None]:
    """Computes the input's gradient of batch normalisation in inference form: g weight / deviation.

    Raises:
        ExportError: batch statistics are used; the prediction would depend on the batch.

    Example:
        >>> import torch
        >>> grad, x, var = torch.ones(1, 2, 1), torch.zeros(1, 2, 1), torch.tensor([4.0, 0.25])
        >>> found, _, _ = batch_norm_backward(
        ...     grad, x, None, torch.zeros(2), var, None, None, False, 0.0, [True, False, False]
        ... )
        >>> found.flatten().tolist()
        [0.5, 2.0]
    """
    del running_mean, mean, rstd
    only_input(output_mask, "batch normalisation")
    if train or running_var is None:
        raise ExportError(
            "the head has a batch normalisation that uses the batch's own statistics; "
            "it needs running statistics, and the model in inference mode (.eval())"
        )
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    return grad * scale.reshape([-1] + [1] * (x.ndim - 2)), None, None


def var_mean(
    x: Tensor,
    axes: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes the variance sum((x - mean)^2) / (n - correction), and the mean.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 3.0, 5.0]])
        >>> var_mean(x, [1])
        (tensor([4.]), tensor([3.]))
        >>> var_mean(x, [1], correction=0)[0]
        tensor([2.6667])
    """
    axes = list(axes) if axes else list(range(x.ndim))
    mean = x.mean(axes, keepdim=True)
    count: Any = 1
    for axis in axes:
        count = count * x.shape[axis]
    off = x - mean
    var = (off * off).sum(axes, keepdim=keepdim) / (
        count - (1 if correction is None else correction)
    )
    return var, mean if keepdim else mean.sum(axes)


def std_mean(
    x: Tensor,
    axes: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes the root of `var_mean`'s variance, and the mean.

    Example:
        >>> import torch
        >>> std_mean(torch.tensor([[1.0, 3.0, 5.0]]), [1])
        (tensor([2.]), tensor([3.]))
    """
    var, mean = var_mean(x, axes, correction=correction, keepdim=keepdim)
    return var.sqrt(), mean


def only_input(output_mask: Sequence[bool], what: str) -> None:
    """Refuses gradients of parameters.

    Args:
        output_mask: which gradients of an operator are wanted, the input's first.
        what: the operator, for the message.

    Raises:
        ExportError: the gradient of a parameter is wanted.

    Example:
        >>> only_input([True, False, False], "convolution")
        >>> only_input([True, True, False], "convolution")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ExportError: a parameter of a convolution needs a gradient; only the ...
    """
    if any(output_mask[1:]):
        raise ExportError(
            f"a parameter of a {what} needs a gradient; only the features may: "
            f"detach the parameters before tracing"
        )


def _last(shape: Sequence[int]) -> list[int]:
    return list(range(-len(shape), 0))


def _normalised(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(axes, keepdim=True)
    off = x - mean
    rstd = ((off * off).mean(axes, keepdim=True) + eps).rsqrt()
    return off * rstd, mean, rstd


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _backward(grad: Tensor, scaled: Tensor, rstd: Tensor, axes: list[int]) -> Tensor:
    centred = grad - grad.mean(axes, keepdim=True)
    return rstd * (centred - scaled * (grad * scaled).mean(axes, keepdim=True))
