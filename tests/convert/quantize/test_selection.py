"""What computes in 8 bits, and what must not."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from sigcam.convert.quantize.calibrate import calibrate
from sigcam.convert.quantize.images import feeds
from sigcam.convert.quantize.int8 import to_int8
from sigcam.convert.quantize.selection import select
from sigcam.convert.quantize.source import read_source
from sigcam.core.errors import UsageError
from sigcam.export import METHODS

pytestmark = pytest.mark.slow

TRACED = ("gradcam++", "layercam", "finercam", "reciprocam")
"""One each of the methods' kinds of backward pass, and of none: the others differ in sums only."""

CASES = [
    {"method": "cam"},
    {"method": "cam", "branch": "softmax", "profile": "split", "selection": "topk"},
    *({"method": method, "mlp": True} for method in METHODS if method in TRACED),
    {"method": "gradcam", "mlp": True, "branch": "softmax", "selection": "top1"},
    {"method": "gradcam", "target_layers": ("stem",)},  # the backward pass goes through the block
]


def convert(path, images, activations="uint8", kept=()):
    source = read_source(path)
    selection = select(source, kept)
    paths = sorted(images.iterdir())[:8]
    ranges = calibrate(
        source, selection, feeds(paths, source.spec.preprocessing), 8,
        method="minmax", threads=1, report=lambda done, total: None,
    )  # fmt: skip
    return source, selection, ranges, to_int8(source, selection, ranges, activations)


def ancestors(graph, name):
    """By recursion, unlike the code under test."""
    found = set()
    for node in graph.node:
        if name in node.output:
            found |= {node.name}.union(*(ancestors(graph, one) for one in node.input if one))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_only_the_way_to_the_logits_is_rounded(artifacts, images, case):
    source, selection, _, model = convert(artifacts(**case), images)
    assert set(selection.nodes) <= ancestors(source.model.graph, "logits")
    layers = [n for n in source.model.graph.node if n.name in selection.layers]
    assert [n.op_type for n in layers].count("Conv") == 4
    assert [n.op_type for n in layers].count("Gemm") == 1 + bool(case.get("mlp"))
    # Every node that isn't selected computes what it did, from the same stored values.
    was = {n.name: n for n in source.model.graph.node}
    stored = {t.name: t for t in source.model.graph.initializer}
    kept = {t.name: t for t in model.graph.initializer}
    made_by = {name: n for n in model.graph.node for name in n.output}
    for node in model.graph.node:
        if node.name not in was or node.name in selection.nodes:
            continue
        assert node.attribute == was[node.name].attribute
        for now, before in zip(node.input, was[node.name].input, strict=True):
            if before in stored:
                assert now == before
                values, exported = map(onnx.numpy_helper.to_array, (kept[now], stored[before]))
                np.testing.assert_array_equal(values, exported)
            elif now != before:  # only features come rounded: what a convolution made
                assert made_by[now].op_type == "DequantizeLinear"
                rounding = made_by[made_by[now].input[0]]
                assert made_by[rounding.input[0]].op_type in ("Conv", "MaxPool", "Add")


@pytest.mark.parametrize("case", CASES[:3], ids=str)
def test_logits_and_pooled_features_are_not_rounded(artifacts, images, case):
    _, _, _, model = convert(artifacts(**case), images)
    made_by = {name: node for node in model.graph.node for name in node.output}
    assert made_by["logits"].op_type == "Gemm"
    evidence = next(n for n in model.graph.node if n.name.startswith("node_linear"))
    if case.get("mlp"):  # the sigmoid branch's first layer
        assert made_by[evidence.input[0]].op_type != "DequantizeLinear"


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_weights_fit_processors_that_add_pairs_in_16_bits(artifacts, images, activations):
    """Two products of an activation and a weight must fit; depthwise weights have 8 bits."""
    _, _, _, model = convert(artifacts(method="cam"), images, activations)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    weights = {k: v for k, v in stored.items() if k.endswith("weight_quantized")}
    assert len(weights) == 5
    for values in weights.values():
        assert values.dtype == np.int8
        depthwise = values.ndim == 4 and values.shape[1] == 1
        largest = np.abs(values.astype(int)).max()
        assert largest == 127 if depthwise else largest == 64
        assert depthwise or 2 * 255 * largest < 2**15
    zeros = [v for k, v in stored.items() if k.endswith("zero_point") and v.ndim == 0]
    assert {v.dtype for v in zeros} == {np.dtype(activations)}
    if activations == "int8":
        assert not any(zeros)


def test_layers_can_be_kept_in_float32(artifacts, images):
    path = artifacts(method="cam")
    first, second, *_ = select(read_source(path)).layers
    source, selection, _, model = convert(path, images, kept=[first])
    assert first not in selection.layers
    assert second in selection.layers
    now = next(n for n in model.graph.node if n.name == first)
    was = next(n for n in source.model.graph.node if n.name == first)
    assert now.input == was.input  # the image, which is no longer rounded
    with pytest.raises(UsageError, match="no layers nothing"):
        select(source, ["nothing"])


def test_a_backend_leaves_a_layer_in_float32_as_it_is(artifacts, images):
    """ONNX Runtime rounds the weights of layers that look unfinished to it."""
    path = artifacts(method="cam")
    source, _, _, model = convert(path, images, kept=["node_conv2d_1"])
    [image] = feeds(sorted(images.iterdir())[20:21], source.spec.preprocessing)
    inputs = {**image, "class_ids": np.array([[-1]])}
    runs = [
        onnxruntime.InferenceSession(
            model.SerializeToString(),
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        ).run(["logits"], inputs)[0]
        for disabled in (None, ["WeightBiasQuantization"])
    ]
    np.testing.assert_allclose(*runs, atol=1e-4 * np.abs(runs[1]).max())


def test_the_source_is_left_as_it_is(artifacts, images):
    path = artifacts(method="cam")
    source, *_ = convert(path, images)
    again = read_source(path)
    assert source.model.SerializeToString() == again.model.SerializeToString()
