"""The traced backward pass: its cut, its two batch sizes, and its shortcuts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import in_double
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.backward.partition import Saved
from sigcam.export.cam import WeightGraph, combine, fuse
from sigcam.export.entry import cut_tail
from sigcam.export.methods import METHODS, Gradient
from sigcam.export.modules import CamGraph
from sigcam.export.parity.reference import Reference
from sigcam.export.score_head import ScoreHead

pytestmark = pytest.mark.slow


class Flattened(nn.Module):
    """A small VGG: flatten, then an MLP with one hidden layer."""

    def __init__(self, pool=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(pool)
        self.mlp = nn.Sequential(
            nn.Linear(5 * pool * pool, 11), nn.ReLU(True), nn.Dropout(), nn.Linear(11, 6)
        )

    def forward(self, x):
        return self.mlp(self.pool(self.conv(x).relu()).flatten(1))


class Windows(nn.Module):
    """Batch and windows share an axis, as in window attention; no linear layer at the end."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, stride=2)
        self.norm = nn.LayerNorm(4)
        self.out = nn.Conv2d(4, 6, 1)

    def forward(self, x):
        x = self.conv(x)
        B, N, h, w = x.shape
        x = x.reshape(B, N, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1)
        x = x.reshape(B * 4, h * w // 4, N)
        x = (self.norm(x) @ self.norm(x).transpose(1, 2)).softmax(2) @ x
        x = x.reshape(B, 4, h * w // 4, N).permute(0, 3, 1, 2)
        return self.out(x.tanh()).relu().mean((2, 3))


class Projected(nn.Module):
    """Tokens are projected by a depthwise convolution and a batch norm, as in CvT's attention.

    The gradient of tokens behind a class token has its channels last.
    """

    def __init__(self, stride):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, stride=4)
        self.before = nn.LayerNorm(6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.depthwise = nn.Conv2d(6, 6, 3, stride=stride, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.mixed = nn.Linear(6, 6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        return self.rest(self.tokens(x))

    def tokens(self, x):
        return self.before(self.conv(x).flatten(2).transpose(1, 2))

    def rest(self, tokens):
        grid = tokens.transpose(1, 2).unflatten(2, (4, 4))
        keys = self.norm(self.depthwise(grid)).flatten(2).transpose(1, 2)
        keys = self.mixed(torch.cat([self.token.expand(keys.shape[0], -1, -1), keys], 1))
        query = tokens.mean(1, keepdim=True)
        return self.out(((query @ keys.transpose(1, 2)).softmax(2) @ keys).tanh()[:, 0])


def weight_graph_of(net, size, method, target=None):
    torch.manual_seed(2)
    dual = DualBranch(net, target, input_size=size)
    head = ScoreHead(dual.softmax_head, dual.branch.layout, dual.num_classes)
    cut = cut_tail(dual.features, dual.branch, dual.targets)
    return dual, cut, WeightGraph(head, cut, dual.branch, dual.targets, METHODS[method])


def autograd(dual, images, ids):
    """Features [B, N, h, w] and gradients [B, K, N, h, w]."""
    F = dual.features(images).detach().requires_grad_()
    logits = dual.softmax_head(F)
    columns = [
        torch.autograd.grad(logits.gather(1, ids[:, k : k + 1]).sum(), F, retain_graph=True)[0]
        for k in range(ids.shape[1])
    ]
    return F.detach(), torch.stack(columns, 1)


@pytest.mark.parametrize("make", [Flattened, lambda: Flattened(2), Windows])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "gradcam++"])
@pytest.mark.parametrize("K", [1, 3])
def test_the_traced_gradient_is_autograd_s(make, method, K):
    dual, cut, graph = weight_graph_of(make(), 12, method, "conv" if make is Windows else None)
    images = torch.randn(5, 3, 12, 12)
    ids = torch.stack([torch.randperm(6)[:K] for _ in range(5)])
    F, g = autograd(dual, images, ids)
    with torch.no_grad():
        values = graph.run(cut.front(images))
        got = graph.weights(values, graph.head.rows(ids))[0]
        want = METHODS[method].weights(F, Gradient(g, g.shape[3] * g.shape[4]))
        torch.testing.assert_close(values.features[0], F)
        logits = graph.head.logits(values.z)
        torch.testing.assert_close(logits, dual.softmax_head(F))
        torch.testing.assert_close(graph.head.scores(values.z, ids), logits.gather(1, ids))
    want = want.flatten(2) if got.ndim == 3 else want
    assert got.shape == want.shape
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
def test_one_image_through_a_normalised_projection(tmp_path, stride):
    torch.manual_seed(2)
    net = Projected(stride)
    net.norm.running_var.uniform_(0.5, 2)
    nn.init.uniform_(net.norm.weight, 0.5, 2)
    dual = DualBranch(net, target_layers=["before"], input_size=16)
    images, ids = torch.randn(3, 3, 16, 16), torch.tensor([[1], [0], [3]])
    tokens = net.eval().tokens(images).detach().requires_grad_()
    # Of three images at once PyTorch's gradient is right.
    (g,) = torch.autograd.grad(net.rest(tokens).gather(1, ids).sum(), tokens)
    options = ExportOptions(
        method="hirescam",
        branch="softmax",
        has_sigmoid=False,
        preprocessing=Preprocessing(16, 16, "stretch"),
    )
    cams, double = CamGraph(dual, options), in_double(dual)
    graph = cams.weight_graph
    for i in range(3):
        with torch.no_grad():
            values = graph.run(cams.cut.front(images[i : i + 1]))
            got = graph.weights(values, graph.head.rows(ids[i : i + 1]))[0]
        one = Reference(double, images[i : i + 1].double(), options).outputs(ids[i : i + 1])
        want = g[i].T.reshape(6, 4, 4)
        torch.testing.assert_close(got[0, 0], want, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(one["cam_weights"][0, 0].float(), want, rtol=1e-4, atol=1e-6)
    export_artifact(dual, tmp_path / "m.onnx", options)


@pytest.mark.parametrize("pool", [6, 3])
def test_the_weight_behind_flatten_is_pooled_at_export(pool):
    # 12 / 2 = 6: the pooling is the identity, or averages pairs of cells.
    _, _, graph = weight_graph_of(Flattened(pool), 12, "gradcam")
    shapes = {tuple(p.shape) for p in graph.backward_part.parameters()}
    assert (11, 5) in shapes
    assert (11, 5 * pool * pool) not in shapes
    _, _, graph = weight_graph_of(Flattened(pool), 12, "layercam")
    shapes = {tuple(p.shape) for p in graph.backward_part.parameters()}
    assert (11, 5 * pool * pool) in shapes


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_the_file_holds_two_heads_not_three(tmp_path, method):
    torch.manual_seed(2)
    dual = DualBranch(Flattened(6), input_size=12)
    path = tmp_path / "m.onnx"
    export_artifact(
        dual, path, ExportOptions(method=method, preprocessing=Preprocessing(12, 12, "stretch"))
    )
    sizes = [tuple(i.dims) for i in onnx.load(path).graph.initializer]
    assert sizes.count((11, 180)) == 2
    assert (180, 11) not in sizes
    assert sizes.count((11, 5)) == (1 if method == "gradcam" else 0)


def test_saved_values_repeat_the_rows_of_each_image_together():
    value = torch.arange(12.0).reshape(1, 6, 2)  # 3 images of 2 rows, on the second axis
    got = Saved(1, 2).repeat(value, 2)
    want = torch.cat([value[:, 2 * b : 2 * b + 2] for b in (0, 0, 1, 1, 2, 2)], 1)
    assert torch.equal(got, want)
    assert Saved(None, 1).repeat(value, 2) is value


def test_a_weight_for_each_position_and_one_for_all_give_the_same_cam():
    F = torch.randn(2, 3, 4, 5)
    w = torch.randn(2, 2, 3)
    full = w[..., None, None].expand(2, 2, 3, 4, 5)
    for nwc in (True, False):
        torch.testing.assert_close(combine(w, F, nwc), combine(full, F, nwc))


def test_fusing_cams():
    flat = torch.full((1, 1, 2, 2), 3.0)
    ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
    got = fuse([flat, ramp])
    # A constant CAM counts as zeros, never as NaN.
    torch.testing.assert_close(got, ramp / 15 / 2)
    assert torch.equal(fuse([ramp]), ramp / 15)


def test_weights_in_a_file_of_their_own(tmp_path):
    from sigcam.runtime.session import load

    torch.manual_seed(2)
    dual = DualBranch(Flattened(6), input_size=12)
    preprocessing = Preprocessing(12, 12, "stretch")
    options = {"method": "layercam", "preprocessing": preprocessing, "head_graph": True}
    export_artifact(dual, tmp_path / "in.onnx", ExportOptions(**options))
    export_artifact(dual, tmp_path / "out.onnx", ExportOptions(external_data=True, **options))
    names = sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out"))
    assert names == ["out.head.onnx", "out.head.onnx.data", "out.onnx", "out.onnx.data"]
    assert len(list(tmp_path.iterdir())) == 6  # and no folder is left behind
    assert (tmp_path / "out.onnx").stat().st_size < (tmp_path / "in.onnx").stat().st_size
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    with load(tmp_path / "in.onnx") as one, load(tmp_path / "out.onnx") as other:
        first, second = one.explain(image)[0], other.explain(image)[0]
        np.testing.assert_array_equal(first.cam, second.cam)
        third = second.for_classes([second.class_id])[0]
        np.testing.assert_allclose(third.cam, second.cam, rtol=1e-5, atol=1e-7)


def test_weights_over_the_limit_get_a_file_of_their_own(tmp_path, monkeypatch):
    from sigcam.export import onnx_model

    monkeypatch.setattr(onnx_model, "MAX_MESSAGE_BYTES", 1000)
    torch.manual_seed(2)
    dual = DualBranch(Flattened(6), input_size=12)
    export_artifact(
        dual,
        tmp_path / "m.onnx",
        ExportOptions(method="gradcam", preprocessing=Preprocessing(12, 12, "stretch")),
    )
    assert (tmp_path / "m.onnx.data").is_file()
