"""The sigmoid branch in 8 bits: what changes, by how much, and what mustn't."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.convert.quantize.int8_head import quantize_sigmoid_head, quantized
from sigcam.core.artifact import head_path
from sigcam.core.errors import ExportError
from sigcam.core.spec import METADATA_KEY, ClassSelection, Spec
from sigcam.export import ExportOptions, export_artifact
from tests.support.methods import WITH_WEIGHTS
from tests.support.tiny import tiny_spec

pytestmark = pytest.mark.slow

SIZE, WIDTHS = 20, (200, 48, 40, 6)
SMALLEST = 300
"""Takes the MLP's matrices and the pooled one (48 x 8), and not the last layer's (6 x 40)."""

FUSES = tuple(int(n) for n in version("onnxruntime").split(".")[:2]) >= (1, 32)
"""Whether this is a version in which the fusion was seen."""


class Mlp(nn.Sequential):
    """As VGG ends: features, flatten, three linear layers."""

    def __init__(self):
        a, b, c, d = WIDTHS
        super().__init__(
            nn.Conv2d(3, 8, 4, stride=4), nn.ReLU(), nn.Flatten(), nn.Linear(a, b), nn.ReLU(),
            nn.Linear(b, c), nn.ReLU(), nn.Linear(c, d),
        )  # fmt: skip


def make_dual(net=Mlp):
    torch.manual_seed(5)
    dual = DualBranch(net(), input_size=SIZE, architecture="mlp")
    with torch.no_grad():  # another branch, whose values keep their size from layer to layer
        for tensor in dual.sigmoid_head.parameters():
            fan_in = tensor.shape[-1] if tensor.ndim == 2 else 100
            tensor.copy_(torch.randn_like(tensor) * (2 / fan_in) ** 0.5)
    return dual


def run(model, feeds, exactly=False):
    """Outputs by name; `exactly` keeps the products in float32."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if exactly:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def images(batch):
    shape = (batch, SIZE, SIZE, 3)
    return np.random.default_rng(batch).integers(0, 256, shape, dtype=np.uint8)


def spec_of(model):
    return Spec.from_json({e.key: e.value for e in model.metadata_props}[METADATA_KEY])


def convert(model):
    """Converted, checked, with the original left as it was."""
    before = model.SerializeToString(deterministic=True)
    converted = quantize_sigmoid_head(model, spec_of(model).branch, smallest=SMALLEST)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(converted, full_check=True)
    assert [(o.domain, o.version) for o in converted.opset_import] == [("", 18)]
    assert {node.domain for node in converted.graph.node} == {""}
    return converted


def matrices(model, kind):
    """Names and shapes of the matrices of one type."""
    return {
        t.name: tuple(t.dims)
        for t in model.graph.initializer
        if t.data_type == kind and len(t.dims) == 2
    }


def close(found, expected, relative):
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


@pytest.fixture(scope="module", params=[name for name in WITH_WEIGHTS if name != "cam"])
def files(request, tmp_path_factory):
    """An artifact with any number of classes; its head graph where that has other matrices."""
    path = tmp_path_factory.mktemp("head") / "m.onnx"
    has_head = request.param in ("layercam", "finercam")
    export_artifact(
        make_dual(),
        path,
        ExportOptions(
            method=request.param,
            classes=ClassSelection("input"),
            features=True,
            head_graph=has_head,
        ),
    )
    return [onnx.load(path), *([onnx.load(head_path(path))] if has_head else [])]


@pytest.mark.parametrize(("batch", "K"), [(1, 1), (3, 4)])
def test_cams_stay_close_and_logits_equal(files, batch, K):
    ranks = np.tile(-1 - np.arange(K), (batch, 1))
    feeds = {"image": images(batch), "class_ids": ranks}
    before, after = run(files[0], feeds), run(convert(files[0]), feeds)
    for name in ("logits", "class_ids_out", "features"):
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    # A single logit may lie near zero, so that of all classes is the yardstick.
    feeds["class_ids"] = np.tile(np.arange(WIDTHS[-1]), (batch, 1))
    scale = np.abs(run(files[0], feeds)["evidence_logits"]).max()
    assert np.abs(after["evidence_logits"] - before["evidence_logits"]).max() < 0.05 * scale
    assert np.abs(before["cams"]).max() > 0
    # Not nearer to 1: one of the forty hidden units that crosses zero moves the gradient.
    assert np.corrcoef(after["cams"].ravel(), before["cams"].ravel())[0, 1] > 0.95


def test_the_head_graph_gives_the_cams_of_the_artifact(files):
    if len(files) == 1:
        pytest.skip("no head graph was made for this method")
    feeds = {"image": images(2), "class_ids": np.array([[0, 3, 5], [1, 2, 4]])}
    first = run(convert(files[0]), feeds, exactly=True)
    head = convert(files[1])
    feeds = {"features": first["features"], "class_ids": feeds["class_ids"]}
    second = run(head, feeds, exactly=True)
    for name in ("cams", "evidence_logits"):
        close(second[name], first[name], 1e-5)


def test_only_the_sigmoid_branch_is_in_8_bits(files):
    for model in files:
        converted = convert(model)
        int8 = matrices(converted, onnx.TensorProto.INT8)
        assert int8
        assert not any("softmax" in name for name in int8)
        left = matrices(converted, onnx.TensorProto.FLOAT)
        large = {name for name, (a, b) in left.items() if a * b >= SMALLEST}
        assert all("softmax" in name for name in large)
        # The artifact has the softmax branch, and finercam's head graph too.
        assert bool(large) == any("softmax" in name for name in matrices(model, 1))


@pytest.mark.skipif(not FUSES, reason="ONNX Runtime before 1.32")
def test_every_product_is_fused(files, tmp_path):
    converted = convert(files[0])
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(converted.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node]
    before = [node.op_type for node in converted.graph.node]
    assert "DequantizeLinear" not in kinds
    assert kinds.count("MatMulNBits") == before.count("DequantizeLinear") >= 4


def test_the_spec_stays(files):
    assert spec_of(convert(files[0])) == spec_of(files[0])


def test_nothing_is_converted_twice(files):
    with pytest.raises(ExportError, match="at least 300 entries"):
        quantize_sigmoid_head(convert(files[0]), smallest=SMALLEST)


# --- against Grad-CAM written out in NumPy -----------------------------------------------


def rounded(matrix):
    """As int8 holds it, a scale for each column."""
    out = np.array(matrix, np.float64)
    for column in out.T:
        step = np.abs(column).max() / 127
        column[:] = np.round(column / step) * step
    return out


def reference(dual, features, class_id):
    """Grad-CAM with clamped weights, and the evidence logit, of one image [N, h, w]."""
    layers = [m for m in dual.sigmoid_head.modules() if isinstance(m, nn.Linear)]
    if not layers:  # the head's tensors without its modules
        tensors = [t.detach().double().numpy() for t in dual.sigmoid_head.parameters()]
    else:
        tensors = [t.detach().double().numpy() for m in layers for t in (m.weight, m.bias)]
    w1, b1, w2, b2, w3, b3 = tensors
    h1 = np.maximum(features.ravel() @ rounded(w1.T) + b1, 0)
    h2 = np.maximum(h1 @ rounded(w2.T) + b2, 0)
    g2 = w3[class_id] * (h2 > 0)
    g1 = (g2 @ rounded(w2)) * (h1 > 0)
    pooled = w1.reshape(len(w1), len(features), -1).mean(2)
    weights = np.maximum(g1 @ rounded(pooled), 0)
    return np.maximum(np.tensordot(weights, features, 1), 0), h2 @ w3[class_id] + b3[class_id]


@pytest.mark.parametrize("exactly", [True, False])
def test_gradcam_of_the_rounded_weights(tmp_path, exactly):
    dual = make_dual()
    path = tmp_path / "m.onnx"
    export_artifact(
        dual,
        path,
        ExportOptions(
            method="gradcam", purpose="localise", classes=ClassSelection("topk", 2), features=True
        ),
    )
    found = run(convert(onnx.load(path)), {"image": images(3)}, exactly)
    wanted = [
        [reference(dual, F.astype(np.float64), i) for i in ids]
        for F, ids in zip(found["features"], found["class_ids_out"], strict=True)
    ]
    cams = np.array([[cam for cam, _ in row] for row in wanted])
    evidence = np.array([[logit for _, logit in row] for row in wanted])
    if exactly:
        close(found["cams"], cams, 1e-5)
        close(found["evidence_logits"], evidence, 1e-5)
        return
    # The fused product rounds its other factor to 8 bits too, so a hidden unit may cross zero.
    close(found["evidence_logits"], evidence, 0.05)
    assert np.corrcoef(found["cams"].ravel(), cams.ravel())[0, 1] > 0.95


def test_an_artifact_of_the_softmax_branch_keeps_its_cams(tmp_path):
    path = tmp_path / "m.onnx"
    export_artifact(
        make_dual(), path, ExportOptions(method="gradcam", branch="softmax", head_graph=True)
    )
    model = onnx.load(path)
    feeds = {"image": images(2)}
    before, after = run(model, feeds), run(convert(model), feeds)
    for name in before.keys() - {"evidence_logits"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    assert (after["evidence_logits"] != before["evidence_logits"]).any()
    close(after["evidence_logits"], before["evidence_logits"], 0.03)
    head = onnx.load(head_path(path))
    feeds = {"features": before["features"], "class_ids": before["class_ids_out"]}
    first, second = run(head, feeds), run(convert(head), feeds)
    for name in ("scores", "cams", "cam_weights"):
        np.testing.assert_array_equal(second[name], first[name], err_msg=name)


# --- any shape ---------------------------------------------------------------------------


def product(weights, bias, transposed):
    """x [B, K] to `logits` by a matrix of its own, and to `evidence_logits` by `weights`."""
    K, N = weights.shape
    stored = {"own": weights * 2, "w": weights.T if transposed else weights, "bias": bias}
    nodes = [
        helper.make_node("MatMul", ["x", "own"], ["logits"]),
        helper.make_node("Gemm", ["x", "w", "bias"], ["evidence_logits"], transB=int(transposed)),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "product",
        [value("x", onnx.TensorProto.FLOAT, ["B", K])],
        [value(n, onnx.TensorProto.FLOAT, ["B", N]) for n in ("logits", "evidence_logits")],
        [numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in stored.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {METADATA_KEY: tiny_spec().to_json(), "other": "x"})
    return model


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 5),
    K=st.integers(1, 300),
    N=st.integers(1, 70),
    transposed=st.booleans(),
    spread=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 999),
)
def test_a_product_of_any_shape(B, K, N, transposed, spread, seed):
    rng = np.random.default_rng(seed)
    channels = np.exp(spread * rng.normal(size=N))  # output channels of different size
    weights = (rng.normal(size=(K, N)) * channels).astype(np.float32)
    bias = rng.normal(size=N).astype(np.float32)
    x = rng.normal(size=(B, K)).astype(np.float32)
    model = product(weights, bias, transposed)
    converted = quantize_sigmoid_head(model, smallest=1)
    assert [e.key for e in converted.metadata_props] == [METADATA_KEY, "other"]
    found, before = run(converted, {"x": x}), run(model, {"x": x})
    np.testing.assert_array_equal(found["logits"], before["logits"])
    exact = x.astype(np.float64) @ rounded(weights) + bias
    # x is rounded to 8 bits in blocks: half a step of at most max|x| / 127 an entry.
    bound = np.abs(x).max() / 254 * np.abs(weights.astype(np.float64)).sum(0)
    assert (
        np.abs(found["evidence_logits"] - exact) <= 1.02 * bound + 1e-4 * np.abs(exact) + 1e-5
    ).all()


@given(K=st.integers(1, 40), N=st.integers(1, 9), seed=st.integers(0, 999))
def test_rounding_is_to_nearest(K, N, seed):
    rng = np.random.default_rng(seed)
    matrix = (rng.normal(size=(K, N)) * 10.0 ** rng.integers(-9, 9, N)).astype(np.float32)
    matrix[:, rng.random(N) < 0.2] = 0
    levels, scale = quantized(matrix)
    assert levels.dtype == np.int8
    assert levels.shape == (K, N) and scale.shape == (N,)
    assert (scale > 0).all() and levels.min() >= -127
    off = np.abs(levels * scale.astype(np.float64) - matrix)
    assert (off <= scale * 0.5001).all()


# --- refusals ----------------------------------------------------------------------------


def test_a_linear_head_is_refused(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 90)
    )
    export_artifact(DualBranch(net, input_size=SIZE), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="use the artifact as it is"):
        quantize_sigmoid_head(onnx.load(tmp_path / "m.onnx"), smallest=1)


def test_a_small_head_is_refused_by_default():
    model = product(np.ones((100, 60), np.float32), np.ones(60, np.float32), False)
    with pytest.raises(ExportError, match="at least 1,048,576 entries"):
        quantize_sigmoid_head(model)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(wrong):
    weights = np.ones((4, 3), np.float32)
    weights[1, 2] = wrong
    model = product(weights, np.ones(3, np.float32), False)
    with pytest.raises(ExportError, match="w has some that aren't"):
        quantize_sigmoid_head(model, smallest=1)
