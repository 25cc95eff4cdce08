"""Which values of a network count as grids, and copies in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.layout import Layout, channel_axis, layout_of
from sigcam.classifier.rewrite import in_double
from sigcam.classifier.trace import trace
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 16, 16)


class AttentionHead(nn.Module):
    """A convolution's grid, its positions attending to each other in two heads, linear."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)
        self.qkv = nn.Linear(8, 24)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(-1, 16, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        found = functional.scaled_dot_product_attention(q, k, v)
        return self.fc(found.transpose(1, 2).reshape(-1, 16, 8).mean(1))


class Shuffled(nn.Module):
    """Goes through a reshape to each layout, and names what it passes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 2, stride=2)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        grid = self.conv(x)
        gated = grid.mean((2, 3))[:, :, None, None] * grid
        tokens = gated.permute(0, 2, 3, 1).reshape(-1, 64, 6)
        again = tokens.transpose(1, 2).reshape(-1, 6, 8, 8)
        return self.fc(again.mean((2, 3)))


@pytest.mark.slow
def test_heads_of_an_attention_are_no_grid():
    dual = DualBranch(AttentionHead(), input_size=16)
    assert dual.branch.layout.kind != "nchw" or dual.branch.layer == "conv"
    traced = trace(AttentionHead(), IMAGES)
    wide = [n for n in traced.graph.nodes if "attention" in n.name]
    assert wide
    assert all(layout_of(n, traced.image) is None for n in wide)


def test_the_channel_axis_follows_reshapes_and_gates():
    traced = trace(Shuffled(), IMAGES)
    shapes = {
        tuple(n.meta["val"].shape[1:]): channel_axis(n)
        for n in traced.graph.nodes
        if n.op == "call_function" and isinstance(n.meta["val"], torch.Tensor)
    }
    wanted = {(6, 8, 8): 1, (8, 8, 6): 3, (64, 6): 2, (6, 64): 1}
    assert {shape: shapes[shape] for shape in wanted} == wanted


class ClassToken(nn.Module):
    """Tokens behind a class token, pooled without a normalisation after the last block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.mlp = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], 1)
        return self.fc((tokens + self.mlp(tokens))[:, 1:].mean(1))


def test_the_grid_behind_a_class_token_is_found():
    branch = DualBranch(ClassToken(), input_size=16).branch
    assert branch.layer == "forward:add"
    assert (branch.layout.kind, branch.layout.shape, branch.layout.prefix) == (
        "tokens",
        (6, 4, 4),
        1,
    )


class NormalisedHeads(nn.Module):
    """Attention whose values get their positions mixed and are normalised head by head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 2, stride=2)
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.LayerNorm(4)
        self.fc = nn.Linear(8, 2)

    def forward(self, x):
        grid = self.conv(x)
        v = self.mix(grid.reshape(-1, 4, 8, 8)).reshape(-1, 2, 4, 64).transpose(2, 3)
        v = self.norm(v)
        found = functional.scaled_dot_product_attention(v, v, v)
        return self.fc(found.transpose(1, 2).reshape(-1, 64, 8).mean(1))


def test_values_by_heads_are_no_grid_with_the_channels_last():
    traced = trace(NormalisedHeads(), IMAGES)
    heads = [
        n
        for n in traced.graph.nodes
        if isinstance(n.meta.get("val"), torch.Tensor) and n.meta["val"].shape[1:] == (2, 64, 4)
    ]
    assert len(heads) > 1
    assert all(layout_of(n, traced.image) is None for n in heads)


class Written(nn.Module):
    """Adds to a part of its tokens in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.mlp = nn.Linear(6, 6)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        tokens = self.mlp(self.conv(x).flatten(2).transpose(1, 2))
        mixed = self.mlp(tokens)
        mixed[:, 1:] += tokens[:, 1:]
        mixed[:, :1] = tokens[:, :1]
        return self.fc(mixed.mean(1))


@pytest.mark.slow
def test_writing_into_a_part_has_a_gradient():
    torch.manual_seed(0)
    model = Written()
    dual = DualBranch(model, "conv", input_size=16)
    images = torch.randn(2, 3, 16, 16)
    features = dual.features(images).requires_grad_()
    (got,) = torch.autograd.grad(dual.softmax_head(features).sum(), features)
    features = model.conv(images).detach().requires_grad_()
    model.conv = nn.Identity()
    (want,) = torch.autograd.grad(model(features).sum(), features)
    torch.testing.assert_close(got, want)


class Constants(nn.Module):
    """Makes a table of positions in float32 when it runs, and casts to it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, stride=4)
        self.position = nn.Linear(1, 4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        table = torch.arange(16, dtype=torch.float32).reshape(16, 1) / 16 + torch.zeros(16, 1)
        tokens = self.conv(x).flatten(2).transpose(1, 2)
        return self.fc((tokens + self.position(table)).to(torch.float32).mean(1))


def test_a_copy_in_double_makes_its_constants_in_double():
    torch.manual_seed(0)
    dual = DualBranch(Constants(), input_size=16)
    twin = in_double(dual)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    got, want = twin(images.double()), dual(images)
    assert got.logits.dtype == torch.float64
    assert next(dual.parameters()).dtype == torch.float32
    torch.testing.assert_close(got.logits.float(), want.logits, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_views_take_any_strides(memory):
    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 4, stride=4)
            self.fc = nn.Linear(64, 3)

        def forward(self, x):
            return self.fc(self.conv(x).view(-1, 64))

    dual = DualBranch(Viewed(), input_size=16)
    images = torch.randn(2, 3, 16, 16).to(memory_format=memory)
    features = dual.features(images).to(memory_format=memory)
    assert dual.softmax_head(features).shape == (2, 3)


class Patches(nn.Module):
    """Cuts the image into patches by reshapes, and makes a grid of what it finds in each."""

    def __init__(self, cut, pool):
        super().__init__()
        torch.manual_seed(0)
        self.cut, self.pool = cut, pool
        self.mlp, self.conv = nn.Linear(48, 6), nn.Conv2d(3, 6, 3)
        self.fc = nn.Linear(6, 2)

    def forward(self, x):
        return self.fc(self.pool(self.cut(self, x)))


def unfolded(net, x):
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5)
    return net.mlp(patches.reshape(x.shape[0], 4, 4, 48)).relu()


def convolved(net, x):
    patches = x.reshape(-1, 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 4, 4)
    return net.conv(patches).relu().mean((2, 3)).reshape(-1, 4, 4, 6)


@pytest.mark.parametrize("cut", [unfolded, convolved])
@pytest.mark.parametrize(
    ("pool", "kind"),
    [
        (lambda x: x.mean((1, 2)), "nhwc"),
        (lambda x: x.permute(0, 3, 1, 2).mean((2, 3)), "nchw"),
        (lambda x: functional.adaptive_max_pool2d(x.movedim(3, 1), 1).flatten(1), "nchw"),
    ],
)
def test_a_grid_of_patches_is_known_by_what_reads_it(cut, pool, kind):
    model = Patches(cut, pool).eval()
    dual = DualBranch(model, input_size=16)
    assert dual.targets[0].layout == Layout(kind, (6, 4, 4))
    planted = torch.zeros(1, 3, 16, 16)
    planted[..., 8:12, 4:8] = torch.randn(3, 4, 4)
    with torch.no_grad():
        change = dual.branch.layout.to_grid(dual.features(planted) - dual.features(planted * 0))
    assert change.abs().sum((0, 1)).nonzero().tolist() == [[2, 1]]
    swapped = Patches(lambda net, x: cut(net, x).transpose(1, 2), pool)
    with pytest.raises(ModelError, match="transposed"):
        DualBranch(swapped, input_size=16)


def test_a_grid_in_double_precision_is_no_target():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 4, 4), Squared(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)
    )
    assert DualBranch(model, input_size=16).branch.layer == "1"


class Squared(nn.Module):
    """Computes in double precision inside."""

    def forward(self, x):
        return (x.double() ** 2).sqrt().float() + 1
