"""The oracle itself against PyTorch, so that its own slips don't become the standard."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.support import oracle as reference


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(9, 13), (3, 4), (20, 5)])
def test_upsampling(kind, size):
    cam = np.random.default_rng(0).random((4, 5))
    want = functional.interpolate(
        torch.from_numpy(cam)[None, None], size=size, mode=kind, align_corners=False
    )
    np.testing.assert_allclose(reference.upsample(cam, *size, kind), want[0, 0], atol=1e-12)


@pytest.mark.parametrize("positive", [None, 1.0, 2.5])
def test_loss_is_weighted_cross_entropy(positive):
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, 5, 2, 2])
    weight = torch.tensor(5.0 if positive is None else positive, dtype=torch.float64)
    want = functional.binary_cross_entropy_with_logits(
        logits, functional.one_hot(labels, 6).double(), pos_weight=weight, reduction="none"
    ).sum(1)
    got = reference.loss(logits.numpy(), labels.numpy(), positive)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_ranks_and_equal_logits():
    logits = np.array([[1.0, 3.0, 3.0, 2.0]])
    assert reference.top_k(logits, 3).tolist() == [[1, 2, 3]]
    assert reference.resolve([[-1, 0, -4, 2]], logits).tolist() == [[1, 0, 0, 2]]


def test_clamping_and_min_max():
    F = np.ones((1, 2, 1, 2))
    w = np.array([[[2.0, -1.0]]])
    assert reference.cams(F, w, nwc=True).tolist() == [[[[2.0, 2.0]]]]
    assert reference.cams(F, w, nwc=False).tolist() == [[[[1.0, 1.0]]]]
    scaled, valid = reference.min_max(np.ones((2, 2)))
    assert not valid
    assert not scaled.any()
    assert reference.min_max(np.array([1.0, 3.0, 2.0]))[0].tolist() == [0.0, 1.0, 0.5]


def test_evidence_is_the_sigmoid_of_pooled_linear():
    generator = torch.Generator().manual_seed(1)
    F, W, b = (torch.randn(s, generator=generator) for s in ((2, 3, 4, 5), (6, 3), (6,)))
    ids = torch.tensor([[0, 5], [3, 3]])
    want = functional.linear(F.mean((2, 3)), W, b).sigmoid().gather(1, ids)
    got = reference.evidence(F.numpy(), W.numpy(), b.numpy(), ids.numpy())
    np.testing.assert_allclose(got, want, rtol=1e-5)
