"""Target layers other than the default: below the last, inside a block, several, tokens."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.layout import Layout
from sigcam.core.errors import ExportError, ModelError, UsageError
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.cam import fuse
from sigcam.export.parity.inputs import as_images, sample_images
from sigcam.runtime.session import load

pytestmark = pytest.mark.slow

SIZE = (24, 32)
PREPROCESSING = Preprocessing(*SIZE, rule="stretch", layout="float32_nchw")


class Residual(nn.Module):
    """Two blocks with skip connections, then pooling and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.one = nn.Conv2d(8, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.two = nn.Conv2d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, 7)

    def forward(self, x):
        x = self.stem(x).relu()
        x = self.down((self.one(x) + x).relu()).relu()
        x = (self.norm(self.two(x)) + x).relu()
        return self.fc(x.mean((2, 3)))


class Padded(Residual):
    """With padding of its own above the target layer, as TensorFlow's convolutions have."""

    def forward(self, x):
        x = self.down(self.stem(x).relu()).relu()
        x = self.norm(self.two(functional.pad(x, [1, 2, 1, 2]))).relu()
        return self.fc(x.mean((2, 3)))


class Transformer(nn.Module):
    """Patches of a non-square grid, a class token and a register, one block."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 8, stride=8)
        self.prefix = nn.Parameter(torch.randn(1, 2, 16))
        self.norm1 = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.norm2 = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16))
        self.norm = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 7)

    def tokens(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.prefix.expand(x.shape[0], -1, -1), x], 1)
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return self.norm(x + self.mlp(self.norm2(x)))

    def forward(self, x):
        return self.fc(self.tokens(x)[:, 0])


class Averaged(Transformer):
    """The same with the mean of the patches instead of the class token."""

    def forward(self, x):
        return self.fc(self.tokens(x)[:, 2:].mean(1))


class ChannelsLast(nn.Module):
    """[B, h, w, N] as Swin keeps it."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 10, 4, stride=4)
        self.mix = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 10), nn.GELU())
        self.norm = nn.LayerNorm(10)
        self.fc = nn.Linear(10, 7)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        return self.fc(self.norm(x + self.mix(x)).mean((1, 2)))


def made(net, target_layers=()):
    torch.manual_seed(5)
    return DualBranch(net(), input_size=SIZE, target_layers=target_layers, architecture="toy")


def by_hooks(dual, net, layers, branch, ids, to_grid):
    """Features and gradients of a layer, by hooks on the user's own module, in float64."""
    torch.manual_seed(5)
    model = net().double().eval()
    head = {n: p.double() for n, p in dual.sigmoid_head.named_tensors().items()}
    seen = {}
    for layer in layers:
        module = model.get_submodule(layer)
        module.register_forward_hook(lambda m, i, o, layer=layer: seen.__setitem__(layer, o))
    if branch == "sigmoid":
        model.load_state_dict({**model.state_dict(), **head})
    images = torch.cat(as_images(sample_images(PREPROCESSING), PREPROCESSING))
    logits = model(images)
    out = {}
    for layer in layers:
        columns = []
        for column in range(ids.shape[1]):
            score = logits.gather(1, torch.from_numpy(ids[:, column : column + 1])).sum()
            (g,) = torch.autograd.grad(score, seen[layer], retain_graph=True)
            columns.append(to_grid(g))
        out[layer] = to_grid(seen[layer]).detach().numpy(), torch.stack(columns, 1).numpy()
    return out


def run(path, names, classes=None):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.cat(as_images(sample_images(PREPROCESSING), PREPROCESSING)).float().numpy()
    feeds = {"image": image} if classes is None else {"image": image, "class_ids": classes}
    return dict(zip(names, session.run(names, feeds), strict=True))


CASES = {
    "below the last": (Residual, "down", lambda x: x),
    "inside a block": (Residual, "two", lambda x: x),
    "below padding": (Padded, "down", lambda x: x),
    "class token": (
        Transformer,
        "norm1",
        lambda x: x[:, 2:].reshape(-1, 3, 4, 16).permute(0, 3, 1, 2),
    ),
    "mean of tokens": (
        Averaged,
        "norm",
        lambda x: x[:, 2:].reshape(-1, 3, 4, 16).permute(0, 3, 1, 2),
    ),
    "below the mean of tokens": (
        Averaged,
        "norm1",
        lambda x: x[:, 2:].reshape(-1, 3, 4, 16).permute(0, 3, 1, 2),
    ),
    "channels last": (ChannelsLast, "norm", lambda x: x.permute(0, 3, 1, 2)),
    "below channels last": (ChannelsLast, "mix.0", lambda x: x.permute(0, 3, 1, 2)),
}
NAMED = ("below", "inside")
"""Cases whose target layer isn't the one that is found begin so."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
def test_gradients_are_those_of_hooks_on_the_model(tmp_path, case, branch):
    net, layer, to_grid = CASES[case]
    named = [layer] if case.startswith(NAMED) else []
    dual = made(net, named)
    assert [target.layer for target in dual.targets] == [layer]
    path = tmp_path / "m.onnx"
    spec = export_artifact(
        dual,
        path,
        ExportOptions(
            method="hirescam",
            branch=branch,
            profile="split",
            preprocessing=PREPROCESSING,
            classes=ClassSelection("topk", 2),
        ),
    )
    got = run(path, ["class_ids_out", "features", "cam_weights"])
    want = by_hooks(dual, net, [layer], branch, got["class_ids_out"], to_grid)[layer]
    assert spec.feature_shapes == (want[0].shape[1:],)
    for name, value in zip(("features", "cam_weights"), want, strict=True):
        assert got[name].shape == value.shape
        assert np.abs(got[name] - value).max() < 1e-4 * np.abs(value).max(), name
    assert np.abs(want[1]).max() > 0
    assert spec.parity.left_out == 0


def test_several_layers_are_scaled_and_averaged(tmp_path):
    dual = made(Residual, ["down", "stem"])
    path = tmp_path / "m.onnx"
    spec = export_artifact(
        dual,
        path,
        ExportOptions(
            purpose="localise",
            method="gradcam",
            preprocessing=PREPROCESSING,
            classes=ClassSelection("input"),
        ),
    )
    assert spec.target_layers == ("down", "stem")
    assert spec.cam_shape == (12, 16)
    ids = np.tile(np.array([[3, 0]]), (5, 1))
    got = run(path, ["cams"], ids)["cams"]
    found = by_hooks(dual, Residual, ["down", "stem"], "sigmoid", ids, lambda x: x)
    total = 0
    for F, g in found.values():
        w = np.maximum(g.mean((3, 4)), 0)
        cam = np.maximum(np.einsum("bkn,bnhw->bkhw", w, F), 0)
        low, high = cam.min((2, 3), keepdims=True), cam.max((2, 3), keepdims=True)
        one = torch.from_numpy((cam - low) / np.maximum(high - low, 1e-12))
        total += functional.interpolate(one, size=(12, 16), mode="bilinear").numpy()
    assert np.abs(got - total / 2).max() < 1e-4
    # A layer that is the stem's own output: [B, 8, 12, 16] before its ReLU.
    with load(path) as session:
        image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        assert session.explain(image, classes=[3])[0].cam.shape == (12, 16)


def test_the_head_graph_starts_where_everything_comes_from(tmp_path):
    for net, layers, name in ((Residual, ["two"], "head_input"), (Residual, ["down"], "features")):
        dual = made(net, layers)
        path = tmp_path / f"{name}.onnx"
        spec = export_artifact(
            dual,
            path,
            ExportOptions(
                method="layercam",
                preprocessing=PREPROCESSING,
                head_graph=True,
                classes=ClassSelection("input"),
            ),
        )
        assert spec.head_input == name
        ids = np.tile(np.array([[4, 1]]), (5, 1))
        first = run(path, ["cams", "evidence_logits", name], ids)
        head = onnxruntime.InferenceSession(
            str(path.with_name(f"{name}.head.onnx")), providers=["CPUExecutionProvider"]
        )
        names = ["scores", "evidence_logits", "cam_weights", "cams"]
        assert [output.name for output in head.get_outputs()] == names
        got = dict(zip(names, head.run(names, {name: first[name], "class_ids": ids}), strict=True))
        np.testing.assert_allclose(got["cams"], first["cams"], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(got["evidence_logits"], first["evidence_logits"], rtol=1e-5)
        assert got["cam_weights"].shape[2:] == spec.feature_shapes[0]


def test_further_classes_come_out_as_if_they_had_been_asked_for(tmp_path):
    path = tmp_path / "m.onnx"
    export_artifact(
        made(Transformer),
        path,
        ExportOptions(
            method="gradcam",
            preprocessing=PREPROCESSING,
            head_graph=True,
            classes=ClassSelection("input"),
        ),
    )
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    with load(path) as session:
        (first,) = session.explain(image)
        further = first.for_classes([5, 2])
        asked = session.explain(image, classes=[5, 2])
        for one, other in zip(further, asked, strict=True):
            assert (one.class_id, one.probability) == (other.class_id, other.probability)
            assert one.evidence == pytest.approx(other.evidence, rel=1e-5)
            np.testing.assert_allclose(one.cam, other.cam, rtol=1e-4, atol=1e-7)


def test_layouts():
    value = torch.arange(2 * 14 * 5.0).reshape(2, 14, 5)
    layout = Layout("tokens", (5, 3, 4), 2)
    grid = layout.to_grid(value)
    assert grid.shape == (2, 5, 3, 4)
    assert torch.equal(grid[1, :, 2, 3], value[1, 13])
    assert torch.equal(grid[1, :, 0, 0], value[1, 2])
    assert layout.value_shape == (14, 5)
    assert made(Transformer).branch.layout == Layout("tokens", (16, 3, 4), 2)
    assert made(ChannelsLast).branch.layout == Layout("nhwc", (10, 6, 8))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (["dwn"], "no layer 'dwn'; did you mean down"),
        (["fc"], r"layer 'fc' must give a grid .* it gives \[B, 7\]"),
        (["unused"], "don't depend on the output of the layer 'unused'"),
    ],
)
def test_target_layers_that_cannot_be(layers, words):
    net = type("Made", (Residual,), {})
    torch.manual_seed(5)
    model = net()
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ModelError, match=words):
        DualBranch(model, input_size=SIZE, target_layers=layers)


def test_a_target_layer_in_the_head():
    with pytest.raises(ModelError, match="'two' must come before the head, which begins at"):
        DualBranch(Residual(), "down", input_size=SIZE, target_layers=["two"])


def test_what_several_or_lower_layers_cannot_have(tmp_path):
    several = made(Residual, ["down", "stem"])
    with pytest.raises(UsageError, match="the profile split has the features of one target layer"):
        export_artifact(
            several,
            tmp_path / "m.onnx",
            ExportOptions(method="gradcam", profile="split", preprocessing=PREPROCESSING),
        )
    with pytest.raises(UsageError, match="leaves no sign; name one target layer"):
        export_artifact(
            several,
            tmp_path / "m.onnx",
            ExportOptions(method="gradcam", signed=True, preprocessing=PREPROCESSING),
        )
    with pytest.raises(ExportError, match="the layer before the pooling as its target layer"):
        export_artifact(
            made(Residual, ["down"]),
            tmp_path / "m.onnx",
            ExportOptions(preprocessing=PREPROCESSING),
        )
    assert not list(tmp_path.iterdir())


def test_an_operator_without_a_translation(tmp_path):
    class Odd(Residual):
        def forward(self, x):
            x = self.down(self.stem(x).relu()).relu().mean((2, 3))
            return self.fc(torch.linalg.matrix_exp(x.unsqueeze(2) * x.unsqueeze(1)).sum(2))

    with pytest.raises(ExportError, match="matrix_exp"):
        export_artifact(
            made(Odd),
            tmp_path / "m.onnx",
            ExportOptions(method="gradcam", preprocessing=PREPROCESSING),
        )
    assert not list(tmp_path.iterdir())


def test_uint8_images_reach_the_transformer(tmp_path):
    preprocessing = dataclasses.replace(PREPROCESSING, layout="uint8_nhwc")
    spec = export_artifact(
        made(Averaged),
        tmp_path / "m.onnx",
        ExportOptions(method="cam", preprocessing=preprocessing),
    )
    assert spec.feature_shapes == ((16, 3, 4),)


def test_fused_cams_by_hand():
    """A constant layer, up to rounding, adds nothing; a small one counts as much as a large."""
    ramp = torch.arange(6, dtype=torch.float32).reshape(1, 1, 2, 3)
    noise = 5 + 1e-6 * torch.rand(ramp.shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fuse([ramp * 1e-20, torch.full_like(ramp, 5)]), ramp / 5 / 2)
    torch.testing.assert_close(fuse([ramp, noise]), ramp / 5 / 2)
    torch.testing.assert_close(fuse([0 * ramp, ramp * 1e20]), ramp / 5 / 2)
