"""The last linear layer of a file, however it is written: found, its maps, new classes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from sigcam.classifier.build import build_classifier, replace_classes
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.last_layer import last_layer
from sigcam.classifier.onnx.inspection import inspect_file
from sigcam.classifier.onnx.load import read_classifier
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions
from tests.support import oracle
from tests.support.onnx_heads import (
    BIAS,
    COLUMNS,
    FLAT,
    HEADS,
    SIZE,
    C,
    N,
    W,
    bias_of,
    headed,
    node,
    write,
)

CHANNELS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def dual_of(model):
    return DualBranch(model, input_size=SIZE)


@pytest.mark.parametrize("name", HEADS)
def test_the_layer_is_found_under_its_own_names(tmp_path, name):
    found = inspect_file(write(tmp_path, name))
    assert found.problems == ()
    assert (found.averages, found.last.weight) == (True, "w")
    assert found.last.bias == ("b" if "b" in HEADS[name][2] else None)
    for head in (found.dual.softmax_head, found.dual.softmax_head.fresh_copy(0)):
        assert set(head.named_tensors()) == {"w", "b"} & {"w", *HEADS[name][2]}
    weight, bias = found.dual.softmax_head.linear_weights()
    torch.testing.assert_close(weight, torch.from_numpy(W))
    torch.testing.assert_close(bias, torch.from_numpy(bias_of(name)))
    layers = [step.call.name for step in found.read.model.steps]
    assert {"conv", "relu", "pool", "fc"} <= set(layers)
    # The file's own graph is held as it is.
    held = [n.SerializeToString() for n in found.read.model.held.model.graph.node]
    assert held == [n.SerializeToString() for n in headed(name).graph.node]


@pytest.mark.parametrize("name", HEADS)
def test_a_sigmoid_branch_begins_as_the_softmax_one_less_the_mean(tmp_path, name):
    dual = dual_of(read_classifier(write(tmp_path, name)).model)
    fresh = dual.softmax_head.fresh_copy(0)
    fresh.start_from(dual.softmax_head)
    weight, bias = fresh.linear_weights()
    np.testing.assert_allclose(weight.detach(), W - W.mean(0), atol=1e-6)
    np.testing.assert_allclose(bias.detach(), bias_of(name) - bias_of(name).mean(), atol=1e-6)


@pytest.mark.parametrize("name", HEADS)
def test_new_classes(tmp_path, name):
    model = read_classifier(write(tmp_path, name)).model
    new = replace_classes(model, 3)
    assert new.get_parameter("w").shape[:2] == (3, N)
    weight, _ = dual_of(new).softmax_head.linear_weights()
    assert 0 < float(weight.abs().max()) <= 1 / np.sqrt(N)
    assert new(torch.zeros(2, 3, *SIZE)).shape == (2, 3)
    assert model(torch.zeros(2, 3, *SIZE)).shape == (2, C)
    assert torch.equal(new.get_parameter("kernel"), model.get_parameter("kernel"))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cam", "gradcam"])
@pytest.mark.parametrize("name", HEADS)
def test_the_exported_map_is_the_definition_s(tmp_path, name, method):
    dual = build_classifier(str(write(tmp_path, name)), **CHANNELS)
    out = tmp_path / "out.onnx"
    options = {"purpose": "localise"} if method == "cam" else {"nwc": False}
    export_artifact(dual, out, ExportOptions(method=method, branch="softmax", **options))
    images = np.random.default_rng(0).integers(0, 255, (2, *SIZE, 3)).astype(np.uint8)
    session = ort.InferenceSession(str(out))
    logits, ids, cams = session.run(["logits", "class_ids_out", "cams"], {"image": images})
    pixels = ((images / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    F = features(headed(name), pixels)
    want = oracle.linear(oracle.global_average_pool(F), W, bias_of(name))
    np.testing.assert_allclose(logits, want, atol=1e-5 * np.abs(want).max())
    weights = oracle.cam_weights(W, ids) / (1 if method == "cam" else F[0, 0].size)
    maps = oracle.cams(F, weights, nwc=method == "cam")
    np.testing.assert_allclose(cams, maps, atol=1e-5 * np.abs(maps).max())


def features(model, pixels):
    """The value of the Relu in ONNX Runtime, float32 [B, N, h, w]."""
    takes_last = model.graph.input[0].type.tensor_type.shape.dim[3].dim_value == 3
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    cut.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, None))
    session = ort.InferenceSession(cut.SerializeToString())
    pixels = pixels.transpose(0, 2, 3, 1) if takes_last else pixels
    return session.run(["r"], {"x": np.ascontiguousarray(pixels)})[0]


def changed(tmp_path, nodes, stored, name="MatMul without a bias", classes=C):
    """Writes a classifier with other nodes behind its convolution."""
    model = headed(name)
    del model.graph.node[2:], model.graph.initializer[1:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in stored.items())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = classes
    path = tmp_path / "changed.onnx"
    onnx.save(model, str(path))
    return read_classifier(path).model


PRODUCT = node("MatMul", "f w", "m", "fc")


@pytest.mark.parametrize(
    ("nodes", "stored"),
    [
        # What is added behind a softmax is no bias, nor is one number or the image's own value.
        ([PRODUCT, node("Softmax", "m", "n", "squash"), node("Add", "n b", "y", "sum")],
         {"w": COLUMNS, "b": BIAS}),
        ([PRODUCT, node("Add", "m m", "y", "sum")], {"w": COLUMNS}),
        # Two users of the matrix, or of the product.
        ([node("Gemm", "f w", "m", "fc"), node("Gemm", "m u", "n", "f2"),
          node("Gemm", "n w", "o", "f3"), node("Gemm", "o v", "y", "f4")],
         {"w": np.eye(N, dtype=np.float32), "u": np.eye(N, dtype=np.float32), "v": COLUMNS}),
        ([PRODUCT, node("Add", "m b", "n", "sum"), node("Mul", "m n", "y", "times")],
         {"w": COLUMNS, "b": BIAS}),
    ],
)  # fmt: skip
def test_what_is_no_linear_layer_stays_as_it_is(tmp_path, nodes, stored):
    # Reading compares with the file in ONNX Runtime.
    model = changed(tmp_path, [*FLAT, *nodes], stored)
    kept = [step.call.name for step in model.steps]
    assert [n.name for n in nodes] == kept[-len(nodes) :]


def test_a_bias_of_one_logit_is_trained(tmp_path):
    nodes = [*FLAT, PRODUCT, node("Add", "m b", "n", "sum"), node("Sigmoid", "n", "y", "squash")]
    stored = {"w": COLUMNS[:, :1].copy(), "b": np.array([0.7], np.float32)}
    model = changed(tmp_path, nodes, stored, classes=1)
    dual = dual_of(model)
    assert set(dict(dual.sigmoid_head.classifier.named_parameters())) == {"w", "b"}
    assert last_layer(dual.softmax_head.classifier.graph).negated
    weight, bias = dual.softmax_head.linear_weights()
    np.testing.assert_allclose(weight, np.concatenate([-W[:1], W[:1]]))
    np.testing.assert_allclose(bias, [-0.7, 0.7], rtol=1e-6)
