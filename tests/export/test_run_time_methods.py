"""Methods that the runtime computes: for heads whose gradients can't go into a graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import sigcam
from sigcam.classifier.dual_branch import DualBranch
from sigcam.cli import main
from sigcam.core.errors import ExportError, UsageError
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.runtime.model import ExportedModel

pytestmark = pytest.mark.slow

SIZE = (24, 32)
PREPROCESSING = Preprocessing(*SIZE, rule="stretch", layout="float32_nchw")


class Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU())


class Recurrent(Backbone):
    """Reads the positions one after the other."""

    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(8, 6, batch_first=True, **options)
        self.fc = nn.Linear(12 if options.get("bidirectional") else 6, 5)

    def forward(self, x):
        y, _ = self.rnn(self.body(x).flatten(2).transpose(1, 2))
        return self.fc(y[:, -1])


class Spectrum(Backbone):
    """Classifies by the amplitudes of the features' spectrum."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(torch.fft.rfft2(self.body(x)).abs().mean((2, 3)))


HEADS = {
    "lstm": lambda: Recurrent(nn.LSTM),
    "both ways": lambda: Recurrent(nn.LSTM, bidirectional=True, num_layers=2),
    "gru": lambda: Recurrent(nn.GRU),
    "fft": Spectrum,
}


def made(head):
    torch.manual_seed(1)
    model = HEADS[head]().eval()
    with torch.no_grad():
        model.body[0].weight *= 3
    return model


def features_by_hand(model, images):
    with torch.no_grad():
        return model.body(images).numpy()


@pytest.mark.parametrize("head", HEADS)
def test_eigencam_of_any_head_is_its_definition(tmp_path, head):
    model = made(head)
    dual = DualBranch(model, input_size=SIZE)
    options = ExportOptions(method="eigencam", branch="softmax", preprocessing=PREPROCESSING)
    spec = export_artifact(dual, tmp_path / "m.onnx", options)
    assert (spec.method, spec.profile, spec.cam_shape) == ("eigencam", "features", (6, 8))
    assert set(spec.parity.outputs) >= {"logits", "features"}
    images = torch.randn(2, 3, *SIZE)
    with ExportedModel.open(tmp_path / "m.onnx") as opened:
        got = opened.run(images.numpy(), wanted="features")
        with pytest.raises(UsageError, match=r"eigencam, whose CAMs .* use `sigcam.load"):
            opened.run(images.numpy())
    np.testing.assert_allclose(got.features, features_by_hand(model, images), atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(got.logits, model(images).numpy(), atol=1e-5)
    # A v_1 of the features A [h w, N], with the sign of their mean.
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    with sigcam.load(tmp_path / "m.onnx") as session:
        assert session.passes() == 1
        (found,) = session.explain(image)
    tensor = (image / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    tensor = torch.from_numpy(tensor.transpose(2, 0, 1)[None].astype(np.float32))
    A = features_by_hand(model, tensor)[0].reshape(8, -1).T
    want = A @ np.linalg.svd(A, full_matrices=False)[2][0]
    want = (want * np.sign((want * A.mean(1)).sum())).clip(0).reshape(6, 8)
    assert found.method == "eigencam"
    np.testing.assert_allclose(found.cam, want, rtol=1e-3, atol=1e-4 * want.max())


@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
def test_scorecam_of_a_recurrent_head_is_its_definition(tmp_path, branch):
    model = made("lstm")
    dual = DualBranch(model, input_size=SIZE)
    options = ExportOptions(method="scorecam", branch=branch, preprocessing=PREPROCESSING)
    export_artifact(dual, tmp_path / "m.onnx", options)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    with sigcam.load(tmp_path / "m.onnx") as session:
        assert session.passes() == 9
        (found,) = session.explain(image)
    tensor = (image / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    tensor = torch.from_numpy(tensor.transpose(2, 0, 1)[None].astype(np.float32))
    features = torch.from_numpy(features_by_hand(model, tensor))
    masks = nn.functional.interpolate(features, size=SIZE, mode="bilinear", align_corners=False)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    seen = (high > low).flatten()
    masks = ((masks - low) / (high - low))[0][seen]
    with torch.no_grad():
        output = dual(tensor * masks[:, None])
    logits = output.logits if branch == "softmax" else output.sigmoid_logits
    weights = logits[:, found.class_id].softmax(0)
    want = (weights[:, None, None] * features[0][seen]).sum(0).relu().numpy()
    assert (found.method, found.passes) == ("scorecam", 1 + int(seen.sum()))
    np.testing.assert_allclose(found.cam, want, rtol=1e-3, atol=1e-4 * want.max())


@pytest.mark.parametrize("head", ["lstm", "gru", "fft"])
@pytest.mark.parametrize("method", ["gradcam", "cam"])
def test_methods_of_the_graph_name_those_that_are_left(tmp_path, head, method):
    dual = DualBranch(made(head), input_size=SIZE)
    options = ExportOptions(method=method, preprocessing=PREPROCESSING)
    with pytest.raises(ExportError, match="use the method scorecam or eigencam, which take no"):
        export_artifact(dual, tmp_path / "m.onnx", options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"profile": "split"}, "no CAM weights for the profile 'split'; leave that out"),
        ({"head_graph": True}, "no CAM weights for a head graph; leave that out"),
        ({"method": "gradcam", "profile": "features"}, "use the method scorecam or eigencam"),
    ],
)
def test_options_that_contradict(options, words):
    with pytest.raises(UsageError, match=words):
        ExportOptions(**{"method": "eigencam", **options})


def test_one_target_layer(tmp_path):
    dual = DualBranch(made("gru"), input_size=SIZE, target_layers=["body.0", "body"])
    with pytest.raises(UsageError, match="eigencam makes its maps of one target layer, got 2"):
        export_artifact(
            dual, tmp_path / "m.onnx", ExportOptions(method="eigencam", preprocessing=PREPROCESSING)
        )


def test_the_command_line_goes_the_whole_way(tmp_path, monkeypatch):
    import cv2

    (tmp_path / "recurrent_net.py").write_text(
        "from torch import nn\n\n\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.conv, self.rnn = nn.Conv2d(3, 8, 3, 4), nn.GRU(8, 6, batch_first=True)\n"
        "        self.fc = nn.Linear(6, 5)\n\n"
        "    def forward(self, x):\n"
        "        y, _ = self.rnn(self.conv(x).flatten(2).transpose(1, 2))\n"
        "        return self.fc(y.mean(1))\n\n\n"
        "def net():\n"
        "    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    cv2.imwrite("a.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    runner = CliRunner()
    arguments = "export --arch recurrent_net:net --size 32 --branch softmax --method scorecam"
    result = runner.invoke(main, [*arguments.split(), "--out", "m.onnx"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    result = runner.invoke(main, ["info", "m.onnx"], catch_exceptions=False)
    assert "scorecam, from the softmax branch" in result.output
    result = runner.invoke(main, ["explain", "m.onnx", "a.png", "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert '"method": "scorecam"' in result.output
