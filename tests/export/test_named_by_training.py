"""What training names, export finds: from a stage that returns a container to the artifact."""

from __future__ import annotations

import pytest

from sigcam.classifier.branch_file import load_branch
from sigcam.classifier.build import build_classifier
from sigcam.data import open_dataset
from sigcam.export import ExportOptions, export_artifact
from sigcam.train.augment import Augmentation
from sigcam.train.branch import train_branch
from sigcam.train.settings import Reading, TrainSettings
from tests.support.toy import folder  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow

NET = """
from torch import nn


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 5, 4), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(6, 8, 3, 2), nn.ReLU())

    def forward(self, x):
        low = self.low(x)
        return {pack}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = Body(), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(self.body(x){unpack}.mean((2, 3)))


def net():
    return Net()
"""


@pytest.mark.parametrize(
    ("pack", "unpack"),
    [("dict(low=low, high=self.high(low))", '["high"]'), ("(low, self.high(low))", "[1]")],
)
def test_the_branch_file_is_exported(folder, tmp_path, pack, unpack):  # noqa: F811 (a fixture)
    source = tmp_path / "packing_net.py"
    source.write_text(NET.format(pack=pack, unpack=unpack))
    classifier = build_classifier(f"{source}:net", size=32)
    trained = train_branch(
        classifier,
        open_dataset(folder),
        TrainSettings(epochs=1, batch_size=8),
        augmentation=Augmentation(1),
        reading=Reading(tmp_path / "cache"),
        run_dir=tmp_path / "run",
        progress=False,
        say=lambda text: None,
    )
    assert trained.info.branch_layer == "body.high"
    trained.save(tmp_path / "branch.safetensors")
    # Its weights are random, so those that were trained with are put back.
    again = build_classifier(f"{source}:net", size=32, branch_layer=trained.info.branch_layer)
    again.dual.load_state_dict(trained.classifier.dual.state_dict())
    load_branch(tmp_path / "branch.safetensors", again.dual)
    spec = export_artifact(again.dual, tmp_path / "m.onnx", ExportOptions())
    assert spec.target_layers == ("body.high",)
    assert spec.parity.outputs["cams"].max_rel <= 1e-4
