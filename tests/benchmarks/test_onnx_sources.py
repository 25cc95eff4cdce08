"""The table of ONNX files: its parts, and one file that goes all the way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from benchmarks.coverage.onnx_sources import check, differences, report
from benchmarks.coverage.onnx_sources.entries import OTHERS, OWN, entries
from benchmarks.coverage.onnx_sources.make import make
from benchmarks.coverage.onnx_sources.makers import common, shipped_files, torch_files


def test_every_file_has_a_name_of_its_own():
    names = [entry.name for entry in entries()]
    assert len(names) == len(set(names)) >= 40
    assert {entry.module for entry in entries()} == {*OWN, *OTHERS}


def test_a_file_of_another_framework_says_what_it_needs(tmp_path):
    entry = next(e for e in entries() if e.module == "keras_files")
    reason = make(entry, tmp_path / "x", {}, 1.0)
    assert reason == "needs --python keras_files=PYTHON with tensorflow-cpu tf2onnx"
    assert not (tmp_path / "x").exists()


class Head(nn.Module):
    """Whatever follows a layer: linear, or curved."""

    def __init__(self, curved):
        super().__init__()
        self.linear, self.curved = nn.Linear(6, 4), curved

    def forward(self, x):
        x = torch.tanh(x) * x if self.curved else x
        return self.linear(x.mean((2, 3)))


@pytest.mark.parametrize("curved", [False, True])
@pytest.mark.parametrize("one_image", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_differences_give_the_gradients_mean(curved, one_image, channels_last):
    torch.manual_seed(0)
    head = Head(curved).double()
    nodes = [helper.make_node("Transpose", ["f"], ["t"], perm=[0, 3, 1, 2])]
    nodes = nodes if channels_last else [helper.make_node("Identity", ["f"], ["t"])]
    if curved:
        nodes += [
            helper.make_node("Tanh", ["t"], ["u"]),
            helper.make_node("Mul", ["u", "t"], ["v"]),
        ]
    target = [1, -1] if one_image else [0, -1]
    nodes += [
        helper.make_node("GlobalAveragePool", ["v" if curved else "t"], ["p"]),
        helper.make_node("Reshape", ["p", "target"], ["q"]),
        helper.make_node("Gemm", ["q", "w", "b"], ["y"], transB=1),
    ]
    stored = {
        "w": head.linear.weight.detach().float().numpy(),
        "b": head.linear.bias.detach().float().numpy(), "target": np.array(target),
    }  # fmt: skip
    first = helper.make_node("Relu", ["x"], ["f"])
    graph = helper.make_graph(
        [first, *nodes], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    tail = differences.Tail(model, "f", "y")
    features = torch.randn(1, 6, 3, 5).relu().double().requires_grad_()
    with torch.no_grad():
        head.linear.weight.copy_(head.linear.weight.float())  # as the file has it
    head(features)[0, 2].backward()
    value = features.detach().numpy()
    value = value.transpose(0, 2, 3, 1) if channels_last else value
    found = differences.weights(tail, value, 3 if channels_last else 1, 2)
    np.testing.assert_allclose(found, features.grad.mean((2, 3))[0].numpy(), rtol=1e-4, atol=1e-8)


def test_a_tail_that_needs_the_image_is_no_tail():
    nodes = [helper.make_node("Relu", ["x"], ["f"]), helper.make_node("Add", ["f", "x"], ["y"])]
    info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy"]
    model = helper.make_model(helper.make_graph(nodes, "g", info[:1], info[1:]))
    with pytest.raises(ValueError, match="needs the image"):
        differences.Tail(model, "f", "y")


def test_probabilities_are_compared_as_logits():
    logits = np.array([[5.0, 1.0, -20.0]])
    shares = np.exp(logits) / np.exp(logits).sum()
    one, other = check._comparable(logits, shares, "softmax")
    np.testing.assert_allclose(one, other, rtol=1e-6)
    # An error that probabilities would hide.
    wrong, other = check._comparable(logits + np.array([[0, 0, 1.0]]), shares, "softmax")
    assert check._error(wrong, other) > 0.01


RESULT = {
    "name": "a", "status": "agrees", "reason": "", "source": "torch 2", "opset": 13, "nodes": 5,
    "size": [64, 64], "layer": "/relu", "layout": [8, 2, 2], "methods": ["gradcam", "cam"],
    "output": 1e-6, "features": 2e-6, "maps": 3e-6, "reference": "framework", "note": "",
}  # fmt: skip


def test_the_section_is_replaced_and_the_rest_stays(tmp_path):
    page = tmp_path / "coverage.md"
    page.write_text("# Which networks work\n\ntable\n\n")
    bad = {**RESULT, "name": "b", "status": "refused", "reason": "ModelError: NonZero at n"}
    report.write(page, [RESULT, bad], ["c"])
    report.write(page, [RESULT, bad], ["c"])
    text = page.read_text()
    assert text.count("# Which networks work") == text.count(report.HEADING) == 1
    assert "1 of the 2 files (50%)" in text
    assert "- b (refused): ModelError: NonZero at n" in text
    assert "counted nowhere: c" in text
    assert "| a | torch 2 | 13 | 5 | 64x64 | /relu | 8x2x2 | 1.0e-06 | 2.0e-06 | 3.0e-06 |" in text
    assert report.section_of(page) == text[text.index(report.HEADING) :]


@pytest.mark.slow
@pytest.mark.parametrize("opset", [12, None])
def test_a_file_goes_all_the_way(tmp_path, monkeypatch, opset):
    network = torch_files.Network("own/yolo_cls", "head", opset, 64)
    monkeypatch.setitem(torch_files.NETWORKS, "net", network)
    torch_files.write("net", tmp_path)
    result = check.check("net", tmp_path)
    assert (result["status"], result["reference"], result["reason"]) == ("agrees", "framework", "")
    assert result["methods"] == ["gradcam", "cam"]
    assert max(result["output"], result["features"], result["maps"]) < 1e-4
    assert result["empty"] < common.COUNT
    # Another map is found out.
    arrays = dict(np.load(tmp_path / common.REFERENCE))
    arrays["cams"] = arrays["cams"] ** 1.01
    np.savez(tmp_path / common.REFERENCE, **arrays)
    assert check.check("net", tmp_path)["status"] == "differs"


@pytest.mark.slow
def test_a_zoo_file_agrees_with_differences(tmp_path):
    shipped_files.write_zoo("squeezenet", tmp_path)
    result = check.check("zoo", tmp_path)
    assert (result["status"], result["reference"]) == ("agrees", "differences"), result["reason"]
    assert json.loads((tmp_path / common.ABOUT).read_text())["size"] == [224, 224]
