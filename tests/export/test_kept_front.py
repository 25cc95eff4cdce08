"""The front of an ONNX file stands in the artifact as it is, joined with what was read."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from sigcam.classifier.build import build_classifier
from sigcam.classifier.onnx.kept import NotKeptError
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ParityError
from sigcam.export import kept_front
from sigcam.export.entry import cut_tail
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions
from sigcam.export.parity import file as parity_file

SIZE, CLASSES = (12, 10), 5
NORMAL = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def weight(*shape, seed=0):
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def network(opset=17, shape=("b", 3, *SIZE), element=TensorProto.FLOAT, names=("x", "y"),
            middle=(), stored=(), front=()):  # fmt: skip
    """Two convolutions with a batch norm and a maximum, global pooling, a linear layer."""
    x, y = names
    nodes = [
        *front,
        helper.make_node("Conv", ["image" if front else x, "w1"], ["features"], "conv1",
                         pads=[0, 0, 1, 1], strides=[2, 2]),
        helper.make_node("BatchNormalization", ["features", "s", "b", "m", "v"], ["n"], "norm"),
        helper.make_node("Relu", ["n"], ["cams"], "relu1"),
        *middle,
        helper.make_node("Conv", ["after" if middle else "cams", "w2"], ["c"], "conv2",
                         pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "fc", "bias"], [y], "last", transB=1),
    ]  # fmt: skip
    arrays = {"w1": weight(4, 3, 3, 3), "s": weight(4) + 1, "b": weight(4), "m": weight(4),
              "v": np.full(4, 0.5, np.float32), "w2": weight(6, 4, 3, 3), "fc": weight(CLASSES, 6),
              "bias": weight(CLASSES), **dict(stored)}  # fmt: skip
    batch = shape[0]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(x, element, shape)],
        [helper.make_tensor_value_info(y, TensorProto.FLOAT, (batch, CLASSES))],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


RESHAPED = [
    helper.make_node("Reshape", ["cams", "flat"], ["t"], "there"),
    helper.make_node("Reshape", ["t", "grid"], ["after"], "back"),
]
FIXED = {"flat": np.array([1, 4, 30], np.int64), "grid": np.array([1, 4, 6, 5], np.int64)}
LAST = [helper.make_node("Transpose", ["x"], ["image"], "turn", perm=[0, 3, 1, 2])]
BYTES = [
    helper.make_node("Cast", ["x"], ["as_float"], "cast", to=TensorProto.FLOAT),
    helper.make_node("Div", ["as_float", "top"], ["image"], "scale"),
]
CASES = {
    "opset 9": (network(9), {}),
    "opset 13": (network(13), {}),
    "as written": (network(18), {}),
    "opset 22": (network(22), {}),
    "batch of one": (network(13, (1, 3, *SIZE), middle=RESHAPED, stored=FIXED.items()), {}),
    "channels last": (network(18, ("b", *SIZE, 3), front=LAST), {}),
    "bytes": (
        network(18, element=TensorProto.UINT8, front=BYTES,
                stored={"top": np.array(255, np.float32)}.items()),
        {"mean": None, "std": None},
    ),
    "our names": (network(18, names=("image", "logits")), {}),
}  # fmt: skip


def built(tmp_path, model, **options):
    path = tmp_path / "file.onnx"
    onnx.save(model, str(path))
    given = {**NORMAL, **options}
    return build_classifier(str(path), **{k: v for k, v in given.items() if v is not None})


def exported(tmp_path, classifier, **options):
    out = tmp_path / "out.onnx"
    spec = export_artifact(classifier, out, ExportOptions(branch="softmax", **options))
    return spec, onnx.load(str(out))


def stored(model):
    return {t.name: t for t in model.graph.initializer}


def front_of(model, last):
    """The nodes that the output of a node depends on, by a search of the test's own."""
    wanted, found = {last}, []
    for node in reversed(model.graph.node):
        if node.name in wanted or wanted & set(node.output):
            wanted |= set(node.input)
            found.append(node)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_front_is_the_files_own_bit_for_bit(tmp_path, name):
    model, given = CASES[name]
    spec, artifact = exported(tmp_path, built(tmp_path, model, **given), method="gradcam")
    front = front_of(model, "relu2")
    assert spec.source.front.startswith(f"{len(front)} of the {len(model.graph.node)} nodes")
    assert ("converted from opset" in spec.source.front) == (model.opset_import[0].version != 18)
    written = {node.name: node for node in artifact.graph.node}
    weights = stored(artifact)
    for node in front:
        ours = written[node.name]
        assert ours.op_type == node.op_type
        kept = sorted(a.SerializeToString() for a in node.attribute)
        assert sorted(a.SerializeToString() for a in ours.attribute) == kept
        for theirs, own in zip(node.input, ours.input, strict=True):
            if theirs in stored(model) and node.op_type != "Reshape":
                tensor = numpy_helper.to_array(stored(model)[theirs])
                assert numpy_helper.to_array(weights[own]).tobytes() == tensor.tobytes()
    assert [i.name for i in artifact.graph.input] == ["image"]
    assert artifact.graph.output[0].name == "logits"
    # No node of ours stands for the part any more.
    assert {node.domain for node in artifact.graph.node} == {""}


@pytest.mark.slow
def test_the_joined_file_gives_the_files_logits(tmp_path):
    model = CASES["batch of one"][0]
    spec, _ = exported(tmp_path, built(tmp_path, model), method="gradcam")
    image = np.random.default_rng(0).integers(0, 255, (3, *SIZE, 3)).astype(np.uint8)
    session = ort.InferenceSession(str(tmp_path / "out.onnx"))
    (got,) = session.run(["logits"], {"image": image})
    original = ort.InferenceSession(str(tmp_path / "file.onnx"))
    values = ((image / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    want = np.concatenate([original.run(None, {"x": one[None]})[0] for one in values])
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    assert spec.parity.file["logits"].max_rel < 1e-5
    assert read_spec(tmp_path / "out.onnx") == spec


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"method": "cam"}, {"method": "layercam", "features": True},
                                     {"method": "gradcam", "profile": "split"},
                                     {"method": "gradcam", "head_graph": True,
                                      "classes": "input", "external_data": True}])  # fmt: skip
def test_every_form_of_an_artifact(tmp_path, options):
    """A value of the file may be an output of the artifact itself."""
    spec, _ = exported(tmp_path, built(tmp_path, network(17)), **options)
    assert "as the file has them" in spec.source.front
    assert all(error.max_rel < 1e-5 for error in spec.parity.outputs.values())


@pytest.mark.slow
def test_a_lower_target_layer_keeps_less(tmp_path):
    classifier = built(tmp_path, network(18), target_layers=["relu1"])
    spec, _ = exported(tmp_path, classifier, method="gradcam")
    assert spec.source.front.startswith("3 of the 8 nodes")
    assert spec.target_layers == ("relu1",)


def kept_of(classifier):
    dual = classifier.dual
    cut = cut_tail(dual.features, dual.branch, dual.targets)
    return kept_front.kept_for(cut.front, dual.softmax_head.traced, 17)[0]


def test_changed_weights_are_not_those_of_the_file(tmp_path):
    classifier = built(tmp_path, network())
    assert kept_of(classifier).nodes == 5
    next(classifier.dual.features.parameters()).data.mul_(1.01)
    with pytest.raises(NotKeptError, match=r"differs by .* \(weights that were changed"):
        kept_of(classifier)


def test_half_precision_is_read(tmp_path):
    model = network()
    for tensor in model.graph.initializer:
        half = numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(NotKeptError, match=r"its weight w1 is float16, and maps are computed in"):
        kept_of(built(tmp_path, model))


@pytest.mark.slow
def test_what_can_not_be_kept_is_read_and_said(tmp_path, monkeypatch):
    def refuse(model, opset):
        raise NotKeptError(f"onnx can't convert it from opset 13 to {opset}: no such way")

    monkeypatch.setattr(kept_front, "converted", refuse)
    spec, artifact = exported(tmp_path, built(tmp_path, network(13)), method="gradcam")
    assert spec.source.front == (
        "all of the file's graph was read into PyTorch's operators, and none of it kept: onnx "
        "can't convert it from opset 13 to 18: no such way"
    )
    assert "conv1" not in {node.name for node in artifact.graph.node}


@pytest.mark.parametrize(
    ("own", "to", "operator", "attributes", "words"),
    [(22, 18, "Relu", {}, None), (20, 18, "Gelu", {}, "Gelu"),
     (21, 18, "GroupNormalization", {"num_groups": 2}, "GroupNormalization"),
     (19, 18, "AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilations")],
)  # fmt: skip
def test_a_lower_opset_is_taken_where_nodes_mean_the_same(own, to, operator, attributes, words):
    inputs = ["x", "s", "b"] if operator == "GroupNormalization" else ["x"]
    graph = helper.make_graph(
        [helper.make_node(operator, inputs, ["y"], "node", **attributes)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["b", 4, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", own)])
    if words is None:
        assert kept_front.converted(model, to).opset_import[0].version == to
        return
    with pytest.raises(NotKeptError, match=f"node .*{words}.* of opset {own} has no counterpart"):
        kept_front.converted(model, to)


def test_a_way_down_that_does_not_exist_is_refused():
    """What ORT would refuse or take for another function must not pass as converted."""
    model = network(9)
    assert kept_front.converted(model, 18).opset_import[0].version == 18
    for tensor in model.graph.initializer:
        after = stored(kept_front.converted(model, 18))[tensor.name]
        assert numpy_helper.to_array(after).tobytes() == numpy_helper.to_array(tensor).tobytes()


# The gradients of what was read, against differences of the file.


def softmax_after(model):
    """The same network, whose output is the probabilities."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    changed.graph.node[-1].output[0] = "z"
    changed.graph.node.append(helper.make_node("Softmax", ["z"], ["y"], "squash", axis=1))
    return changed


def averaged(model):
    """The same network with operators that ONNX Runtime has in float64 behind the layer."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    pool = next(n for n in changed.graph.node if n.op_type == "GlobalAveragePool")
    pool.op_type = "ReduceMean"
    pool.attribute.append(helper.make_attribute("axes", [2, 3]))
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda m: m, softmax_after, averaged])
def test_gradients_agree_with_differences_of_the_file(tmp_path, change):
    classifier = built(tmp_path, change(network(17)), target_layers=["relu1"])
    spec, _ = exported(tmp_path, classifier, method="gradcam")
    assert spec.parity.file["gradients"].max_rel < 5e-4


@pytest.mark.slow
@pytest.mark.parametrize("change", [lambda m: m, averaged])
def test_wrong_gradients_are_found_and_nothing_is_written(tmp_path, monkeypatch, change):
    classifier = built(tmp_path, change(network(17)), target_layers=["relu1"])
    own = parity_file._Point._gradient
    monkeypatch.setattr(parity_file._Point, "_gradient", lambda self: own(self) * 1.01)
    with pytest.raises(ParityError, match=r"gradient of the logits at the layer 'relu1' differs"):
        exported(tmp_path, classifier, method="gradcam")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.slow
def test_other_logits_than_the_files_are_found(tmp_path, monkeypatch):
    classifier = built(tmp_path, network(17))
    own = parity_file.original_logits
    monkeypatch.setattr(parity_file, "original_logits", lambda *a: own(*a) * 1.001)
    with pytest.raises(ParityError, match=r"artifact's logits differ from those of file\.onnx"):
        exported(tmp_path, classifier, method="cam")
    assert not (tmp_path / "out.onnx").exists()


def test_functions_of_the_file_become_plain_operators(tmp_path):
    """The same network, whose first norm and ReLU are a function of the file's own."""
    model = network(17)
    inside = [model.graph.node[1], model.graph.node[2]]
    function = helper.make_function(
        "own", "Both", ["features", "s", "b", "m", "v"], ["cams"], inside,
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    call = helper.make_node("Both", ["features", "s", "b", "m", "v"], ["cams"], "both", "", "own")
    model.graph.node.insert(1, call)
    for node in inside:
        model.graph.node.remove(node)
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("own", 1))
    kept = kept_of(built(tmp_path, model))
    assert kept.nodes == 5
    assert kept.changes == "with some of them written as ONNX's plain operators"
