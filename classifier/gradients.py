"""Takes gradients with autograd, past a kernel of PyTorch's that gets one of them wrong.

On the CPU, the backward kernel of batch normalisation (instance normalisation ends there too)
mixes up channels and positions where there is one image, the value is contiguous and its
gradient has its channels last (seen in PyTorch 2.14; no error is raised). Tokens made
of the normalised value are enough for that: the gradient of such a sequence has its channels
last. With the strides of both written out the kernel is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_BATCH_NORMS = (
    torch.ops.aten.native_batch_norm_backward.default,
    torch.ops.aten.batch_norm_backward.default,
)


def gradients_of(
    total: Tensor,
    inputs: Sequence[Tensor],
    *,
    retain_graph: bool | None = None,
    allow_unused: bool = False,
) -> tuple[Tensor, ...]:
    """Returns the gradients of a number, as `torch.autograd.grad` does where that is right.

    Args:
        total: one number, on the CPU or a device.
        inputs: what it is differentiated with respect to.
        retain_graph: whether the graph stays for further gradients.
        allow_unused: whether `total` may not depend on an input; its gradient is then None.

    Returns:
        For each input a tensor of its shape, dtype and device.

    Raises:
        RuntimeError: an operator has no derivative, or an input isn't used and must be.

    Example:
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> gradients_of(x.square().sum(), [x])[0].tolist()
        [2.0, 4.0]
    """
    with _PlainStrides():  # type: ignore[no-untyped-call]
        return torch.autograd.grad(
            total, inputs, retain_graph=retain_graph, allow_unused=allow_unused
        )


class _PlainStrides(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gives the backward pass of batch normalisation values and gradients of plain strides."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func in _BATCH_NORMS:
            # A copy in any case: of one image or channel, `contiguous` may leave other strides.
            plain = [x.clone(memory_format=torch.contiguous_format) for x in args[:2]]
            args = (*plain, *args[2:])
        return func(*args, **(kwargs or {}))
