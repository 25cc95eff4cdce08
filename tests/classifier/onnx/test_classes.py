"""New classes for a file: its last linear layer re-made, or the reason why it can't be."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sigcam.classifier.build import build_classifier, replace_classes
from sigcam.classifier.onnx.load import read_classifier
from sigcam.core.errors import ModelError


def read(tmp_path, end, stored, classes=5):
    """Conv, Relu and global pooling, then nodes that lead from "p" [B, 6, 1, 1] to "y"."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        *(helper.make_node(*n[:-1], **n[-1]) for n in end),
    ]
    random = np.random.default_rng(0)
    arrays = {"w": random.standard_normal((6, 3, 3, 3)).astype(np.float32)}
    for name, shape in stored.items():
        given = isinstance(shape, np.ndarray)
        arrays[name] = shape if given else random.standard_normal(shape).astype(np.float32)
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 12, 10])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", classes])],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )  # fmt: skip
    path = tmp_path / "file.onnx"
    onnx.save(model, str(path))
    return read_classifier(path).model


FLAT = ("Flatten", ["p"], ["f"], "flat", {})
GEMM = ("Gemm", ["f", "a", "d"], ["y"], "last", {"transB": 1})
ENDS = {
    "gemm": ([FLAT, GEMM], {"a": (5, 6), "d": (5,)}),
    "columns": ([FLAT, ("Gemm", ["f", "a"], ["y"], "last", {})], {"a": (6, 5)}),
    "product and sum": (
        [FLAT, ("MatMul", ["f", "a"], ["m"], "last", {}), ("Add", ["d", "m"], ["y"], "sum", {})],
        {"a": (6, 5), "d": (5,)},
    ),
    "convolution": (
        [("Conv", ["p", "a", "d"], ["m"], "last", {}), ("Flatten", ["m"], ["y"], "flat", {})],
        {"a": (5, 6, 1, 1), "d": (5,)},
    ),
    "softmax": (
        [FLAT, ("Gemm", ["f", "a", "d"], ["m"], "last", {"transB": 1}),
         ("Softmax", ["m"], ["y"], "squash", {"axis": 1})],
        {"a": (5, 6), "d": (5,)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENDS)
def test_the_last_layer_is_made_anew(tmp_path, name):
    model = read(tmp_path, *ENDS[name])
    before = {n: p.clone() for n, p in model.named_parameters()}
    new = replace_classes(model, 3)
    assert new(torch.randn(4, 3, 12, 10)).reshape(4, -1).shape == (4, 3)
    changed = {n: p for n, p in new.named_parameters() if p.shape != before[n].shape}
    assert set(changed) == set(ENDS[name][1])
    bound = 1 / np.sqrt(6)
    for value in changed.values():
        assert 0 < value.abs().max() <= bound
        assert 3 in value.shape
        assert not value.requires_grad
    # The caller's own model, the other layers and the random state stay.
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n])
    assert torch.equal(new.get_parameter("w"), before["w"])
    again = replace_classes(model, 3)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in new.named_parameters())


@pytest.mark.parametrize(
    ("end", "stored", "words"),
    [
        ([FLAT, ("Gemm", ["f", "a"], ["m"], "last", {"transB": 1}),
          ("Mul", ["m", "t"], ["y"], "scale", {})], {"a": (5, 6), "t": (5,)},
         r"must end in one linear layer, this one ends in scale \(Mul\)"),
        ([FLAT, ("Gemm", ["f", "a"], ["m"], "first", {"transB": 1}),
          ("Gemm", ["m", "a"], ["y"], "last", {})], {"a": (4, 6)},
         r"weights of its own, a of last is used by first, last"),
        ([FLAT, ("Gemm", ["f", "a"], ["m"], "last", {"transB": 1}),
          ("Reshape", ["m", "two"], ["s"], "rows", {}),
          ("Reshape", ["s", "all"], ["y"], "shape", {})],
         {"a": (6, 6), "two": np.array([-1, 2, 3], np.int64), "all": np.array([-1, 6], np.int64)},
         "what follows the last layer last is written for its own number of classes"),
        ([FLAT, ("MatMul", ["f", "f2"], ["y"], "last", {})], {"f2": (6, 5)}, None),
    ],
)  # fmt: skip
def test_other_ends_are_refused_with_advice(tmp_path, end, stored, words):
    classes = 6 if "first" in str(end) or "rows" in str(end) else 5
    model = read(tmp_path, end, stored, classes)
    if words is None:
        assert replace_classes(model, 3)(torch.zeros(2, 3, 12, 10)).shape == (2, 3)
        return
    with pytest.raises(ModelError, match=words) as error:
        replace_classes(model, 7)
    assert "--labels predicted" in str(error.value)


def test_a_built_classifier_says_that_its_layer_is_new(tmp_path):
    read(tmp_path, *ENDS["gemm"])
    channels = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    built = build_classifier(str(tmp_path / "file.onnx"), new_classes=3, **channels)
    assert (built.replaced_classes, built.dual.num_classes) == (True, 3)
    assert not built.dual.softmax_head.traced.model.is_whole
