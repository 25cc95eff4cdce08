"""Every method on OpenVINO against ONNX Runtime, at target layers deep inside the network.

Parity is measured with ONNX Runtime. The gradient passes layers of every kind here, which take
as many channels as they give: there OpenVINO has confused a layer with that of its gradient.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.export import METHODS, ExportOptions, export_artifact
from sigcam.runtime.session import load

pytestmark = pytest.mark.slow
pytest.importorskip("openvino")

SIZE = 32
PREPROCESSING = Preprocessing(SIZE, SIZE, rule="stretch")
CLASSES = [3, 0]
TOLERANCE = 1e-4


def convolutions():
    """Layers of 8 channels: 3x3 with stride 2, in groups, 1x1, depthwise, linear."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1, groups=2), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 8), nn.ReLU(),
        nn.Linear(8, 6),
    )  # fmt: skip


class Transformer(nn.Module):
    """A block on patches and a class token; its first target layer is before it."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.first = nn.LayerNorm(8)
        self.query, self.key, self.value, self.proj = (nn.Linear(8, 8) for _ in range(4))
        self.second = nn.LayerNorm(8)
        self.mlp = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 6)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = self.first(torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1))
        scores = self.query(x) @ self.key(x).transpose(1, 2) / 8**0.5
        x = x + self.proj(scores.softmax(-1) @ self.value(x))
        x = x + self.mlp(self.second(x))
        return self.fc(self.norm(x)[:, 0])


LAYERS = {convolutions: ("1", "3", "5", "7"), Transformer: ("first", "patch")}


def target_layers(net, method):
    """cam needs what the head pools, refinecam several layers; the others get the first one."""
    if method == "cam":
        return ()
    return LAYERS[net] if METHODS[method].refines else LAYERS[net][:1]


def exported(net, path, layers, **options):
    torch.manual_seed(1)
    model = net()
    if options["method"] == "cam" and net is convolutions:
        model = nn.Sequential(*model[:-3], model[-1])
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights *= 1.5  # so that gradients stay well above rounding
    dual = DualBranch(model, input_size=SIZE, target_layers=layers, architecture="toy")
    chosen = {"branch": "softmax", "has_sigmoid": False, "preprocessing": PREPROCESSING, **options}
    return export_artifact(dual, path, ExportOptions(classes=ClassSelection("input"), **chosen))


def explained(path, backend, **options):
    """Explanations of three images, at once and later by the head graph."""
    images = list(np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 3), np.uint8))
    with load(path, backend, **options) as session:
        at_once = session.explain(images, classes=CLASSES)
        later = [one[0].for_classes(CLASSES) for one in at_once]
    return [found for one in (*at_once, *later) for found in one]


@pytest.mark.parametrize("net", LAYERS, ids=lambda net: net.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_every_method(tmp_path, net, method):
    if (method, net) == ("cam", Transformer):
        pytest.skip("cam needs a head of pooling and a linear layer")
    path = tmp_path / "model.onnx"
    exported(net, path, target_layers(net, method), method=method, head_graph=True)
    wanted = explained(path, "ort")
    assert 2 * sum(one.cam.max() > 0 for one in wanted) >= len(wanted)
    for options in ({"mode": "throughput"}, {"cache": tmp_path}, {"cache": tmp_path}):
        for got, want in zip(explained(path, "openvino", **options), wanted, strict=True):
            assert (got.class_id, got.valid) == (want.class_id, want.valid)
            assert got.probability == pytest.approx(want.probability, rel=TOLERANCE)
            np.testing.assert_allclose(got.cam, want.cam, atol=TOLERANCE * want.cam.max())
