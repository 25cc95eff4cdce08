"""Target layers beside others: pyramids, ensembles, averages over changed images.

Nothing but the image leads alone to the logits there, so the head begins behind the layers,
at the logits themselves in the end, and maps come from the classifier's own head. The right
map is plain autograd on the original model, by hand.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact

SIZE = (24, 32)
PREPROCESSING = Preprocessing(*SIZE, rule="stretch", layout="float32_nchw")


def block(n, m):
    return nn.Sequential(nn.Conv2d(n, m, 3, stride=2, padding=1), nn.BatchNorm2d(m), nn.ReLU())


class Pyramid(nn.Module):
    """Two scales with a way back up, each pooled for itself; the descriptors are joined."""

    def __init__(self):
        super().__init__()
        self.stem, self.c1, self.c2 = block(3, 8), block(8, 8), block(8, 12)
        self.lateral, self.top = nn.Conv2d(8, 6, 1), nn.Conv2d(12, 6, 1)
        self.smooth = nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        low = self.c1(self.stem(x))
        high = self.top(self.c2(low))
        up = functional.interpolate(high, size=low.shape[2:], mode="nearest")
        fine = self.smooth(self.lateral(low) + up)
        return self.fc(torch.cat((fine.amax((2, 3)), high.mean((2, 3))), 1))


class Backbone(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(block(3, width), block(width, width + 2))
        self.fc = nn.Linear(width + 2, 5)

    def forward(self, x):
        return self.fc(self.body(x).mean((2, 3)))


class Ensemble(nn.Module):
    """The mean of two networks' logits."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Backbone(6), Backbone(8)

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


class Flipped(nn.Module):
    """Test-time augmentation: the mean over the image and its mirror image."""

    def __init__(self):
        super().__init__()
        self.net = Backbone(6)

    def forward(self, x):
        return (self.net(x) + self.net(x.flip(3))) / 2


class Scales(nn.Module):
    """Test-time augmentation over two sizes."""

    def __init__(self):
        super().__init__()
        self.net = Backbone(6)

    def forward(self, x):
        small = functional.interpolate(x, scale_factor=0.5, mode="bilinear")
        return torch.stack((self.net(x), self.net(small))).mean(0)


class MapsOfClasses(nn.Module):
    """A 1x1 convolution gives a grid for each class; nothing with parameters follows it."""

    def __init__(self):
        super().__init__()
        self.body, self.score = block(3, 8), nn.Conv2d(8, 5, 3)

    def forward(self, x):
        return self.score(self.body(x)).square().mean((2, 3))


CASES = {
    "pyramid, fine": (Pyramid, "smooth", "hirescam"),
    "pyramid, coarse": (Pyramid, "top", "gradcam"),
    "pyramid, middle": (Pyramid, "c2", "layercam"),
    "ensemble, first": (Ensemble, "one.body", "gradcam"),
    "ensemble, second": (Ensemble, "two.body.0", "hirescam"),
    "flipped, the image": (Flipped, "net.body#1", "layercam"),
    "scales, the image": (Scales, "net.body#1", "hirescam"),
    "scales, the small one": (Scales, "net.body#2", "gradcam"),
    "maps of classes": (MapsOfClasses, "score", "gradcam"),
}


def made(case):
    build, layer, _ = CASES[case]
    torch.manual_seed(2)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2.5)  # so that logits differ between images
    return model, layer


def by_hand(model, layer, image, method):
    """The logits, the class and the CAM [h, w] of one image, by a hook and autograd."""
    name, _, run = layer.partition("#")
    seen = []

    def keep(module, inputs, output):
        output.requires_grad_(True)
        output.retain_grad()
        seen.append(output)

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    handle = model.get_submodule(name).register_forward_hook(keep)
    logits = model(image)
    handle.remove()
    chosen = int(logits[0].argmax())
    features = seen[int(run) - 1 if run else -1]
    g = torch.autograd.grad(logits[0, chosen], features)[0][0].numpy()
    F = features[0].detach().numpy()
    weights = {"gradcam": g.mean((1, 2))[:, None, None], "hirescam": g, "layercam": g.clip(0)}
    cam = (weights[method] * F).sum(0).clip(0)
    return logits[0].detach().numpy(), chosen, cam


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_maps_beside_other_ways_are_those_of_autograd(tmp_path, case):
    (model, layer), method = made(case), CASES[case][2]
    dual = DualBranch(model, input_size=SIZE, target_layers=[layer])
    options = ExportOptions(method=method, branch="softmax", preprocessing=PREPROCESSING)
    spec = export_artifact(dual, tmp_path / "m.onnx", options)
    assert spec.target_layers == (layer,)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    images = torch.randn(3, 3, *SIZE)
    outputs = dict(
        zip(
            [one.name for one in session.get_outputs()],
            session.run(None, {"image": images.numpy()}),
            strict=True,
        )
    )
    empty = 0
    for row in range(3):
        logits, chosen, cam = by_hand(model, layer, images[row : row + 1], method)
        assert outputs["class_ids_out"][row, 0] == chosen
        np.testing.assert_allclose(outputs["logits"][row], logits, rtol=1e-4, atol=1e-5)
        size = max(float(np.abs(cam).max()), 1e-12)
        np.testing.assert_allclose(outputs["cams"][row, 0] / size, cam / size, atol=1e-3)
        empty += not cam.any()
    assert empty < 3


@pytest.mark.slow
def test_layers_of_both_networks_are_fused(tmp_path):
    model, _ = made("ensemble, first")
    dual = DualBranch(model, input_size=SIZE, target_layers=["two.body.0", "one.body"])
    options = ExportOptions(method="gradcam", branch="centred", preprocessing=PREPROCESSING)
    spec = export_artifact(dual, tmp_path / "m.onnx", options)
    assert spec.parity.outputs["cams"].max_rel <= 1e-4


@pytest.mark.slow
def test_a_pyramid_has_a_head_that_can_be_trained_and_named(tmp_path):
    model, _ = made("pyramid, fine")
    dual = DualBranch(model, input_size=SIZE, target_layers=["smooth"])
    assert dual.is_trainable
    assert sorted(dual.sigmoid_head.named_tensors()) == ["fc.bias", "fc.weight"]
    again = DualBranch(model, dual.branch_layer, input_size=SIZE, target_layers=["smooth"])
    assert (again.branch_layer, again.branch.layout) == (dual.branch_layer, None)
    spec = export_artifact(
        dual, tmp_path / "m.onnx", ExportOptions(method="gradcam", preprocessing=PREPROCESSING)
    )
    assert spec.parity.outputs["evidence_logits"].max_rel <= 1e-4


def test_without_a_target_layer_the_layers_that_can_be_named_are_listed():
    torch.manual_seed(0)
    model = Ensemble()
    words = r"need several at once; name target layers, such as one\.body or two\.body:"
    with pytest.raises(ModelError, match=words):
        DualBranch(model, input_size=SIZE)
    for layer in ("one.body", "two.body"):
        assert DualBranch(model, input_size=SIZE, target_layers=[layer]).targets[0].layer == layer


def test_what_has_no_head_to_train_has_no_sigmoid_branch(tmp_path):
    model, layer = made("ensemble, first")
    dual = DualBranch(model, input_size=SIZE, target_layers=[layer])
    assert not dual.is_trainable
    options = ExportOptions(method="gradcam", preprocessing=PREPROCESSING)
    with pytest.raises(UsageError, match=r"layers one\.body alone, so there is no sigmoid branch"):
        export_artifact(dual, tmp_path / "m.onnx", options)
