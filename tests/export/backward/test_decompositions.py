"""Every decomposition against autograd, eagerly in float64."""

from __future__ import annotations

import functools
import re

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F  # noqa: N812 (its usual name)
from torch.nn.attention import SDPBackend, sdpa_kernel

from sigcam.core.errors import ExportError
from sigcam.export.backward import decompositions
from sigcam.export.backward.decompositions import DECOMPOSITIONS, untranslatable
from tests.support.gradients import Decomposed, gradient

SHAPES = {"signal": (2, 4, 13), "image": (2, 4, 9, 11), "volume": (2, 2, 5, 6, 7)}


def values(*shape):
    """Fixed normal numbers, the same for each call."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


INDEX = torch.tensor([3, 0, 0, 2])
CAUSAL = torch.ones(9, 9, dtype=torch.bool).tril()
ROW_MASKED = CAUSAL.clone().index_fill_(0, torch.tensor(3), False)


def attend(x, **kwargs):
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(x, x + 1, x * 2, **kwargs)


IMAGES = {
    # Convolutions.
    "convolution": lambda x: F.conv2d(x, values(6, 2, 3, 3), None, (2, 3), (1, 2), (2, 1), 2),
    "depthwise convolution": lambda x: F.conv2d(x, values(4, 1, 3, 3), None, 2, 1, 1, 4),
    "transposed": lambda x: F.conv_transpose2d(x, values(4, 3, 3, 3), None, 2, 1, 1),
    "transposed, groups": lambda x: F.conv_transpose2d(
        x, values(4, 3, 3, 3), None, (1, 2), 1, (0, 1), 2, 2
    ),
    "transposed, dilated": lambda x: F.conv_transpose2d(
        x, values(4, 3, 3, 3), None, 1, 1, 1, 1, 2
    ),
    # Pooling. Rounded values have ties, of which the first in a window counts.
    "mean pool, ceil": lambda x: F.avg_pool2d(x, 3, 2, 1, True),
    "mean pool, padding not counted": lambda x: F.avg_pool2d(x, (3, 2), 2, 1, False, False),
    "mean pool, divisor": lambda x: F.avg_pool2d(x, 2, None, 0, True, False, 5),
    "adaptive mean": lambda x: F.adaptive_avg_pool2d(x, (4, 5)),
    "adaptive mean, same size": lambda x: F.adaptive_avg_pool2d(x, (9, 11)),
    "adaptive mean, larger": lambda x: F.adaptive_avg_pool2d(x, (12, 1)),
    "max pool, ceil": lambda x: F.max_pool2d(x.relu(), 3, 2, 1, 1, True),
    "max pool, whole windows": lambda x: F.max_pool2d(x[:, :, :8, :10].relu(), 2),
    "max pool, dilated": lambda x: F.max_pool2d(x.relu(), 3, 1, 1, 2),
    "max pool, ties": lambda x: F.max_pool2d(x.round(), (4, 3), (1, 2), 1),
    "adaptive max, ties": lambda x: F.adaptive_max_pool2d(x.round(), (4, 5)),
    "adaptive max, global": lambda x: F.adaptive_max_pool2d(x, 1),
    "generalised mean": lambda x: F.avg_pool2d(x.clamp(min=1e-6).pow(3), (9, 11)).pow(1 / 3),
    # Reductions that choose.
    "amax, ties": lambda x: x.round().amax((2, 3)),
    "amin": lambda x: x.amin(1),
    "max along an axis": lambda x: x.max(2)[0],
    "median": lambda x: x.median(-1, keepdim=True)[0],
    "topk": lambda x: x.topk(2, 2)[0],
    # Resizing and padding.
    "bilinear": lambda x: F.interpolate(x, (5, 17), mode="bilinear"),
    "bilinear, corners": lambda x: F.interpolate(x, (5, 17), mode="bilinear", align_corners=True),
    "bilinear, factor": lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, (5, 17), mode="bicubic"),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "nearest-exact": lambda x: F.interpolate(x, (5, 17), mode="nearest-exact"),
    "reflect": lambda x: F.pad(x, (1, 2, 3, 0), "reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 3, 0), "replicate"),
    "pad": lambda x: F.pad(x, (1, 2, 1, 3)),
    "pad and crop": lambda x: F.pad(x, (1, -2, 0, 3)),
    # Moving and choosing values.
    "slice": lambda x: x[:, 1:3, 2:-1:3, ::2],
    "select": lambda x: x[:, -1] + x[:, :, 3].sum(1)[:, None],
    "unfold": lambda x: x.unfold(2, 3, 2).unfold(3, 2, 3),
    "im2col": lambda x: F.unfold(x, (3, 2), (1, 2), (1, 0), (2, 1)),
    "fold": lambda x: F.fold(F.unfold(x, 3, 1, 1, 2), (9, 11), 3, 1, 1, 2),
    "index": lambda x: x[:, :, INDEX],
    "index, two axes": lambda x: x[:, :, INDEX, INDEX - 4],
    "index, matrix": lambda x: x[:, INDEX.view(2, 2)],
    "index_select": lambda x: x.index_select(3, INDEX),
    "gather": lambda x: x.gather(2, INDEX.view(1, 1, 4, 1).expand(2, 4, 4, 11)),
    "roll": lambda x: x.roll((-2, 1), (2, 3)),
    "flip and cumsum": lambda x: x.flip(2, 3).cumsum(2),
    "split and concatenate": lambda x: torch.cat([*x.split([1, 3], 1), x[:, :2]], 1),
    "unbind and stack": lambda x: torch.stack(x.unbind(2)[::2], 1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1) * x[:, :1].expand(-1, 8, -1, -1),
    "pixel shuffle": lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2)[..., :20], 2),
    "channel shuffle": lambda x: F.channel_shuffle(x, 2),
    # Normalisation and statistics.
    "layer norm": lambda x: F.layer_norm(x, (9, 11), values(9, 11), values(9, 11)),
    "layer norm of channels": lambda x: F.layer_norm(x.permute(0, 2, 3, 1), (4,)),
    "group norm": lambda x: F.group_norm(x, 2, values(4), values(4)),
    "group norm, no affine": lambda x: F.group_norm(x, 4),
    "batch norm": lambda x: F.batch_norm(x, values(4), values(4) ** 2, values(4), None),
    "RMS norm": lambda x: F.rms_norm(x, (11,), values(11), 1e-6),
    "normalize": lambda x: F.normalize(x, dim=1),
    "response norm": lambda x: x / (x.norm(p=2, dim=(2, 3), keepdim=True) + 1e-6),
    "std and var": lambda x: x.std((2, 3)) + x.var(1, unbiased=False).sum((1, 2))[:, None],
    "var_mean": lambda x: torch.stack(torch.var_mean(x, (2, 3))).sum(0),
    "std_mean": lambda x: torch.stack(torch.std_mean(x, (2, 3), keepdim=True)).sum(0),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "logsumexp": lambda x: x.logsumexp((2, 3)),
    "softmax": lambda x: x.log_softmax(1) * x.softmax(2),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(1), 1),
    # Attention and products.
    "attention": attend,
    "attention, causal": lambda x: attend(x, is_causal=True),
    "attention, masked": lambda x: attend(x, attn_mask=CAUSAL),
    "attention, a row masked": lambda x: attend(x, attn_mask=ROW_MASKED),
    "attention, bias": lambda x: attend(x, attn_mask=values(9, 9)),
    "einsum": lambda x: torch.einsum("bchw,bdhw->bcd", x, x),
    "linear": lambda x: F.linear(x, values(5, 11), values(5)),
    # Elementwise.
    "clamp and where": lambda x: torch.where(x > 0, x.clamp(-0.5, 0.7), x.clamp_min(-1) ** 2),
    "arithmetic": lambda x: x / (2 + x * x).rsqrt() + x.abs().sqrt() + x.exp() / (x * x).log1p(),
    "addcmul": lambda x: torch.addcmul(x, values(4, 1, 1), x.flip(2)).addcmul(x, x, value=0.3),
    "addcdiv": lambda x: torch.addcdiv(x, x, x * x + 1).addcdiv(x, values(11), value=0.3),
    "GELU, tanh": lambda x: F.gelu(x, approximate="tanh"),
    "PReLU": lambda x: F.prelu(x, values(4)),
    "GLU": lambda x: F.glu(x, 1),
    "logit": lambda x: x.sigmoid().logit(1e-6),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}  # fmt: skip
ACTIVATIONS = (
    F.relu, F.relu6, F.elu, F.selu, F.celu, F.gelu, F.silu, F.mish, F.hardswish, F.hardsigmoid,
    F.hardtanh, F.leaky_relu, F.softplus, F.softsign, F.tanhshrink, F.hardshrink, F.softshrink,
    F.sigmoid, F.tanh, F.logsigmoid,
)  # fmt: skip
IMAGES.update({f.__name__: f for f in ACTIVATIONS})
SIGNALS = {
    "convolution 1d": lambda x: F.conv1d(x, values(5, 4, 3), None, 2, 1),
    "mean pool 1d": lambda x: F.avg_pool1d(x, 3, 2, 1, True),
    "adaptive mean 1d": lambda x: F.adaptive_avg_pool1d(x, 5),
    "max pool 1d": lambda x: F.max_pool1d(x.relu(), 3, 2, 1),
    "adaptive max 1d": lambda x: F.adaptive_max_pool1d(x.round(), 4),
    "linear 1d": lambda x: F.interpolate(x, 17, mode="linear"),
    "nearest 1d": lambda x: F.interpolate(x, 7),
    "nearest-exact 1d": lambda x: F.interpolate(x, 7, mode="nearest-exact"),
    "reflect 1d": lambda x: F.pad(x, (1, 2), "reflect"),
    "replicate 1d": lambda x: F.pad(x, (1, 2), "replicate"),
}
VOLUMES = {
    "convolution 3d": lambda x: F.conv3d(x, values(5, 2, 3, 3, 3), None, 2, 1),
    "mean pool 3d": lambda x: F.avg_pool3d(x, 3, 2, 1, True),
    "adaptive mean 3d": lambda x: F.adaptive_avg_pool3d(x, (2, 4, 3)),
    "max pool 3d": lambda x: F.max_pool3d(x.round(), 3, 2, 1),
    "adaptive max 3d": lambda x: F.adaptive_max_pool3d(x.round(), (2, 4, 3)),
    "trilinear": lambda x: F.interpolate(x, (3, 9, 8), mode="trilinear"),
    "nearest 3d": lambda x: F.interpolate(x, (3, 9, 8)),
    "nearest-exact 3d": lambda x: F.interpolate(x, (3, 9, 8), mode="nearest-exact"),
    "reflect 3d": lambda x: F.pad(x, (1, 2, 0, 3, 2, 2), "reflect"),
    "replicate 3d": lambda x: F.pad(x, (1, 2, 0, 3, 2, 2), "replicate"),
}
CASES = [
    (name, f, SHAPES[kind])
    for kind, cases in (("image", IMAGES), ("signal", SIGNALS), ("volume", VOLUMES))
    for name, f in cases.items()
]
UNREACHED = {
    # Not emitted in inference mode on the CPU; they are PyTorch's own.
    "aten::native_dropout_backward", "aten::rrelu_with_noise_backward",
}  # fmt: skip


@functools.cache
def both(f, shape):
    """(output, gradient) of autograd and of the decompositions, and which of those ran."""
    x = values(*shape)
    with torch.no_grad():
        cotangent = values(*f(x).shape)
    wanted = gradient(f, x, cotangent)
    with Decomposed() as mode:
        found = gradient(f, x, cotangent)
    return wanted, found, mode.used


@pytest.mark.parametrize(("name", "f", "shape"), CASES, ids=[name for name, _, _ in CASES])
def test_equals_autograd(name, f, shape):
    wanted, found, _ = both(f, shape)
    # PyTorch's own kernel takes 1/6 in float32.
    rtol = 1e-7 if name == "hardsigmoid" else 1e-10
    for want, got in zip(wanted, found, strict=True):
        torch.testing.assert_close(got, want, rtol=rtol, atol=1e-13, check_stride=False)


def test_every_decomposition_is_among_the_cases():
    used = set().union(*(both(f, shape)[2] for _, f, shape in CASES))
    names = {op.name() for op in used}
    assert {op.name() for op in DECOMPOSITIONS} - names == UNREACHED


def test_positions_of_adaptive_maxima():
    x = values(2, 3, 7, 9).round()
    wanted = F.adaptive_max_pool2d(x, (3, 4), return_indices=True)
    with Decomposed():
        found = F.adaptive_max_pool2d(x, (3, 4), return_indices=True)
    for want, got in zip(wanted, found, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("what", "f"),
    {
        "convolution": lambda x, w: F.conv2d(x, w.view(4, 4, 1, 1)),
        "layer normalisation": lambda x, w: F.layer_norm(x, (4, 4), w),
        "group normalisation": lambda x, w: F.group_norm(x, 2, w[0]),
    }.items(),
)
def test_gradients_of_parameters_are_refused(what, f):
    w = values(4, 4).requires_grad_()
    with Decomposed(), pytest.raises(ExportError, match=f"{what} needs a gradient; .*detach"):
        f(values(2, 4, 4, 4).requires_grad_(), w).sum().backward()


def test_statistics_of_the_batch_are_refused():
    x = values(2, 4, 4, 4).requires_grad_()
    with Decomposed(), pytest.raises(ExportError, match=re.escape("inference mode (.eval())")):
        F.batch_norm(x, None, None, training=True).sum().backward()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "names"),
    {
        lambda x: F.relu(x) @ x.mT: [],
        lambda x: torch.cdist(x, x[..., :3, :]): ["aten._cdist_backward.default"],
        lambda x: x.diagonal(0, 2, 3): ["aten.diagonal_backward.default"],
        lambda x: x[:, INDEX, :, INDEX]: ["aten.index_put.default"],
        lambda x: x[x > 0]: ["aten.index_put.default"],
        lambda x: x.clone().as_strided((2, 3), (1, 2)): ["aten.as_strided.default"],
    }.items(),
)
def test_untranslatable_operators_are_named(f, names):
    x = values(2, 4, 9, 11)
    cotangent = torch.ones_like(f(x))
    traced = make_fx(lambda x, c: gradient(f, x, c)[1], decomposition_table=DECOMPOSITIONS)(
        x, cotangent
    )
    traced.graph.eliminate_dead_code()
    found = untranslatable(traced.graph)
    assert set(names) <= set(found)
    assert bool(found) == bool(names)


def test_an_exporter_that_cant_be_asked_is_not_asked(monkeypatch):
    # As in a PyTorch whose registry has moved.
    monkeypatch.setitem(
        __import__("sys").modules, "torch.onnx._internal.exporter._registration", None
    )
    assert decompositions._translations()(torch.ops.aten._cdist_backward.default)
    traced = make_fx(lambda x: torch.ops.aten._cdist_forward(x, x, 2.0, None))(values(4, 4))
    assert untranslatable(traced.graph) == []
