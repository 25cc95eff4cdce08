"""Where the grids of files lie is asked as of any other classifier's."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigcam.classifier.build import build_classifier
from sigcam.core.errors import ModelError

FLIP = (
    [helper.make_node("Slice", ["x", "start", "end", "axis", "step"], ["image"], "mirror")],
    {"start": [-1], "end": [-1000], "axis": [3], "step": [-1]},
)
TURN = ([helper.make_node("Transpose", ["x"], ["image"], "turn", perm=[0, 1, 3, 2])], {})
ROWS = (
    [helper.make_node("Gather", ["x", "rows"], ["image"], "shuffle", axis=2)],
    {"rows": [*range(16, 32), *range(16)]},
)


def write(path, front):
    """Two convolutions with a stride, global pooling and a linear layer."""
    nodes, numbers = front
    random = np.random.default_rng(0)
    arrays = {"w1": (8, 3, 3, 3), "w2": (12, 8, 3, 3), "a": (4, 12)}
    stored = {
        n: (random.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32)
        for n, s in arrays.items()
    }
    stored |= {name: np.array(value, np.int64) for name, value in numbers.items()}
    padded = {"pads": [1, 1, 1, 1], "strides": [2, 2]}
    nodes = [
        *nodes,
        helper.make_node("Conv", ["image" if nodes else "x", "w1"], ["c1"], "conv1", **padded),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", **padded),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "a"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["b", 4])],
        [numpy_helper.from_array(v, n) for n, v in stored.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return str(path)


@pytest.mark.parametrize(
    ("front", "words"),
    [(([], {}), None), (FLIP, "flipped left to right"), (TURN, "transposed"),
     (ROWS, "must lie as the image's do")],
)  # fmt: skip
def test_a_file_that_moves_its_image_is_refused(tmp_path, front, words):
    file = write(tmp_path / "net.onnx", front)
    normal = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    if words is None:
        assert build_classifier(file, **normal).dual.branch_layer == "relu2"
        return
    with pytest.raises(ModelError, match=words):
        build_classifier(file, **normal)
