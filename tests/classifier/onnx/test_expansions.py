"""Operators of other domains, and those on integers, become ONNX's own with the same values."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from sigcam.classifier.onnx.expansions import expand
from sigcam.classifier.onnx.quantised_graph import float_path
from sigcam.classifier.onnx.quantised_operators import expand_quantised
from sigcam.classifier.onnx.reader import OnnxGraph

MICROSOFT, ML = "com.microsoft", "ai.onnx.ml"


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(nodes, shape, stored, opset=17, output="y"):
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=output)],
        [onnx.numpy_helper.from_array(v, n) for n, v in stored.items()],
    )  # fmt: skip
    domains = {"": opset, MICROSOFT: 1, ML: 3}
    imports = [helper.make_opsetid(d, v) for d, v in domains.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def run(model, x, output="y"):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    data = model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return session.run([output], {"x": x})[0]


def check(model, x, opset=17, output="y"):
    """The expanded graph is valid by itself, and gives the same there and when it is read."""
    expected = run(model, x, output)
    assert expand(model)
    assert not any(node.domain for node in model.graph.node)
    np.testing.assert_allclose(run(model, x, output), expected, rtol=1e-5, atol=1e-6)
    read = OnnxGraph(model.graph, opset, "x", output)
    found = read(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    "own",
    [
        {"activation": "Relu"},
        {"activation": "Tanh", "strides": [2, 1], "pads": [0, 1, 2, 1]},
        {"activation": "LeakyRelu", "activation_params": [0.3]},
        {"activation": "Clip", "activation_params": [-0.2, 0.5]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4], "auto_pad": "SAME_UPPER"},
    ],
)
@pytest.mark.parametrize("inputs", [["x", "w"], ["x", "w", "b"], ["x", "w", "b", "z"]])
def test_a_convolution_with_its_activation(own, inputs, opset):
    stored = {"w": normal(4, 3, 3, 3), "b": normal(4), "z": normal(2, 4, 5, 6, seed=1)}
    if inputs[-1] == "z" and ("pads" in own or own["activation"] == "LeakyRelu"):
        pytest.skip("another shape, or not what ONNX Runtime computes together")
    if "auto_pad" not in own and "pads" not in own:
        own = {**own, "pads": [1, 1, 1, 1]}
    node = helper.make_node("FusedConv", inputs, ["y"], "node", domain=MICROSOFT, **own)
    stored = {n: v for n, v in stored.items() if n in inputs}
    check(model_of([node], (2, 3, 5, 6), stored, opset), normal(2, 3, 5, 6), opset)


@pytest.mark.parametrize(
    ("operator", "inputs", "own"),
    [
        ("FusedGemm", ["x", "w", "b"], {"activation": "Relu", "alpha": 0.5, "beta": 2.0}),
        ("FusedGemm", ["x", "t", "b"], {"activation": "LeakyRelu", "activation_alpha": 0.2,
                                        "transB": 1}),
        ("FusedMatMul", ["x", "w"], {"alpha": 0.3}),
        ("FusedMatMul", ["x", "t"], {"transB": 1}),
        ("FusedMatMul", ["x", "x"], {"transA": 1, "alpha": 2.0}),
        ("Gelu", ["x"], {}),
        ("BiasGelu", ["x", "c"], {}),
        ("FastGelu", ["x", "c"], {}),
        ("FastGelu", ["x"], {}),
        ("QuickGelu", ["x"], {}),
        ("QuickGelu", ["x"], {"alpha": 1.0}),
    ],
)  # fmt: skip
def test_products_and_activations(operator, inputs, own):
    stored = {"w": normal(6, 4), "t": normal(4, 6), "b": normal(4), "c": normal(6)}
    node = helper.make_node(operator, inputs, ["y"], "node", domain=MICROSOFT, **own)
    stored = {n: v for n, v in stored.items() if n in inputs}
    check(model_of([node], (5, 6), stored), 2 * normal(5, 6))


@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0), (1, 1)])
@pytest.mark.parametrize("apart", [(0, 1), (1, 0), (1, 1)])
def test_products_whose_batch_is_between_the_matrices_axes(turned, apart):
    sides = []
    for (rows, columns), swapped, between in zip(((4, 5), (5, 6)), turned, apart, strict=True):
        rows, columns = (columns, rows) if swapped else (rows, columns)
        sides.append((rows, 2, 3, columns) if between else (2, 3, rows, columns))
    node = helper.make_node(
        "FusedMatMul", ["x", "w"], ["y"], "node", domain=MICROSOFT, alpha=0.5, transA=turned[0],
        transB=turned[1], transBatchA=apart[0], transBatchB=apart[1],
    )  # fmt: skip
    x = normal(*sides[0])
    check(model_of([node], x.shape, {"w": normal(*sides[1], seed=1)}), x)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("output", ["y", "sum"])
def test_a_sum_and_its_norm(bias, output):
    stored = {"skip": normal(2, 5, 6, seed=1), "g": normal(6), "b": normal(6), "c": normal(6)}
    inputs = ["x", "skip", "g", "b", *(["c"] if bias else [])]
    node = helper.make_node("SkipLayerNormalization", inputs, ["y", "", "", "sum"], "node",
                            domain=MICROSOFT, epsilon=1e-4)  # fmt: skip
    check(model_of([node], (2, 5, 6), stored, output=output), normal(2, 5, 6), output=output)


def classifier(post, labels=4, multi_class=1):
    return helper.make_node(
        "LinearClassifier", ["x"], ["label", "p"], "node", domain=ML,
        coefficients=normal(labels * 6).tolist(), intercepts=normal(labels).tolist(),
        classlabels_ints=list(range(labels)), post_transform=post, multi_class=multi_class,
    )  # fmt: skip


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("output", ["p", "label"])
def test_scikit_learns_linear_classifiers(post, output):
    model = model_of([classifier(post)], (3, 6), {}, output=output)
    check(model, normal(3, 6, seed=2), output=output)


@pytest.mark.parametrize("norm", ["L1", "L2"])
@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("opset", [13, 18])
def test_scikit_learns_normalisations(norm, post, opset):
    after = helper.make_node("Normalizer", ["p"], ["y"], "norm", domain=ML, norm=norm)
    check(model_of([classifier(post), after], (3, 6), {}, opset), normal(3, 6, seed=2), opset)


def test_the_norm_behind_a_softmax_goes(tmp_path):
    """So that the softmax can be taken off; its rows sum to 1 already."""
    after = helper.make_node("Normalizer", ["p"], ["y"], "norm", domain=ML, norm="L1")
    model = model_of([classifier("SOFTMAX"), after], (3, 6), {})
    expand(model)
    assert [n.op_type for n in model.graph.node if n.output[0] == "y"] == ["Identity"]


def test_scikit_learns_scaler_and_regressor():
    nodes = [
        helper.make_node("Scaler", ["x"], ["s"], "scaler", domain=ML,
                         offset=normal(6).tolist(), scale=normal(6, seed=1).tolist()),
        helper.make_node("LinearRegressor", ["s"], ["y"], "node", domain=ML, targets=3,
                         coefficients=normal(18).tolist(), intercepts=normal(3).tolist()),
    ]  # fmt: skip
    check(model_of(nodes, (3, 6), {}), normal(3, 6, seed=2))


@pytest.mark.parametrize(
    "node",
    [
        helper.make_node("FusedConv", ["x", "w"], ["y"], domain=MICROSOFT, activation="Softsign"),
        helper.make_node("Normalizer", ["x"], ["y"], domain=ML, norm="MAX"),
        helper.make_node("TreeEnsembleClassifier", ["x"], ["l", "y"], domain=ML),
    ],
)
def test_other_forms_stay_for_the_checks_to_name(node):
    model = model_of([node], (1, 6), {"w": normal(6, 6)})
    before = model.SerializeToString()
    assert expand(model) == []
    assert model.SerializeToString() == before


def test_the_new_node_keeps_the_name_of_the_old_one():
    node = helper.make_node("FusedConv", ["x", "w"], ["y"], "conv7", domain=MICROSOFT,
                            activation="Relu")  # fmt: skip
    model = model_of([node], (1, 3, 5, 5), {"w": normal(4, 3, 3, 3)})
    expand(model)
    assert [(n.op_type, n.name) for n in model.graph.node if n.output[0] == "y"] == [
        ("Relu", "conv7")
    ]


FIGURES = {"xs": np.float32(0.02), "xz": np.int8(3), "ws": np.float32(0.01), "wz": np.int8(0),
           "ys": np.float32(0.05), "yz": np.int8(-5)}  # fmt: skip


def quantised(nodes, shape, stored):
    """An integer graph between the rounding of its input and the inverse of its output's."""
    first = helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["qx"], "first")
    last = helper.make_node("DequantizeLinear", ["qy", "ys", "yz"], ["y"], "last")
    stored = {**{n: np.asarray(v) for n, v in FIGURES.items()}, **stored}
    return model_of([first, *nodes, last], shape, stored, 13)


def whole(*shape, seed=0):
    return np.random.default_rng(seed).integers(-90, 90, shape).astype(np.int8)


SIDE = ["qx", "xs", "xz"]
OTHER = ["w", "ws", "wz"]
BACK = ["ys", "yz"]


@pytest.mark.parametrize(
    ("operator", "inputs", "domain", "shape", "stored", "own"),
    [
        ("QLinearConv", [*SIDE, *OTHER, *BACK, "b"], "", (2, 3, 6, 6),
         {"w": whole(4, 3, 3, 3), "b": np.arange(4, dtype=np.int32) * 500},
         {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("QLinearConv", ["qx", "xs", "xz", "w", "wc", "wcz", *BACK], "", (2, 3, 6, 6),
         {"w": whole(4, 3, 3, 3), "wc": np.linspace(0.005, 0.02, 4).astype(np.float32),
          "wcz": np.zeros(4, np.int8)}, {}),
        ("QLinearMatMul", [*SIDE, *OTHER, *BACK], "", (5, 6), {"w": whole(6, 4)}, {}),
        ("QGemm", [*SIDE, *OTHER, "b", *BACK], MICROSOFT, (5, 6),
         {"w": whole(4, 6), "b": np.arange(4, dtype=np.int32) * 300}, {"transB": 1}),
        ("QLinearAdd", [*SIDE, *OTHER, *BACK], MICROSOFT, (2, 6), {"w": whole(2, 6)}, {}),
        ("QLinearMul", [*SIDE, *SIDE, *BACK], MICROSOFT, (2, 6), {}, {}),
        ("QLinearGlobalAveragePool", [*SIDE, *BACK], MICROSOFT, (2, 3, 4, 4), {},
         {"channels_last": 0}),
        ("QLinearAveragePool", [*SIDE, *BACK], MICROSOFT, (2, 3, 4, 4), {},
         {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("QLinearSigmoid", [*SIDE, *BACK], MICROSOFT, (2, 6), {}, {}),
        ("QLinearLeakyRelu", [*SIDE, *BACK], MICROSOFT, (2, 6), {}, {"alpha": 0.2}),
        ("QLinearConcat", [*BACK, *SIDE, *SIDE], MICROSOFT, (2, 6), {}, {"axis": 1}),
    ],
)  # fmt: skip
def test_operators_on_integers(operator, inputs, domain, shape, stored, own):
    """The float form is within the rounding of the integer one, and has no integers left."""
    node = helper.make_node(operator, inputs, ["qy"], "node", domain=domain, **own)
    model = quantised([node], shape, stored)
    x = normal(*shape)
    expected = run(model, x)
    expand_quantised(model)
    assert not any(n.op_type.startswith(("QLinear", "QGemm")) for n in model.graph.node)
    np.testing.assert_allclose(run(model, x), expected, atol=1.01 * FIGURES["ys"])
    assert float_path(model, 13) == 2
    read = OnnxGraph(model.graph, 13, "x", "y")
    images = torch.from_numpy(x).requires_grad_()
    found = read(images)
    found.sum().backward()
    assert images.grad is not None
    # Two roundings apart: of the input and of the output.
    spread = float(np.abs(expected).max())
    assert float(np.abs(found.detach().numpy() - expected).max()) < 0.15 * spread + 0.05


def test_what_moves_integers_becomes_float_too():
    nodes = [
        helper.make_node("MaxPool", ["qx"], ["m"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["m", "shape"], ["r"], "flat"),
        helper.make_node("QLinearMatMul", ["r", "xs", "xz", *OTHER, *BACK], ["qy"], "node"),
    ]
    stored = {"shape": np.array([0, -1]), "w": whole(12, 4)}
    model = quantised(nodes, (2, 3, 4, 4), stored)
    x = normal(2, 3, 4, 4)
    expected = run(model, x)
    expand_quantised(model)
    np.testing.assert_allclose(run(model, x), expected, atol=1.01 * FIGURES["ys"])
    float_path(model, 13)
    assert {"QuantizeLinear"}.isdisjoint(n.op_type for n in model.graph.node)


def test_one_rounding_for_several_users_is_one_clip():
    """onnxscript's optimiser can't write two Clips of one value."""
    pair = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["a"]),
        helper.make_node("DequantizeLinear", ["q", "xs", "xz"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    model = model_of(pair, (2, 6), {n: np.asarray(FIGURES[n]) for n in ("xs", "xz")}, 13)
    x = 3 * normal(2, 6)
    assert float_path(model, 13) == 1
    assert sorted(n.op_type for n in model.graph.node) == ["Add", "Clip", "Identity"]
    low, high = (-128 - 3) * 0.02, (127 - 3) * 0.02
    np.testing.assert_allclose(run(model, x), 2 * np.clip(x, low, high), rtol=1e-5)
