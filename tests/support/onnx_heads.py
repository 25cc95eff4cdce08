"""One classifier, Conv, Relu, pooling and a linear layer, with its head written in many ways."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_files import weight

C, N, SIZE = 4, 6, (16, 12)
W, BIAS = weight(C, N, seed=1), weight(C, seed=2) * 3
CONV = weight(N, 3, 3, 3, seed=3)
"""The layer, as rows of classes; every form computes `W mean(F) + BIAS` (or no bias)."""


def ints(*values):
    return np.array(values, np.int64)


def node(operator, inputs, output, name, **attributes):
    return helper.make_node(operator, inputs.split(), [output], name, **attributes)


POOL = node("GlobalAveragePool", "r", "p", "pool")
FLAT = [POOL, node("Flatten", "p", "f", "flat")]
MEAN = node("ReduceMean", "t", "f", "pool", axes=[1, 2], keepdims=0)
KEPT = node("ReduceMean", "t", "p", "pool", axes=[1, 2], keepdims=1)
CHANNELS_LAST = [node("Transpose", "r", "t", "back", perm=[0, 2, 3, 1])]
COLUMNS, ROW = np.ascontiguousarray(W.T), BIAS[None]
HALF, DOUBLE = W / 2, BIAS * 2

# Name: whether channels are last, nodes from "r" (or "t") to "y", and what is stored: the matrix
# "w" and the bias "b", where there is one.
HEADS = {
    "Gemm": (False, [*FLAT, node("Gemm", "f w b", "y", "fc", transB=1)], {"w": W, "b": BIAS}),
    "Gemm, transB 0": (False, [*FLAT, node("Gemm", "f w b", "y", "fc")], {"w": COLUMNS, "b": ROW}),
    "Gemm, alpha and beta": (
        False,
        [*FLAT, node("Gemm", "f w b", "y", "fc", transB=1, alpha=2.0, beta=0.5)],
        {"w": HALF, "b": DOUBLE},
    ),
    "Gemm, alpha, transB 0, no bias": (
        False, [*FLAT, node("Gemm", "f w", "y", "fc", alpha=2.0)],
        {"w": np.ascontiguousarray(HALF.T)},
    ),
    "Gemm, then Add": (
        False, [*FLAT, node("Gemm", "f w", "m", "fc", transB=1), node("Add", "m b", "y", "sum")],
        {"w": W, "b": BIAS},
    ),
    "MatMul and Add, as Keras": (
        True, [MEAN, node("MatMul", "f w", "m", "fc"), node("Add", "m b", "y", "sum")],
        {"w": COLUMNS, "b": BIAS},
    ),
    "MatMul and Add, Softmax": (
        True,
        [MEAN, node("MatMul", "f w", "m", "fc"), node("Add", "b m", "l", "sum"),
         node("Softmax", "l", "y", "squash", axis=-1)],
        {"w": COLUMNS, "b": ROW},
    ),
    "MatMul without a bias": (
        False, [*FLAT, node("MatMul", "f w", "y", "fc")], {"w": COLUMNS},
    ),
    "MatMul of a transposed matrix": (
        False,
        [*FLAT, node("Transpose", "rows", "w", "turn", perm=[1, 0]),
         node("MatMul", "f w", "m", "fc"), node("Add", "m b", "y", "sum")],
        {"rows": W, "b": BIAS},
    ),
    "MatMul, bias behind a Reshape": (
        True,
        [KEPT, node("MatMul", "p w", "m", "fc"), node("Reshape", "m flat", "n", "shape"),
         node("Add", "n b", "y", "sum")],
        {"w": COLUMNS, "b": BIAS, "flat": ints(-1, C)},
    ),
    "MatMul, bias before a Squeeze": (
        True,
        [KEPT, node("MatMul", "p w", "m", "fc"), node("Add", "m b", "n", "sum"),
         node("Squeeze", "n axes", "y", "squeeze")],
        {"w": COLUMNS, "b": BIAS.reshape(1, 1, 1, C), "axes": ints(1, 2)},
    ),
    "Squeeze, then MatMul": (
        False,
        [POOL, node("Squeeze", "p axes", "f", "squeeze"), node("MatMul", "f w", "m", "fc"),
         node("Add", "m b", "y", "sum")],
        {"w": COLUMNS, "b": BIAS, "axes": ints(2, 3)},
    ),
    "1x1 Conv": (
        False, [POOL, node("Conv", "p w b", "m", "fc"), node("Flatten", "m", "y", "flat")],
        {"w": W[..., None, None], "b": BIAS},
    ),
    "1x1 Conv, Add, Flatten": (
        False,
        [POOL, node("Conv", "p w", "m", "fc"), node("Add", "m b", "n", "sum"),
         node("Flatten", "n", "y", "flat")],
        {"w": W[..., None, None], "b": BIAS[:, None, None]},
    ),
    "1x1 Conv, Flatten, Add": (
        False,
        [POOL, node("Conv", "p w", "m", "fc"), node("Flatten", "m", "n", "flat"),
         node("Add", "n b", "y", "sum")],
        {"w": W[..., None, None], "b": ROW},
    ),
    "1x1 Conv, Transpose, Add, Reshape": (
        False,
        [POOL, node("Conv", "p w", "m", "fc"), node("Transpose", "m", "q", "q", perm=[0, 2, 3, 1]),
         node("Add", "q b", "n", "sum"), node("Reshape", "n flat", "y", "shape")],
        {"w": W[..., None, None], "b": BIAS, "flat": ints(0, -1)},
    ),
}  # fmt: skip


def headed(name):
    """Makes the classifier with one of the heads."""
    last, nodes, stored = HEADS[name]
    shape = ("b", *SIZE, 3) if last else ("b", 3, *SIZE)
    front = [
        *([node("Transpose", "x", "i", "turn_in", perm=[0, 3, 1, 2])] if last else []),
        node("Conv", f"{'i' if last else 'x'} kernel", "c", "conv", pads=[1] * 4, strides=[2, 2]),
        node("Relu", "c", "r", "relu"),
        *(CHANNELS_LAST if last else []),
    ]
    graph = helper.make_graph(
        [*front, *nodes], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", C))],
        [numpy_helper.from_array(v, n) for n, v in {"kernel": CONV, **stored}.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def bias_of(name):
    """Returns the bias that the form has; zeros without one."""
    return BIAS if "b" in HEADS[name][2] else np.zeros(C, np.float32)


def write(folder, name):
    path = folder / "model.onnx"
    onnx.save(headed(name), str(path))
    return path
