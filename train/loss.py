"""Computes the loss that trains the sigmoid branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name; features are never F here)

from sigcam.core.errors import UsageError


def default_positive_weight(num_classes: int) -> float:
    """Returns C - 1, so that the one positive class weighs as much as all negatives together.

    Example:
        >>> default_positive_weight(1000)
        999.0
    """
    return float(max(num_classes - 1, 1))


def evidence_loss(
    sigmoid_logits: torch.Tensor,
    class_ids: torch.Tensor,
    positive_weight: float | None = None,
) -> torch.Tensor:
    """Computes the class-balanced binary cross-entropy of every class against the rest.

    Beyond Softmax, Eq. 12, with p the positive weight and s = sigmoid(z):

        L = -1 / (B C) * sum_b sum_c [p y log s + (1 - y) log(1 - s)]

    With p = C - 1 this is Eq. 12 up to a constant factor: the sum over the classes of one
    image is divided by C, so that the value doesn't grow with the number of classes.
    It equals `binary_cross_entropy_with_logits(..., pos_weight=p)`, mean reduction. No
    one-hot target is made: softplus(z) is summed over everything, and the one positive
    entry of each row is corrected by p softplus(-z) - softplus(z).

    Args:
        sigmoid_logits: [B, C], pre-sigmoid; half precision is computed in float32.
        class_ids: int64 [B], 0 <= id < C.
        positive_weight: p > 0; C - 1 when None (Table 5 also tries 1 and (C - 1) / 2).

    Returns:
        A scalar: the mean over batch and classes.

    Raises:
        UsageError: a wrong shape or dtype, a class id outside the range, p not above 0.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
        >>> target = F.one_hot(torch.tensor([0]), 3).float()
        >>> want = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(2.0))
        >>> torch.allclose(evidence_loss(logits, torch.tensor([0])), want)
        True
    """
    _check(sigmoid_logits, class_ids)
    num_classes = sigmoid_logits.shape[1]
    weight = default_positive_weight(num_classes) if positive_weight is None else positive_weight
    if not weight > 0:
        raise UsageError(f"positive_weight must be above 0, got {positive_weight}")
    z = sigmoid_logits
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    positive = z.gather(1, class_ids.unsqueeze(1))
    correction = weight * F.softplus(-positive) - F.softplus(positive)
    return (F.softplus(z).sum() + correction.sum()) / z.numel()


def _check(logits: torch.Tensor, class_ids: torch.Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point() or logits.numel() == 0:
        raise UsageError(
            f"sigmoid_logits must be a float tensor [B, C], got {logits.dtype} {list(logits.shape)}"
        )
    if class_ids.dtype != torch.int64 or class_ids.shape != logits.shape[:1]:
        raise UsageError(
            f"class_ids must be int64 [{logits.shape[0]}], "
            f"got {class_ids.dtype} {list(class_ids.shape)}"
        )
    low, high = int(class_ids.min()), int(class_ids.max())
    if low < 0 or high >= logits.shape[1]:
        raise UsageError(
            f"class_ids must lie in 0..{logits.shape[1] - 1}, got {low if low < 0 else high}"
        )
