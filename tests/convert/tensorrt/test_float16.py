"""Graphs in float16: what they compute, and what stays in float32."""

import numpy as np
import onnx
import pytest

from sigcam.convert.tensorrt.float16 import to_half
from sigcam.core.errors import ArtifactError
from tests.support.tiny import artifact_graph, tiny_spec, write


def tiny(folder, head="mlp", **changes):
    spec = tiny_spec(**changes)
    return write(onnx, artifact_graph(onnx, spec, head=head), folder / "model.onnx", spec.to_json())


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("all_products", [False, True])
def test_float16_computes_the_same(tmp_path, profile, all_products):
    import onnxruntime as ort

    path = tiny(tmp_path, profile=profile)
    data = to_half(path, all_products=all_products)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    feeds = {
        "image": np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8),
        "class_ids": np.array([[-1, 2], [0, -2]]),
    }
    want, got = (
        ort.InferenceSession(m, providers=["CPUExecutionProvider"]) for m in (str(path), data)
    )
    assert [o.type for o in got.get_outputs()] == [o.type for o in want.get_outputs()]
    for info, expected, found in zip(
        want.get_outputs(), want.run(None, feeds), got.run(None, feeds), strict=True
    ):
        atol = 4e-3 * max(1, np.abs(expected).max())
        np.testing.assert_allclose(found, expected, atol=atol, err_msg=info.name)


def test_what_follows_the_logits_stays_float32(tmp_path):
    """No value that only the CAMs are made of is ever rounded to float16."""
    graph = onnx.load_from_string(to_half(tiny(tmp_path, profile="split"))).graph
    made_by = {name: node for node in graph.node for name in node.output}
    kinds = {i.name: i.data_type for i in graph.initializer}
    half = onnx.TensorProto.FLOAT16
    weights = made_by["cam_weights"]
    assert weights.op_type == "Gather"  # and no cast after it
    assert kinds[weights.input[0]] == onnx.TensorProto.FLOAT
    halves = {name for name, kind in kinds.items() if kind == half}
    assert any(name.startswith("softmax") for name in halves)
    assert not any(name.startswith("sigmoid") for name in halves)
    assert read_types(graph, "logits") == onnx.TensorProto.FLOAT


def read_types(graph, name):
    return next(o.type.tensor_type.elem_type for o in graph.output if o.name == name)


def test_a_file_that_cannot_be_converted(tmp_path):
    path = tiny(tmp_path)
    graph = onnx.load(str(path))
    for node in graph.graph.node:
        for names in (node.input, node.output):
            names[:] = ["scores" if name == "logits" else name for name in names]
    onnx.save(graph, str(path))
    with pytest.raises(ArtifactError, match="no output `logits`"):
        to_half(path)
    path.write_bytes(b"not a model")
    with pytest.raises(ArtifactError, match="can't be converted to float16"):
        to_half(path)


def test_a_value_that_several_kept_nodes_read(tmp_path):
    """The converter casts it once for each of them, all under one name."""
    path = tiny(tmp_path)
    model = onnx.load(str(path))
    gather = next(n for n in model.graph.node if "evidence_logits" in n.output)
    gather.output[0] = "evidence"
    for name, op in (("twice", "Abs"), ("again", "Neg")):
        model.graph.node.append(onnx.helper.make_node(op, ["pooled"], [name]))
        value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["B", 3])
        model.graph.output.append(value)
    model.graph.node.append(onnx.helper.make_node("Identity", ["evidence"], ["evidence_logits"]))
    onnx.save(model, str(path))
    converted = onnx.load_from_string(to_half(path))
    onnx.checker.check_model(converted, full_check=True)
    made = [name for node in converted.graph.node for name in node.output]
    assert len(made) == len(set(made))
