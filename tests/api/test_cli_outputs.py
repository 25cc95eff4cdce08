"""Exporting networks that return something else than bare logits, through the commands."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch

from sigcam.classifier.zoo import load_model

pytestmark = pytest.mark.slow
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.conv = nn.Conv2d(3, 8, 3, stride=4)
        self.fc = nn.Linear(8, 4)
        nn.init.normal_(self.fc.weight, std=5)

    def logits(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

class Softmax(Net):
    def forward(self, x):
        return self.logits(x)[:, :, None, None].softmax(1).view(x.size(0), -1)

class Packed(Net):
    def forward(self, x):
        return {"loss": None, "scores": self.logits(x)}

class Hard(Net):
    def forward(self, x):
        return self.logits(x).softmax(1).clamp(0.1, 0.9)

def forward(x):
    return x

def state():
    return Net().state_dict()
"""


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "own_net.py"
    path.write_text(NET)
    return path


def export(cli, net, name):
    out = net.parent / "made.onnx"
    made = cli(
        "export", "--arch", f"{net}:{name}", "--branch", "softmax", "--size", 32, "--input",
        "float32", "--out", out,
    )  # fmt: skip
    return made, out


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Softmax", "the model ends in softmax; its logits before it are used"),
        ("Packed", "the output scores of the model's dict is taken as its logits"),
    ],
)
def test_the_file_gives_the_logits_and_the_command_says_what_was_taken(cli, net, name, says):
    made, out = export(cli, net, name)
    assert made.exit_code == 0, made.stderr
    assert says in made.stderr.splitlines()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 3
    model = load_model(f"{net}:{name}").model.eval()
    session = onnxruntime.InferenceSession(out)
    (got,) = session.run(["logits"], {"image": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, model.logits(images).numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Hard", "softmax and then clamp"),
        ("forward", "must be callable with no argument"),
        ("state", "got a state dict; make the network"),
    ],
)
def test_what_has_no_logits_is_an_error_and_no_file(cli, net, name, says):
    made, out = export(cli, net, name)
    assert made.exit_code != 0
    assert says in made.stderr
    assert "Traceback" not in made.stderr
    assert not out.exists()
