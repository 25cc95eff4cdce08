"""The whole way from a bare ONNX file: a branch trained on images, and an artifact with it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigcam import load
from sigcam.classifier.branch_file import read_branch_info
from sigcam.core.artifact import read_spec
from tests.support import onnx_heads

pytestmark = pytest.mark.slow
NORMAL = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")


def write(path, classes=2):
    """A network of one image at a time, whose classes are green, red and others."""
    random = np.random.default_rng(0)
    first = random.standard_normal((4, 3, 3, 3)) / 20
    first[0, 1], first[1, 0] = 0.2, 0.2  # green, red
    last = random.standard_normal((classes, 4)) / 20
    last[0, 0], last[1, 1] = 1.0, 1.0
    arrays = {"w": first, "a": last, "d": np.full(classes, -0.1), "one": np.array([1, -1])}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", pads=[0, 0, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Reshape", ["p", "one"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "a", "d"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
        [numpy_helper.from_array(v.astype(np.int64 if n == "one" else np.float32), n)
         for n, v in arrays.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize(
    ("classes", "options", "features_by"),
    [(2, (), "onnxruntime"), (2, ("--labels", "predicted"), "auto"),
     (3, ("--new-classes",), "onnxruntime")],
)  # fmt: skip
def test_train_and_export(toy, cli, tmp_path, classes, options, features_by):
    file, branch, out = (
        write(tmp_path / "net.onnx", classes),
        tmp_path / "b.st",
        tmp_path / "o.onnx",
    )
    done = cli(
        "train", "--arch", file, "--data", toy.data, *NORMAL, "--cache-dir", tmp_path / "cache",
        "--views", 2, "--epochs", 2, "--features-by", features_by, "--out", branch, *options,
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    told = {"onnxruntime": "features by ONNX Runtime", "auto": "features by PyTorch: 16 views take"}
    assert told[features_by] in done.stderr
    info = read_branch_info(branch)
    assert (info.architecture, info.num_classes) == (str(file), 2)
    assert info.replaced_classes == ("--new-classes" in options)
    done = cli("export", "--arch", file, "--sigmoid-branch", branch, "--method", "gradcam",
               "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert "2 of the 5 nodes that lead to the logits stand in the graph as the file has" in (
        done.stderr
    )
    spec = read_spec(out)
    assert spec.source.trained_on == info.trained_on
    # What is compared with the file is what the file has.
    assert ("logits" in spec.parity.file) == ("--new-classes" not in options)
    with load(out) as session:
        (found,) = session.explain(toy.data / "green" / "0.png")
        assert found.heatmap.shape == (40, 50)


@pytest.mark.parametrize(
    "head",
    [
        "MatMul and Add, Softmax",
        "MatMul, bias behind a Reshape",
        "Gemm, alpha and beta",
        "1x1 Conv, Flatten, Add",
    ],
)
def test_heads_of_other_forms_are_trained_and_exported_with_cam(toy, cli, tmp_path, head):
    file, branch, out = onnx_heads.write(tmp_path, head), tmp_path / "b.st", tmp_path / "o.onnx"
    done = cli(
        "train", "--arch", file, "--data", toy.data, *NORMAL, "--cache-dir", tmp_path / "cache",
        "--views", 2, "--epochs", 2, "--out", branch, "--new-classes",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    done = cli("export", "--sigmoid-branch", branch, "--method", "cam", "--purpose", "localise",
               "--out", out)  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert read_spec(out).method == "cam"
    assert "nodes that lead to the logits stand in the graph as the file has" in done.stderr


def test_a_refusal_for_new_classes_writes_nothing(toy, cli, tmp_path):
    file = write(tmp_path / "net.onnx", 3)
    model = onnx.load(str(file))
    model.graph.node[-1].output[0] = "z"
    model.graph.node.append(helper.make_node("Neg", ["z"], ["y"], "turned"))
    onnx.save(model, str(file))
    done = cli(
        "train", "--arch", file, "--data", toy.data, *NORMAL, "--new-classes",
        "--cache-dir", tmp_path / "cache", "--out", tmp_path / "b.st",
    )  # fmt: skip
    assert done.exit_code == 1
    assert "must end in one linear layer, this one ends in turned (Neg); train on" in done.stderr
    assert not (tmp_path / "b.st").exists()
