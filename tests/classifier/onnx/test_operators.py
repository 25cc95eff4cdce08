"""Each operator gives what ONNX Runtime gives, over attributes and opsets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from sigcam.classifier.onnx.operators.table import TABLE
from sigcam.classifier.onnx.reader import OnnxGraph


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def ints(*values):
    return np.array(values, dtype=np.int64)


def graph_of(operator, x, constants, opset, attributes, outputs=1, output=0):
    """One node as a model: the image, then constants (None: left out)."""
    names = ["x", *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, name="node", **attributes)
    kinds = {
        np.dtype(np.float32): 1,
        np.dtype(np.int64): 7,
        np.dtype(bool): 9,
        np.dtype(np.uint8): 2,
    }
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", kinds[x.dtype], x.shape)],
        [onnx.ValueInfoProto(name=results[output])],
        [
            onnx.numpy_helper.from_array(c, f"c{i}")
            for i, c in enumerate(constants)
            if c is not None
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def both(model, x):
    """What ONNX Runtime and the reader give for a model."""
    # Unoptimised: what is compared is one operator, as it is.
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expected = session.run(None, {"x": x})[0]
    version = model.opset_import[0].version
    read = OnnxGraph(model.graph, version, "x", model.graph.output[0].name)
    found = read(torch.from_numpy(x))
    return expected, found.numpy() if isinstance(found, torch.Tensor) else np.asarray(found)


def check(operator, x, *constants, opset=17, outputs=1, output=0, tolerance=2e-5, **attributes):
    model = graph_of(operator, x, constants, opset, attributes, outputs, output)
    expected, found = both(model, x)
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found.astype(np.float64), expected.astype(np.float64), rtol=tolerance, atol=tolerance
    )
    return expected


X = normal(2, 4, 7, 6)

CONVS = [
    {}, {"strides": [2, 3]}, {"pads": [1, 0, 2, 1]}, {"pads": [1, 1, 1, 1], "dilations": [2, 1]},
    {"auto_pad": "VALID", "strides": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, {"auto_pad": "SAME_UPPER", "strides": [3, 1]},
]  # fmt: skip


@pytest.mark.parametrize("attributes", CONVS)
@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv(attributes, group):
    check("Conv", X, normal(8, 4 // group, 3, 2, seed=1), normal(8), group=group, **attributes)


def test_conv_without_bias_and_of_other_ranks():
    check("Conv", X, normal(8, 4, 3, 3, seed=1), opset=11)
    check("Conv", normal(2, 3, 9), normal(5, 3, 4), auto_pad="SAME_UPPER", strides=[2])
    check("Conv", normal(1, 2, 5, 6, 7), normal(3, 2, 2, 3, 3), pads=[0, 1, 0, 1, 1, 2])


@pytest.mark.parametrize(
    "attributes",
    [
        {}, {"strides": [2, 2]}, {"strides": [2, 3], "pads": [1, 0, 0, 2]},
        {"strides": [2, 2], "output_padding": [1, 0]}, {"dilations": [2, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 2], "output_shape": [14, 13]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose(attributes, group):
    check("ConvTranspose", X, normal(4, 6 // group, 3, 3), normal(6), group=group, **attributes)


POOLS = [
    {"kernel_shape": [2, 3]}, {"kernel_shape": [3, 3], "strides": [2, 2]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 1, 0]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1},
    {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "VALID"},
]  # fmt: skip


@pytest.mark.parametrize("attributes", POOLS)
def test_max_pool(attributes):
    check("MaxPool", X, **attributes)


@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("attributes", POOLS)
@pytest.mark.parametrize("opset", [11, 19])
def test_average_pool(attributes, counted, opset):
    check("AveragePool", X, opset=opset, count_include_pad=counted, **attributes)


def test_other_pools():
    check("MaxPool", X, kernel_shape=[2, 2], dilations=[2, 2], strides=[2, 1])
    for operator in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
        check(operator, X)
    check("LpPool", X, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1], p=3, opset=11)
    check("LpPool", X, kernel_shape=[2, 2])


@pytest.mark.parametrize(
    ("operator", "attributes", "opset"),
    [
        ("Relu", {}, 14), ("LeakyRelu", {"alpha": 0.2}, 16), ("LeakyRelu", {}, 16),
        ("Elu", {"alpha": 0.5}, 17), ("Elu", {}, 17), ("Selu", {}, 17),
        ("Selu", {"alpha": 1.5, "gamma": 1.1}, 17), ("Celu", {"alpha": 1.5}, 17),
        ("ThresholdedRelu", {"alpha": 0.3}, 17), ("Sigmoid", {}, 17), ("HardSigmoid", {}, 17),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 17), ("HardSwish", {}, 17),
        ("Mish", {}, 18), ("Gelu", {}, 20), ("Gelu", {"approximate": "tanh"}, 20),
        ("Softplus", {}, 17), ("Softsign", {}, 17), ("Exp", {}, 17), ("Erf", {}, 17),
        ("Tanh", {}, 17), ("Sin", {}, 17), ("Cos", {}, 17), ("Tan", {}, 17), ("Atan", {}, 17),
        ("Sign", {}, 17), ("Abs", {}, 17), ("Neg", {}, 17), ("Floor", {}, 17), ("Ceil", {}, 17),
        ("Round", {}, 17), ("Identity", {}, 17), ("Reciprocal", {}, 17),
        ("Dropout", {}, 17), ("Dropout", {"ratio": 0.3}, 11),
    ],
)  # fmt: skip
def test_functions_of_elements(operator, attributes, opset):
    check(operator, normal(2, 3, 5) * 3, opset=opset, tolerance=1e-4, **attributes)


@pytest.mark.parametrize("operator", ["Sqrt", "Log"])
def test_functions_of_positive_elements(operator):
    check(operator, np.abs(X) + 0.1)


@pytest.mark.parametrize("opset", [11, 12, 13, 17])
@pytest.mark.parametrize("operator", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [None, 1, 2, -1, 0])
def test_softmax(operator, opset, axis):
    check(operator, X, opset=opset, **({} if axis is None else {"axis": axis}))


@pytest.mark.parametrize("slope", [normal(4, 1, 1), normal(1), normal(1, 4, 1, 1)])
def test_prelu(slope):
    check("PRelu", X, slope)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
@pytest.mark.parametrize("other", [normal(1, 4, 1, 1), normal(6), normal(2, 1, 7, 6), normal(1)])
def test_broadcasting(operator, other):
    check(operator, X, other)


def test_arithmetic_of_integers_and_comparisons():
    whole = np.array([[-7, 7, 3], [5, -5, 9]], dtype=np.int64)
    check("Div", whole, ints(2))
    check("Mod", whole, ints(3))
    check("Mod", X, normal(6, seed=3) + 3, fmod=1)
    check("Pow", np.abs(X), np.array([0.5], np.float32))
    check("Pow", X, np.array(2.0, np.float32))
    for operator in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        check(operator, X, normal(2, 4, 7, 6) if operator == "Equal" else normal(6, seed=4))
    truths = X > 0
    for operator in ("And", "Or", "Xor"):
        check(operator, truths, normal(6) > 0)
    check("Not", truths)
    check("IsNaN", np.where(truths, np.nan, X).astype(np.float32))
    check("Where", truths, normal(6), normal(1, 4, 1, 1))


@pytest.mark.parametrize("bounds", [(), (-0.5,), (None, 0.5), (-0.5, 0.5)])
def test_clip(bounds):
    given = [None if b is None else np.array(b, np.float32) for b in bounds]
    check("Clip", X, *given, opset=13)
    named = dict(zip(("min", "max"), bounds, strict=False))
    check("Clip", X, opset=7, **{name: b for name, b in named.items() if b is not None})


@pytest.mark.parametrize("transposed", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("scaled", [{}, {"alpha": 0.5, "beta": 2.0}])
@pytest.mark.parametrize("bias", [normal(5), normal(3, 5), normal(1), normal(3, 1), None])
def test_gemm(transposed, scaled, bias):
    a, b = normal(3, 4), normal(4, 5)
    a, b = (a.T.copy() if transposed[0] else a), (b.T.copy() if transposed[1] else b)
    check("Gemm", a, b, *(() if bias is None else (bias,)), transA=transposed[0],
          transB=transposed[1], **scaled)  # fmt: skip


@pytest.mark.parametrize(
    ("a", "b"),
    [((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((4,), (4, 5)),
     ((2, 3, 4), (4,)), ((2, 1, 3, 4), (5, 4, 2)), ((4,), (4,))],
)  # fmt: skip
def test_matmul(a, b):
    check("MatMul", normal(*a), normal(*b, seed=1))


@pytest.mark.parametrize("equation", ["bchw,cd->bdhw", "bchw , cd -> bd", "bchw,cd"])
def test_einsum(equation):
    check("Einsum", X, normal(4, 5), equation=equation, tolerance=1e-4)


def test_normalisations():
    scale, shift, mean, variance = (
        normal(4),
        normal(4, seed=1),
        normal(4, seed=2),
        np.abs(normal(4)),
    )
    check("BatchNormalization", X, scale, shift, mean, variance, epsilon=1e-3, opset=9)
    check("BatchNormalization", X, scale, shift, mean, variance, opset=15)
    check("InstanceNormalization", X, scale, shift, epsilon=1e-3)
    check("LayerNormalization", X, normal(6), normal(6, seed=1))
    check("LayerNormalization", X, normal(6), epsilon=1e-2)
    check("LayerNormalization", X, normal(7, 6), normal(7, 6, seed=1), axis=2)
    check("LayerNormalization", X, normal(7, 6), normal(7, 6, seed=1), axis=-2)
    check("GroupNormalization", X, normal(2), normal(2, seed=1), num_groups=2, opset=18)
    check("GroupNormalization", X, scale, shift, num_groups=2, opset=21)
    check("LpNormalization", X, axis=1, p=2)
    check("LpNormalization", X, axis=-1, p=1)
    check("MeanVarianceNormalization", X, axes=[2, 3], tolerance=1e-4)
    for size in (1, 3, 5):
        check("LRN", X, size=size, alpha=0.5, beta=0.6, bias=1.5)


REDUCTIONS = ["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1",
              "ReduceL2", "ReduceSumSquare", "ReduceLogSum", "ReduceLogSumExp"]  # fmt: skip


@pytest.mark.parametrize("operator", REDUCTIONS)
@pytest.mark.parametrize("axes", [None, [1], [2, 3], [-1, -2], [0]])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(operator, axes, keepdims):
    x = np.abs(X) + 0.5
    named = {} if axes is None else {"axes": axes}
    if operator != "ReduceSum":
        check(operator, x, opset=11, keepdims=keepdims, tolerance=1e-4, **named)
    given = () if axes is None else (ints(*axes),)
    check(operator, x, *given, opset=18, keepdims=keepdims, tolerance=1e-4)


def test_reductions_of_nothing_named():
    check("ReduceMean", X, opset=18, noop_with_empty_axes=1)
    check("ReduceSum", X, ints(), opset=13, noop_with_empty_axes=1)


def test_places_of_extremes():
    for operator in ("ArgMax", "ArgMin"):
        check(operator, X, axis=1)
        check(operator, X, axis=-1, keepdims=0)
    for output in (0, 1):
        check("TopK", X, ints(3), outputs=2, output=output, axis=1, largest=0)
        check("TopK", X, ints(2), outputs=2, output=output)


@pytest.mark.parametrize(
    "indices", [ints(0, -1), ints(2).reshape(()), ints(1, 0, 2, -3).reshape(2, 2)]
)
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_gather(indices, axis):
    check("Gather", X, indices, axis=axis)


@pytest.mark.parametrize(
    ("places", "updates"),
    [
        ([[0, 1], [1, 0]], normal(2, 4, 5, seed=1)),
        ([[[0, 2, 3, -1], [1, 1, 0, 0]]], normal(1, 2, seed=1)),
        ([[1]], normal(1, 3, 4, 5, seed=1)),
    ],
)
@pytest.mark.parametrize("opset", [11, 18])
def test_scattered_slices(places, updates, opset):
    x = normal(2, 3, 4, 5)
    check("ScatterND", x, np.array(places, np.int64), updates, opset=opset)


def test_gathered_elements():
    places = np.array([[[0, -1], [2, 1]]], dtype=np.int64)
    check("GatherElements", normal(1, 2, 5), places, axis=2)


@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ([1], [5], [2], [2]), ([0, 1], [2**63 - 1, -1], [2, 3], [1, 2]), ([-3], [-1], [-1], [1]),
        ([-1], [-(2**63)], [2], [-1]), ([5], [0], [2], [-2]), ([6], [1], [-2], [-3]),
        ([0], [100], [1], [1]), ([0], [2**31 - 1], [1], [1]),
    ],
)  # fmt: skip
def test_slice(starts, ends, axes, steps):
    check("Slice", X, ints(*starts), ints(*ends), ints(*axes), ints(*steps), opset=13)
    if steps == [1]:
        check("Slice", X, opset=9, starts=starts, ends=ends, axes=axes)


def test_slice_without_axes():
    check("Slice", X, ints(0, 1), ints(1, 3))


@pytest.mark.parametrize("output", [0, 1])
def test_split(output):
    check("Split", X, ints(1, 3), outputs=2, output=output, axis=1, opset=13)
    check("Split", X, opset=11, outputs=2, output=output, axis=-1, split=[4, 2])
    check("Split", X, opset=13, outputs=2, output=output, axis=3)
    check("Split", X, opset=18, outputs=2, output=output, axis=2, num_outputs=2)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize(
    "pads", [(0, 0, 1, 2, 0, 0, 3, 0), (0, 0, -1, 0, 0, 0, 2, -2), (0, 1, 0, 0, 0, 2, 0, 0)]
)
def test_pad(mode, pads):
    if mode == "reflect" and min(pads) < 0:
        pads = tuple(map(abs, pads))
    value = (np.array(0.5, np.float32),) if mode == "constant" else ()
    check("Pad", X, ints(*pads), *value, mode=mode)
    check("Pad", X, opset=9, pads=list(pads), mode=mode)


def test_pad_of_named_axes():
    check("Pad", X, ints(1, 2, 3, 0), None, ints(-1, 2), opset=18)
    check("Pad", X, ints(1, 2, 3, 0), None, ints(-1, 2), opset=19, mode="wrap")


def test_forms():
    check("Reshape", X, ints(0, -1, 6))
    check("Reshape", X, ints(2, 4, 42))
    check("Reshape", X, ints(0, 2, 2, -1))
    for axis in (0, 1, 2, 3, -1):
        check("Flatten", X, axis=axis)
    check("Transpose", X, perm=[0, 2, 3, 1])
    check("Transpose", X)
    check("Squeeze", normal(2, 1, 3, 1), ints(1, -1))
    check("Squeeze", normal(2, 1, 3, 1), opset=11, axes=[3])
    check("Squeeze", normal(2, 1, 3, 1))
    check("Unsqueeze", X, ints(1, -1))
    check("Unsqueeze", X, opset=11, axes=[0, 3])
    check("Expand", normal(2, 1, 3), ints(2, 4, 1))
    check("Expand", normal(2, 1, 3), ints(5, 2, 4, 3))
    check("Tile", X, ints(1, 2, 1, 3))
    check("Concat", X, normal(2, 3, 7, 6), axis=1)
    check("Concat", X, normal(2, 4, 7, 1), axis=-1)
    for mode in ("DCR", "CRD"):
        check("DepthToSpace", normal(2, 8, 3, 5), blocksize=2, mode=mode)
    check("SpaceToDepth", normal(2, 3, 6, 4), blocksize=2)
    check("Trilu", X, upper=0)
    check("Trilu", X, np.array(1, np.int64))
    check("CumSum", X, np.array(2, np.int64))


def test_shapes_are_known():
    check("Shape", X)
    check("Shape", X, opset=15, start=1, end=-1)
    check("Size", X)
    check("Cast", X * 5, to=TensorProto.INT64)
    check("Cast", X, to=TensorProto.BOOL)
    check("CastLike", X, ints(1))


@pytest.mark.parametrize(
    "where", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
)
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resize_nearest(where, rounding):
    named = {"coordinate_transformation_mode": where, "nearest_mode": rounding, "mode": "nearest"}
    check("Resize", X, None, np.array([1, 1, 2, 1.5], np.float32), **named)
    check("Resize", X, None, None, ints(2, 4, 5, 13), **named)


@pytest.mark.parametrize("where", ["half_pixel", "pytorch_half_pixel", "align_corners"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_smoothly(where, mode):
    named = {"coordinate_transformation_mode": where, "mode": mode}
    check("Resize", X, None, np.array([1, 1, 2, 3], np.float32), tolerance=1e-4, **named)
    check("Resize", X, None, None, ints(2, 4, 5, 13), tolerance=1e-4, **named)


def test_upsample():
    check("Upsample", X, np.array([1, 1, 2, 3], np.float32), opset=9, mode="nearest")
    check("Upsample", X, opset=7, mode="nearest", scales=[1.0, 1.0, 2.0, 2.0])
    check("Resize", X, np.array([1, 1, 2, 3], np.float32), opset=10, mode="nearest")


def test_quantised_values():
    scale, zero = np.array(0.05, np.float32), np.array(120, np.uint8)
    check("QuantizeLinear", X, scale, zero)
    check("DequantizeLinear", (X * 40 + 120).clip(0, 255).astype(np.uint8), scale, zero)
    scales = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    check("QuantizeLinear", X, scales, np.zeros(4, np.int8), axis=1)


def test_one_hot():
    check("OneHot", ints(0, 2, -1), ints(4), np.array([0.5, 2.0], np.float32))


ELSEWHERE = {"Range", "ConstantOfShape"}
"""Those whose inputs are known without the image; test_reader.py has graphs of them."""


def test_every_operator_has_a_test():
    source = Path(__file__).read_text(encoding="utf-8")
    missing = [name for name in TABLE if f'"{name}"' not in source and name not in ELSEWHERE]
    assert not missing
