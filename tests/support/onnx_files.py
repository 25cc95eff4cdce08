"""Small ONNX files of classifiers, node by node."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 5


def weight(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def classifier(
    shape=("b", 3, 12, 10), front=(), back=(), logits="logits", middle=None, weights=None,
    opset=13, element=TensorProto.FLOAT, outputs=(("logits", ("b", CLASSES)),),
):  # fmt: skip
    """Conv, Relu, pooling and a linear layer; nodes in front read "x" and give "image"."""
    nodes = [
        *front,
        helper.make_node("Conv", ["image" if front else "x", "conv.weight"], ["c"], "conv",
                         pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        *(middle or [helper.make_node("Flatten", ["p"], ["f"], "flatten")]),
        helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], [logits], "fc", transB=1),
        *back,
    ]  # fmt: skip
    stored = {"conv.weight": weight(6, 3, 3, 3), "fc.weight": weight(CLASSES, 6), **(weights or {}),
              "fc.bias": weight(CLASSES)}  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(tmp_path, model, **options):
    path = tmp_path / "model.onnx"
    onnx.save(model, str(path), **options)
    return path


def constants(**values):
    return {n: np.array(v, np.float32) for n, v in values.items()}
