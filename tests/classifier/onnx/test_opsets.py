"""Operators whose meaning or form changed between opsets 7 and 22, at each of these opsets.

Each is held against ONNX Runtime as it stands, and once more after onnx's own converter.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import version_converter

from sigcam.classifier.onnx.checks import OPSETS
from sigcam.classifier.onnx.reader import OnnxGraph
from sigcam.core.errors import ModelError
from tests.classifier.onnx.test_operators import both, graph_of, ints, normal

X = normal(2, 4, 7, 6)
CHANNELS = np.abs(normal(4, seed=3)) + 0.5
F32 = np.float32


def scalar(value, kind=F32):
    return np.array(value, kind)


def axes(operator, since, **attributes):
    """Axes as an attribute before an opset, as an input since."""

    def case(opset):
        if opset < since:
            return operator, X, [], {"axes": [2, 3], **attributes}
        return operator, X, [ints(2, 3)], attributes

    return case


def clip(opset):
    if opset < 11:
        return "Clip", X, [], {"min": -0.5, "max": 0.25}
    return "Clip", X, [scalar(-0.5), scalar(0.25)], {}


def clip_one_side(opset):
    return ("Clip", X, [], {"max": 0.5}) if opset < 11 else ("Clip", X, [None, scalar(0.5)], {})


def pad(opset):
    amounts = [0, 0, 1, 2, 0, 0, 2, 0]
    if opset < 11:
        return "Pad", X, [], {"pads": amounts, "value": 1.5}
    return "Pad", X, [ints(*amounts), scalar(1.5)], {}


def pad_some_axes(opset):
    if opset < 18:
        return None
    return "Pad", X, [ints(1, -2, 2, 1), scalar(0.0), ints(2, -1)], {"mode": "constant"}


def cut(opset):
    starts, ends, along = (1, 0, -4), (3, 10**6, -1), (1, 2, 3)
    if opset < 10:
        return "Slice", X, [], {"starts": starts, "ends": ends, "axes": along}
    return "Slice", X, [ints(*starts), ints(*ends), ints(*along), ints(1, 2, 1)], {}


def squeeze(opset):
    x = normal(2, 4, 1, 1)
    if opset < 13:
        return "Squeeze", x, [], {"axes": [2, 3] if opset < 11 else [-1, -2]}
    return "Squeeze", x, [ints(2, -1)], {}


def unsqueeze(opset):
    if opset < 13:
        return "Unsqueeze", X, [], {"axes": [0, 3]}
    return "Unsqueeze", X, [ints(0, -3)], {}


def split(opset):
    if opset < 13:
        return "Split", X, [], {"split": [1, 3], "axis": 1}, 2
    return "Split", X, [ints(1, 3)], {"axis": 1}, 2


def split_into_equal_parts(opset):
    options = {"num_outputs": 2} if opset >= 18 else {}
    return "Split", X, [], {"axis": 1, **options}, 2


def split_with_a_rest(opset):
    return ("Split", X, [], {"axis": 2, "num_outputs": 3}, 3) if opset >= 18 else None


def top_k(opset):
    if opset < 10:
        return "TopK", X, [], {"k": 2, "axis": 1}, 2
    options = {"largest": 0} if opset >= 11 else {}
    return "TopK", X, [ints(2)], {"axis": 1, **options}, 2


def dropout(opset):
    return ("Dropout", X, [], {"ratio": 0.3}) if opset < 12 else ("Dropout", X, [scalar(0.3)], {})


def batch_norm(opset):
    figures = [CHANNELS, normal(4), normal(4, seed=5), CHANNELS]
    return "BatchNormalization", X, figures, {"epsilon": 1e-3, "momentum": 0.5}


def group_norm(opset):
    if opset < 18:
        return None
    count = 2 if opset < 21 else 4
    return "GroupNormalization", X, [CHANNELS[:count], normal(count)], {"num_groups": 2}


def upsample(opset):
    scales = [1.0, 1.0, 2.0, 1.5]
    if opset < 9:
        return "Upsample", X, [], {"scales": scales}
    if opset < 10:
        return "Upsample", X, [np.array(scales, F32)], {}
    if opset < 11:
        return "Resize", X, [np.array(scales, F32)], {}
    # Of opset 11 on, the region is no input that may be left out.
    region = np.zeros(0, F32) if opset < 13 else None
    return "Resize", X, [region, np.array(scales, F32)], {
        "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}  # fmt: skip


def upsample_linearly(opset):
    case = upsample(opset)
    options = {n: v for n, v in case[3].items() if n != "nearest_mode"}
    return (*case[:3], {**options, "mode": "linear"})


def shrink(opset):
    if opset < 10:
        return None
    scales = np.array([1.0, 1.0, 0.6, 0.5], F32)
    if opset < 11:
        return "Resize", X, [scales], {}
    return "Resize", X, [np.zeros(0, F32) if opset < 13 else None, scales], {}


def shrink_linearly(opset):
    case = shrink(opset)
    return case and (*case[:3], {"mode": "linear"})


def resize_axes(opset):
    if opset < 18:
        return None
    return "Resize", X, [None, None, ints(9, 14)], {"axes": [2, 3], "mode": "linear"}


def reshape_zero(opset):
    options = {"allowzero": 0} if opset >= 14 else {}
    return "Reshape", X, [ints(0, 0, -1)], options


def average_ceil(opset):
    options = {"ceil_mode": 1} if opset >= 10 else {}
    return "AveragePool", X, [], {
        "kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], **options}  # fmt: skip


def average_with_padding(opset):
    operator, x, constants, options = average_ceil(opset)
    return operator, x, constants, {**options, "count_include_pad": 1}


def max_ceil(opset):
    return "MaxPool", *average_ceil(opset)[1:]


def gelu(opset):
    return ("Gelu", X, [], {"approximate": "tanh"}) if opset >= 20 else None


def gather(opset):
    return "Gather", X, [ints(0, 2) if opset < 11 else ints(-1, 2)], {"axis": 1}


def cast(opset):
    return "Cast", X * 3, [], {"to": onnx.TensorProto.INT64}


def gemm(opset):
    bias = [normal(5, seed=2)] if opset < 11 else []
    return "Gemm", normal(3, 4), [normal(4, 5, seed=1), *bias], {"alpha": 0.5}


def arg_max(opset):
    return "ArgMax", X, [], {"axis": 1 if opset < 11 else -3, "keepdims": 0}


def dequantize(opset):
    if opset < 10:
        return None
    whole = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    if opset < 13:
        return "DequantizeLinear", whole, [scalar(0.1), np.array(3, np.uint8)], {}
    return "DequantizeLinear", whole, [
        np.array([0.1, 0.2, 0.4], F32), np.array([3, 0, 1], np.uint8)], {"axis": 1}  # fmt: skip


def flatten(opset):
    return "Flatten", X, [], {"axis": 2 if opset < 11 else -2}


def softmax(axis):
    return lambda opset: ("Softmax", X, [], {} if axis is None else {"axis": axis})


def log_softmax(opset):
    return "LogSoftmax", X, [], {"axis": 1}


def since(opset, *case):
    return lambda other: case if other >= opset else None


CASES = {
    "Softmax": softmax(None), "Softmax of an axis": softmax(1), "LogSoftmax": log_softmax,
    "Clip": clip, "Clip on one side": clip_one_side, "Pad": pad, "Pad of axes": pad_some_axes,
    "Slice": cut, "Squeeze": squeeze, "Unsqueeze": unsqueeze, "Split": split,
    "Split equally": split_into_equal_parts, "Split with a rest": split_with_a_rest,
    "TopK": top_k, "Dropout": dropout, "BatchNormalization": batch_norm,
    "GroupNormalization": group_norm, "Upsample": upsample, "Upsample linearly": upsample_linearly,
    "Resize down": shrink, "Resize down linearly": shrink_linearly, "Resize of axes": resize_axes,
    "Reshape": reshape_zero,
    "Reshape to zero": since(14, "Reshape", X[:0], [ints(0, 0, 6)], {"allowzero": 1}),
    "AveragePool": average_ceil, "AveragePool with padding": average_with_padding,
    "MaxPool": max_ceil, "Gelu": gelu, "Gather": gather, "Cast": cast, "Gemm": gemm,
    "ArgMax": arg_max, "DequantizeLinear": dequantize, "Flatten": flatten,
    "ReduceSum": axes("ReduceSum", 13, keepdims=0), "ReduceMean": axes("ReduceMean", 18),
    "ReduceMax": axes("ReduceMax", 18, keepdims=0), "ReduceL2": axes("ReduceL2", 18),
    "HardSwish": since(14, "HardSwish", X, [], {}),
    "LayerNormalization": since(17, "LayerNormalization", X, [normal(6), normal(6, seed=1)], {}),
    "Mish": since(18, "Mish", X, [], {}),
    "Where": since(9, "Where", X > 0, [X, -X], {}),
    "Pow": lambda opset: ("Pow", np.abs(X), [scalar(1.5)], {}),
    "Max": since(8, "Max", X, [scalar(0.1)], {}),
    "Mod": since(10, "Mod", X, [scalar(0.7)], {"fmod": 1}),
    "Tile": lambda opset: ("Tile", X, [ints(1, 2, 1, 3)], {}),
    "Expand": since(8, "Expand", X[:, :, :1], [ints(2, 4, 7, 6)], {}),
    "PRelu": lambda opset: ("PRelu", X, [CHANNELS.reshape(4, 1, 1)], {}),
}  # fmt: skip


def model_of(case, opset, output=0):
    operator, x, constants, attributes, *outputs = case
    number = outputs[0] if outputs else 1
    return graph_of(operator, x, constants, opset, attributes, number, output)


@pytest.mark.parametrize("name", CASES)
def test_an_operator_at_every_opset(name):
    tried = []
    for opset in OPSETS:
        case = CASES[name](opset)
        if case is None:
            continue
        for output in range(case[4] if len(case) > 4 else 1):
            expected, found = both(model_of(case, opset, output), case[1])
            assert found.shape == expected.shape, f"opset {opset}"
            np.testing.assert_allclose(
                found.astype(float), expected.astype(float), rtol=2e-5, atol=2e-5,
                err_msg=f"opset {opset}",
            )  # fmt: skip
        tried.append(opset)
    assert tried, "no opset has the operator"
    assert tried[-1] == OPSETS[-1]


def test_the_meaning_of_a_softmax_changed():
    """The same node gives other values before opset 13: the cases can fail."""
    old, new = (both(model_of(softmax(1)(n), n), X)[1] for n in (12, 13))
    assert np.abs(old - new).max() > 0.1


def test_figures_for_each_position_are_refused():
    operator, x, figures, attributes = batch_norm(8)
    model = graph_of(operator, x, figures, 8, {**attributes, "spatial": 0})
    read = OnnxGraph(model.graph, 8, "x", "y0")
    with pytest.raises(ModelError, match=r"\(BatchNormalization\) must have figures of channels"):
        read(torch.from_numpy(x))


CONVERTED = [
    "Softmax of an axis", "Clip", "Pad", "Slice", "Squeeze", "Unsqueeze", "Split", "Dropout",
    "BatchNormalization", "Upsample", "ReduceSum", "AveragePool", "Gemm", "LogSoftmax",
]  # fmt: skip


@pytest.mark.parametrize("name", CONVERTED)
@pytest.mark.parametrize("target", [13, 18, 22])
def test_an_old_file_after_the_converter_of_onnx(name, target):
    case = CASES[name](9)
    model = model_of(case, 9)
    model.graph.output[0].type.tensor_type.elem_type = 1  # as the converter wants it
    converted = version_converter.convert_version(model, target)
    assert converted.opset_import[0].version == target
    expected, _ = both(model, case[1])
    same, found = both(converted, case[1])
    np.testing.assert_allclose(same, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
