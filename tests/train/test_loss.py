from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.train.loss import evidence_loss


def definition(z: np.ndarray, targets: np.ndarray, weight: float) -> float:
    """Beyond Softmax, Eq. 12, entry by entry; targets are class ids [B] or y [B, C]."""
    total = 0.0
    for b in range(z.shape[0]):
        for c in range(z.shape[1]):
            s = 1 / (1 + np.exp(-z[b, c]))
            y = float(targets[b] == c) if targets.ndim == 1 else targets[b, c]
            total -= weight * y * np.log(s) + (1 - y) * np.log(1 - s)
    return total / z.size


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 5),
    st.integers(2, 9),
    st.integers(0, 1000),
    st.sampled_from([None, 1.0, "half", 7.5]),
    st.booleans(),
)
def test_equals_the_definition(
    batch: int, classes: int, seed: int, kind: object, soft: bool
) -> None:
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 3, (batch, classes))
    targets = rng.uniform(0, 1, z.shape) if soft else rng.integers(0, classes, batch)
    weight = (classes - 1) / 2 if kind == "half" else kind
    got = evidence_loss(torch.from_numpy(z), torch.from_numpy(targets), weight)
    want = definition(z, targets, classes - 1 if weight is None else weight)
    assert float(got) == pytest.approx(want, rel=1e-8)


def test_equals_torchs_bce_and_its_gradient() -> None:
    z = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (6,))
    evidence_loss(z, ids).backward()
    got, z.grad = z.grad.clone(), None
    target = torch.nn.functional.one_hot(ids, 11).double()
    weight = torch.tensor(10.0, dtype=torch.float64)
    torch.nn.functional.binary_cross_entropy_with_logits(z, target, pos_weight=weight).backward()
    torch.testing.assert_close(got, z.grad, rtol=1e-9, atol=1e-12)


def test_half_precision_is_computed_in_float32_and_large_logits_stay_finite() -> None:
    z = torch.tensor([[3e4, -3e4, 0.0]], dtype=torch.float16)
    loss = evidence_loss(z, torch.tensor([1]))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx((2 * 3e4 + 3e4 + np.log(2)) / 3, rel=1e-3)
    soft = evidence_loss(z, torch.tensor([[0.0, 1.0, 0.0]]))
    assert soft.dtype == torch.float32
    assert float(soft) == pytest.approx(float(loss), rel=1e-6)


def test_soft_targets_of_one_and_zero_have_the_gradient_of_class_ids() -> None:
    z = torch.randn(6, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (6,))
    evidence_loss(z, ids, 3.0).backward()
    got, z.grad = z.grad.clone(), None
    evidence_loss(z, torch.nn.functional.one_hot(ids, 11).float(), 3.0).backward()
    torch.testing.assert_close(got, z.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("z", "ids", "weight", "words"),
    [
        (torch.zeros(2), torch.zeros(2, dtype=torch.int64), None, r"\[B, C\]"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64), None, r"int64 \[2\]"),
        (torch.zeros(2, 3), torch.zeros(2), None, "int64"),
        (torch.zeros(2, 3), torch.zeros(2, 4), None, r"float \[2, 3\], got torch.float32 \[2, 4\]"),
        (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int64), None, r"int64 \[2\]"),
        (torch.zeros(1, 3), torch.tensor([[0.0, 1.5, 0.0]]), None, "0..1, got 0 to 1.5"),
        (torch.zeros(1, 3), torch.tensor([[0.0, -0.5, 0.0]]), None, "0..1, got -0.5 to 0"),
        (torch.zeros(1, 3), torch.tensor([[0.0, torch.nan, 0.0]]), None, "0..1, got nan"),
        (torch.zeros(1, 3), torch.tensor([3]), None, "0..2, got 3"),
        (torch.zeros(1, 3), torch.tensor([-1]), None, "0..2, got -1"),
        (torch.zeros(1, 3), torch.tensor([1]), 0.0, "above 0"),
        (torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), None, r"\[B, C\]"),
    ],
)
def test_wrong_input(z: torch.Tensor, ids: torch.Tensor, weight: float, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        evidence_loss(z, ids, weight)
