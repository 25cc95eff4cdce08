"""Computes the loss that trains the sigmoid branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name; features are never F here)

from sigcam.core.errors import UsageError


def default_positive_weight(num_classes: int, mean_labels: float = 1.0) -> float:
    """Returns (C - m) / m, so that positive classes weigh as much as negatives, all together.

    For one class an image that is C - 1, as in Beyond Softmax, Eq. 12. For several, m is the mean
    number of classes of an image: of the C terms of an image's loss m are positive in the mean.

    Args:
        num_classes: C.
        mean_labels: m, 0 < m < C (or C = 1, where the weight is 1).

    Raises:
        UsageError: m of 0, or of C: there is nothing to tell apart.

    Example:
        >>> default_positive_weight(1000), default_positive_weight(80, 2.5)
        (999.0, 31.0)
    """
    if num_classes == 1:
        return 1.0
    if not 0 < mean_labels < num_classes:
        raise UsageError(
            f"images must have some of the {num_classes} classes and not all of them, they have "
            f"{mean_labels:g} in the mean; look at the labels, or give a positive weight"
        )
    return (num_classes - mean_labels) / mean_labels


def evidence_loss(
    sigmoid_logits: torch.Tensor,
    targets: torch.Tensor,
    positive_weight: float | None = None,
) -> torch.Tensor:
    """Computes the class-balanced binary cross-entropy of every class against the rest.

    Beyond Softmax, Eq. 12, with p the positive weight and s = sigmoid(z):

        L = -1 / (B C) * sum_b sum_c [p y log s + (1 - y) log(1 - s)]
          =  1 / (B C) * sum_b sum_c [p y softplus(-z) + (1 - y) softplus(z)]

    With p = C - 1 this is Eq. 12 itself: a mean over batch and classes, so that the value
    doesn't grow with the number of classes. It equals
    `binary_cross_entropy_with_logits(..., pos_weight=p)`, mean reduction. The targets are
    class ids, where y is 1 at the class and 0 elsewhere, or y itself, which isn't the paper's:
    several classes an image, or soft labels. No one-hot target is made of class ids: softplus(z)
    is summed over everything, and the one positive entry of each row is corrected by
    p softplus(-z) - softplus(z).

    Args:
        sigmoid_logits: [B, C], pre-sigmoid; half precision is computed in float32.
        targets: class ids, int64 [B], 0 <= id < C; or y, float [B, C], 0 <= y <= 1 (a
            probability of each class; rows need not add up to 1).
        positive_weight: p > 0; C - 1 when None (Table 5 also tries 1 and (C - 1) / 2).

    Returns:
        A scalar: the mean over batch and classes.

    Raises:
        UsageError: a wrong shape or dtype, a class id or y outside the range, p not above 0.

    Example:
        >>> logits = torch.tensor([[2.0, -1.0, 0.5]])
        >>> target = F.one_hot(torch.tensor([0]), 3).float()
        >>> want = F.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(2.0))
        >>> torch.allclose(evidence_loss(logits, torch.tensor([0])), want)
        True
        >>> torch.allclose(evidence_loss(logits, target), want)
        True
    """
    _check(sigmoid_logits, targets)
    num_classes = sigmoid_logits.shape[1]
    weight = default_positive_weight(num_classes) if positive_weight is None else positive_weight
    if not weight > 0:
        raise UsageError(f"positive_weight must be above 0, got {positive_weight}")
    z = sigmoid_logits
    if z.dtype in (torch.float16, torch.bfloat16):
        z = z.float()
    if targets.is_floating_point():
        y = targets.to(z.dtype)
        return (weight * y * F.softplus(-z) + (1 - y) * F.softplus(z)).mean()
    positive = z.gather(1, targets.unsqueeze(1))
    correction = weight * F.softplus(-positive) - F.softplus(positive)
    return (F.softplus(z).sum() + correction.sum()) / z.numel()


def one_logit_loss(
    sigmoid_logits: torch.Tensor,
    targets: torch.Tensor,
    positive_weight: float | None = None,
) -> torch.Tensor:
    """Computes the binary cross-entropy on the one logit l of a network with logits [-l, l].

    L = 1 / B sum_b [p y softplus(-l) + (1 - y) softplus(l)], y = 1 for class 1. With p = 1 it is
    `evidence_loss` of both columns with p = 1, as softplus(-l) stands in both.

    Args:
        sigmoid_logits: [B, 2], [-l, l].
        targets: class ids, int64 [B], 0 or 1; or soft ones, float [B, 2], of which that of class 1
            counts.
        positive_weight: p > 0 of class 1; 1 when None.

    Returns:
        A scalar: the mean over the batch.

    Raises:
        UsageError: as `evidence_loss`.

    Example:
        >>> logit = torch.tensor([[0.5], [-2.0]])
        >>> want = F.binary_cross_entropy_with_logits(logit, torch.tensor([[0.0], [1.0]]))
        >>> both = torch.cat([-logit, logit], 1)
        >>> torch.equal(one_logit_loss(both, torch.tensor([0, 1])), want)
        True
    """
    _check(sigmoid_logits, targets)
    soft = targets.is_floating_point()
    y = targets[:, 1:] if soft else targets.unsqueeze(1).to(sigmoid_logits.dtype)
    return evidence_loss(sigmoid_logits[:, 1:], y, positive_weight)


def _check(logits: torch.Tensor, targets: torch.Tensor) -> None:
    if logits.ndim != 2 or not logits.is_floating_point() or logits.numel() == 0:
        raise UsageError(
            f"sigmoid_logits must be a float tensor [B, C], got {logits.dtype} {list(logits.shape)}"
        )
    if targets.is_floating_point() and targets.shape == logits.shape:
        least, most = float(targets.min()), float(targets.max())
        if not (least >= 0 and most <= 1):  # NaN too
            raise UsageError(f"soft targets must lie in 0..1, got {least:g} to {most:g}")
        return
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:1]:
        raise UsageError(
            f"targets must be class ids, int64 [{logits.shape[0]}], or float "
            f"{list(logits.shape)}, got {targets.dtype} {list(targets.shape)}"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise UsageError(
            f"class ids must lie in 0..{logits.shape[1] - 1}, got {low if low < 0 else high}"
        )
