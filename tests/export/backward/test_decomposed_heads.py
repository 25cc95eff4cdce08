"""Heads of every kind: their backward pass traced, exported with a dynamic batch, and run."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its usual name)

from sigcam.export.backward.decompositions import untranslatable
from sigcam.export.backward.simplify import prepare
from tests.support.gradients import export, gradient, onnx_errors, trace

pytestmark = pytest.mark.slow


class Tail(nn.Module):
    """Modules that `f` combines."""

    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.f(self, x)


def convolutions():
    def f(m, x):
        y = F.relu(m.norm(m.strided(x)))
        y = F.relu6(m.dilated(y)) + F.max_pool2d(y, 3, 1, 1)
        return m.up(y).flatten(2).mean(2)

    return Tail(
        f,
        strided=nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=False),
        norm=nn.BatchNorm2d(6),
        dilated=nn.Conv2d(6, 6, (3, 1), padding="same", dilation=2, groups=6),
        up=nn.ConvTranspose2d(6, 5, 3, 2, 1, 1),
    )


def pools():
    def f(m, x):
        found = [
            F.avg_pool2d(x, 3, 2, 1, True, False),
            F.max_pool2d(F.pad(x, (1, 0, 0, 1)), 3, 2, 1, ceil_mode=True),
            F.max_pool2d(x[:, :, :8, :10], 2),
            F.adaptive_avg_pool2d(x, (4, 5)),
            F.adaptive_max_pool2d(x, (4, 3)),
        ]
        return m.out(torch.cat([y.flatten(1) for y in found], 1))

    return Tail(f, out=nn.LazyLinear(5))


def average_and_maximum():
    # timm's catavgmax: a plain global maximum, and amax, share the gradient otherwise.
    def f(m, x):
        return m.out(
            torch.cat([x.mean((2, 3)), F.adaptive_max_pool2d(x, 1).flatten(1)], 1)
        ) + m.out(torch.cat([x.amax((2, 3)), x.max(2)[0].max(2)[0]], 1))

    return Tail(f, out=nn.Linear(8, 5))


def attention():
    def f(m, x):
        y = x.flatten(2).transpose(1, 2)
        z = m.norm(y)
        y = y + m.heads(z, z, z, need_weights=False)[0]
        q, k, v = m.qkv(y).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = y + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return m.out(F.gelu(y)[:, 0] + y[:, 1:].mean(1))

    return Tail(
        f,
        norm=nn.LayerNorm(8),
        heads=nn.MultiheadAttention(8, 2, batch_first=True),
        qkv=nn.Linear(8, 24),
        out=nn.Linear(8, 5),
    )


def shifted_windows():
    # A Swin block: channels last, padded to whole windows, rolled, with a bias and a mask.
    def f(m, x):
        B = x.shape[0]
        y = F.pad(m.norm(x.permute(0, 2, 3, 1)), (0, 0, 0, 1, 0, 1)).roll((-1, -1), (1, 2))
        y = y.view(B, 2, 3, 2, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(B * 4, 9, 8)
        q, k, v = m.qkv(y).reshape(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).view(B, 4, 2, 9, 9)
        scores = (scores + m.mask[:, None]).view(-1, 2, 9, 9).softmax(-1)
        y = (scores @ v).transpose(1, 2).reshape(B, 2, 2, 3, 3, 8).permute(0, 1, 3, 2, 4, 5)
        y = y.reshape(B, 6, 6, 8).roll((1, 1), (1, 2))[:, :5, :5].permute(0, 3, 1, 2)
        return m.out(F.adaptive_avg_pool2d(x + y, 1).flatten(1))

    found = Tail(f, norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), out=nn.Linear(8, 5))
    mask = torch.zeros(4, 9, 9)
    mask[1:, :4, 5:] = -100.0
    found.register_buffer("mask", mask)
    return found


def convnext():
    def f(m, x):
        y = m.expand(m.norm(m.depthwise(x).permute(0, 2, 3, 1)))
        y = F.gelu(y)
        size = y.norm(p=2, dim=(1, 2), keepdim=True)
        y = y + m.scale * y * (size / (size.mean(-1, keepdim=True) + 1e-6))
        y = x + torch.addcmul(m.offset, m.shrink(y).permute(0, 3, 1, 2), m.offset)
        return m.out(m.last(y.mean((2, 3))))

    found = Tail(
        f,
        depthwise=nn.Conv2d(8, 8, 7, padding=3, groups=8),
        norm=nn.LayerNorm(8),
        expand=nn.Linear(8, 16),
        shrink=nn.Linear(16, 8),
        last=nn.LayerNorm(8),
        out=nn.Linear(8, 5),
    )
    found.scale = nn.Parameter(torch.full((16,), 0.7))
    found.offset = nn.Parameter(torch.rand(8, 1, 1))
    return found


def excitation():
    def f(m, x):
        y = F.hardswish(m.expand(x))
        y = y * F.hardsigmoid(m.up(F.silu(m.down(F.adaptive_avg_pool2d(y, 1)))))
        return m.out(F.hardswish(m.shrink(y)).mean((2, 3)))

    return Tail(
        f,
        expand=nn.Conv2d(8, 16, 1),
        down=nn.Conv2d(16, 4, 1),
        up=nn.Conv2d(4, 16, 1),
        shrink=nn.Conv2d(16, 8, 1),
        out=nn.Linear(8, 5),
    )


def pyramid():
    def f(m, x):
        small = F.elu(m.norm(m.down(x)))
        ways = ({"mode": "bilinear"}, {"mode": "nearest"}, {"mode": "bicubic"})
        y = torch.cat([x, *(F.interpolate(small, x.shape[2:], **way) for way in ways)], 1)
        y = F.mish(m.standardised(F.pixel_shuffle(F.pad(y, (1, 1, 1, 1), "reflect"), 2)))
        return F.leaky_relu(y).logsumexp((2, 3)) + y.std((2, 3))

    return Tail(
        f,
        down=nn.Conv2d(4, 8, 3, 2),
        norm=nn.GroupNorm(2, 8),
        standardised=nn.utils.parametrizations.weight_norm(nn.Conv2d(7, 5, 3)),
    )


def moves():
    def f(m, x):
        y = F.pad(x, (1, -2, 0, 3))[:, 1:, 2:-1:3, ::2] * x[:, :1, 0, :1, None]
        z = F.fold(F.unfold(x, 3, 1, 1, 2), x.shape[2:], (3, 3), 1, 1, 2)
        z = z.roll((1, -2), (2, 3)).flip(3).cumsum(2)[:, m.order]
        z = z + F.pad(x, (1, 0, 2, 0), "replicate")[:, :, 2:, 1:]
        w = x.unfold(2, 3, 2).unfold(3, 2, 3).index_select(2, m.order[:3])
        parts = [v.flatten(1) for v in (y, z.repeat(1, 2, 1, 1), w, *x.unbind(1))]
        return m.out(torch.cat(parts, 1))

    found = Tail(f, out=nn.LazyLinear(5))
    found.register_buffer("order", torch.tensor([2, 0, 3, 1]))
    return found


def cosine():
    def f(m, x):
        y = F.normalize(x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3) + x.mean((2, 3)))
        return 16 * y @ F.normalize(m.out.weight).T

    return Tail(f, out=nn.Linear(8, 5, bias=False))


def perceptron():
    return nn.Sequential(
        nn.AdaptiveAvgPool2d((3, 3)), nn.Flatten(), nn.Linear(36, 9), nn.ReLU(True), nn.Dropout(),
        nn.Linear(9, 7), nn.PReLU(), nn.Linear(7, 5),
    )  # fmt: skip


HEADS = {
    perceptron: (4, 3, 3),
    convolutions: (4, 9, 12),
    pools: (4, 9, 11),
    average_and_maximum: (4, 5, 7),
    attention: (8, 3, 4),
    shifted_windows: (8, 5, 5),
    convnext: (8, 6, 5),
    excitation: (8, 5, 6),
    pyramid: (4, 9, 12),
    moves: (4, 9, 8),
    cosine: (8, 4, 5),
}
FOREIGN = {
    "ScatterElements", "ScatterND", "NonZero", "Loop", "If", "Scan", "SequenceAt", "GatherND",
    "GatherElements", "Range",
}  # fmt: skip


@functools.cache
def exported(kind):
    """The head as the exporter sees it: `torch.export`'s graph, in inference mode."""
    torch.manual_seed(1)
    head, x = kind().eval(), torch.randn(4, *HEADS[kind])
    with torch.no_grad():
        head(x)  # gives lazy modules their sizes
        for module in head.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)
        program = torch.export.export(
            head, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
        ).run_decompositions({})
    flat = program.module(check_guards=False)
    prepare(flat.graph)
    flat.recompile()
    return flat.requires_grad_(False), x


def built(kind):
    """A head of one's own."""
    return copy.deepcopy(exported(kind))


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_a_traced_head_is_right_at_another_batch_size(kind):
    head, x = built(kind)
    head, x = head.double(), x.double()
    graph, tensors = trace(head, x)
    assert untranslatable(graph.graph) == []
    more = torch.randn(7, *x.shape[1:], dtype=torch.float64)
    cotangent = torch.randn(7, 5, dtype=torch.float64)
    wanted = gradient(head, more, cotangent)
    for want, got in zip(wanted, graph(tensors, more, cotangent), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12, check_stride=False)


@pytest.mark.parametrize("kind", HEADS, ids=lambda kind: kind.__name__)
def test_an_exported_head_is_right_and_portable(kind):
    head, x = built(kind)
    model = export(head, x)
    assert max(onnx_errors(model, head, x.shape[1:])) < 1e-5
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert not FOREIGN & {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("kind", [convolutions, pools, shifted_windows], ids=lambda k: k.__name__)
def test_tensorrt_takes_an_exported_head(kind):
    trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    model = export(*built(kind))
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    parsed = parser.parse(model.SerializeToString())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    assert config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        profile.set_shape(tensor.name, *[(batch, *tensor.shape[1:]) for batch in (1, 2, 8)])
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None
