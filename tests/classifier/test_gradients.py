"""Gradients of one image are those of its formula, whatever strides autograd meets on the way."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sigcam.classifier.gradients import gradients_of

B, N = 3, 6
SCALE, MEAN = torch.linspace(0.5, 2, N).double(), torch.linspace(-1, 1, N).double()


def inference(x: Tensor) -> Tensor:
    return functional.batch_norm(x, MEAN, SCALE, SCALE, MEAN)


def without_training(x: Tensor) -> Tensor:
    """As torch.export writes it."""
    norm = torch.ops.aten._native_batch_norm_legit_no_training.default
    return norm(x, SCALE, MEAN, MEAN, SCALE, 0.1, 1e-5)[0]


def without_scale(x: Tensor) -> Tensor:
    return functional.batch_norm(x, MEAN, SCALE)


def instance(x: Tensor) -> Tensor:
    return functional.instance_norm(x, weight=SCALE, bias=MEAN)


NORMS = [inference, without_training, without_scale, instance]
GRIDS = [(2, 3), (5,), (2, 1, 2), (1, 1), (1, 4)]


def after_a_class_token(norm, x: Tensor) -> Tensor:
    tokens = norm(x).flatten(2).transpose(1, 2)
    return torch.cat([tokens.new_ones(len(x), 1, N), tokens], 1)


def as_tokens(norm, x: Tensor) -> Tensor:
    return norm(x).flatten(2).transpose(1, 2)


def differences(f, x: Tensor, step: float = 1e-5) -> Tensor:
    """Central differences of a number, one for each value of x."""
    found = torch.zeros_like(x)
    for index in itertools.product(*map(range, x.shape)):
        moved = torch.zeros_like(x)
        moved[index] = step
        found[index] = (f(x + moved) - f(x - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("strides", ["plain", "channels last"])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("follows", [after_a_class_token, as_tokens])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_tokens_after_a_norm(norm, grid, follows, batch, strides):
    if norm is instance and grid == (1, 1):
        pytest.skip("has no deviation")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, N, *grid, generator=generator).double()
    if strides == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    rows = torch.randn(N, N, generator=generator).double()
    weights = torch.randn(follows(norm, x).shape, generator=generator).double()

    def total(x: Tensor) -> Tensor:
        return ((follows(norm, x) @ rows) * weights).sum()

    asked = x.detach().requires_grad_()
    (found,) = gradients_of(total(asked), [asked])
    torch.testing.assert_close(found, differences(total, x), rtol=1e-6, atol=1e-6)


def test_one_image_as_in_a_batch():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(N, N, 3, padding=1, groups=N), nn.BatchNorm2d(N)).eval()
    images = torch.randn(B, N, 4, 4)
    rows = torch.randn(N, 5)

    def gradient(x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        tokens = after_a_class_token(net, x) @ rows
        return gradients_of(tokens.square().sum(), [x])[0]

    together = gradient(images)
    for i in range(B):
        torch.testing.assert_close(gradient(images[i : i + 1])[0], together[i])


def test_unused_and_kept():
    x, other = (torch.ones(2, requires_grad=True) for _ in range(2))
    total = (3 * x).sum()
    first = gradients_of(total, [x, other], retain_graph=True, allow_unused=True)
    assert first[0].tolist() == [3, 3]
    assert first[1] is None
    with pytest.raises(RuntimeError):
        gradients_of(total, [x, other])
