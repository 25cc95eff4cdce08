"""`sigcam export --weights` with a checkpoint that holds the sigmoid branch too."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sigcam.classifier.zoo import load_model
from sigcam.core.artifact import read_spec

pytestmark = pytest.mark.slow

NET = """
from collections import OrderedDict
from torch import nn

def net(num_classes=4):
    return nn.Sequential(OrderedDict(
        conv=nn.Conv2d(3, 6, 3, stride=2), relu=nn.ReLU(),
        pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten(), fc=nn.Linear(6, num_classes),
    ))
"""


@pytest.fixture
def arch(tmp_path) -> str:
    (tmp_path / "net.py").write_text(NET)
    return f"{tmp_path / 'net.py'}:net"


def saved(arch, file, **second):
    state = load_model(arch, seed=2).model.state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in {**state, **second}.items()}}, file)
    return state


def test_exported_without_a_branch_file(arch, cli, tmp_path) -> None:
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    second = {"fc2.weight": torch.randn(4, 6), "fc2.bias": torch.randn(4)}
    state = saved(arch, tmp_path / "theirs.pth", **second)
    options = ["--weights", tmp_path / "theirs.pth", "--size", 16, "--input", "float32"]
    done = cli("export", "--arch", arch, *options, "--sigmoid-logits", "--out", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    assert "the sigmoid branch is the one in theirs.pth" in done.stderr
    spec = read_spec(tmp_path / "m.onnx")
    assert spec.branch == "sigmoid"
    assert spec.source.trained_on == "with the classifier (checkpoint file theirs.pth)"
    session = ort.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    names = ["logits", "sigmoid_logits"]
    got = session.run(names, {"image": image})
    conv = torch.conv2d(torch.from_numpy(image), state["conv.weight"], state["conv.bias"], 2)
    pooled = conv.relu().mean((2, 3))
    want = [
        pooled @ state["fc.weight"].T + state["fc.bias"],
        pooled @ second["fc2.weight"].T + second["fc2.bias"],
    ]
    for logits, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", [[], ["--branch", "softmax", "--sigmoid-logits"]])
def test_a_checkpoint_without_a_branch(flag, arch, cli, tmp_path) -> None:
    saved(arch, tmp_path / "plain.pth")
    options = ["--weights", tmp_path / "plain.pth", "--size", 16, *flag]
    done = cli("export", "--arch", arch, *options, "--out", tmp_path / "m.onnx")
    assert done.exit_code == 2
    assert "plain.pth holds no sigmoid branch for this model" in done.stderr
    assert not (tmp_path / "m.onnx").exists()


def test_what_was_taken_is_said(arch, cli, tmp_path) -> None:
    """Of a file with two sets of weights; and the other set is exported when it is named."""
    ort = pytest.importorskip("onnxruntime")
    states = [load_model(arch, seed=seed).model.state_dict() for seed in (1, 2)]
    average = {f"module.{name}": value for name, value in states[1].items()}
    torch.save({"net": states[0], "model_ema": average}, tmp_path / "last.ckpt")
    image = np.random.default_rng(0).standard_normal((1, 3, 16, 16), dtype=np.float32)
    for number, suffix in enumerate(["", "#model_ema"]):
        out = tmp_path / f"{number}.onnx"
        options = ["--branch", "softmax", "--size", 16, "--input", "float32", "--out", out]
        done = cli("export", "--arch", arch, "--weights", f"{tmp_path}/last.ckpt{suffix}", *options)
        assert done.exit_code == 0, done.output
        taken = ["took ['net']", "took ['model_ema'], names without 'module.'"][number]
        assert f"last.ckpt: {taken}\n" in done.stderr
        assert ("give last.ckpt#model_ema/module." in done.stderr) == (number == 0)
        session = ort.InferenceSession(out, providers=["CPUExecutionProvider"])
        state = states[number]
        conv = torch.conv2d(torch.from_numpy(image), state["conv.weight"], state["conv.bias"], 2)
        want = conv.relu().mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]
        got = session.run(["logits"], {"image": image})[0]
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", [[], ["--branch", "softmax"]])
def test_weights_that_are_not_there(flag, arch, cli, tmp_path) -> None:
    options = ["--weights", tmp_path / "none.ckpt", *flag, "--out", tmp_path / "m.onnx"]
    done = cli("export", "--arch", arch, *options)
    assert done.exit_code == 1
    assert f"there is no file of weights {tmp_path}/none.ckpt" in done.stderr
