"""Whole files: what is found in them, what is refused, and what they are compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sigcam.classifier.build import build_classifier
from sigcam.classifier.onnx.load import read_classifier
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import ModelError, ParityError, UsageError
from tests.support.onnx_files import CLASSES, classifier, constants, saved, weight


def test_a_classifier_keeps_the_names_of_its_tensors_and_nodes(tmp_path):
    read = read_classifier(saved(tmp_path, classifier()))
    assert {"conv.weight", "fc.weight", "fc.bias"} == {n for n, _ in read.model.named_parameters()}
    assert {"conv", "relu", "pool", "fc"} <= {n for n, _ in read.model.named_modules()}
    assert read.num_classes == CLASSES
    assert read.difference < 1e-5
    assert (read.takes.nhwc, read.takes.one_image, read.takes.range) == (False, False, None)


def test_channels_last(tmp_path):
    front = [helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2])]
    read = read_classifier(saved(tmp_path, classifier((1, 12, 10, 3), front)))
    assert (read.takes.nhwc, read.size) == (True, (12, 10))
    assert read.model(torch.zeros(4, 3, 12, 10)).shape == (4, CLASSES)


def reshape(*target):
    return ([helper.make_node("Reshape", ["p", "target"], ["f"], "flatten")],
            {"target": np.array(target, np.int64)})  # fmt: skip


@pytest.mark.parametrize("target", [(1, -1), (1, 6), (-1, 6), (0, -1), (0, 6)])
def test_a_batch_of_one_is_made_dynamic(tmp_path, target):
    middle, weights = reshape(*target)
    model = classifier((1, 3, 12, 10), middle=middle, weights=weights)
    read = read_classifier(saved(tmp_path, model))
    images = torch.randn(4, 3, 12, 10)
    together = read.model(images)
    one_by_one = torch.cat([read.model(image[None]) for image in images])
    torch.testing.assert_close(together, one_by_one)


@pytest.mark.parametrize("target", [(8, -1), (8, 6), (-1, 6), None])
def test_a_batch_of_another_number_is_made_dynamic(tmp_path, target):
    middle, weights = reshape(*target) if target else (None, None)
    model = classifier((8, 3, 12, 10), middle=middle, weights=weights)
    read = read_classifier(saved(tmp_path, model))
    assert (read.takes.batch, read.takes.one_image) == (8, False)
    assert read.model(torch.zeros(3, 3, 12, 10)).shape == (3, CLASSES)


def test_a_mean_that_is_looked_at_anew_is_a_reshape(tmp_path):
    """What torch.onnx writes for a pooling of a fixed batch: as_strided, by a Gather."""
    middle = [
        helper.make_node("Reshape", ["p", "row"], ["flat"]),
        helper.make_node("Gather", ["flat", "places"], ["again"]),
        helper.make_node("Reshape", ["again", "target"], ["f"]),
    ]
    numbers = np.arange(6).reshape(1, 6, 1, 1)
    weights = {"row": np.array([-1]), "places": numbers, "target": np.array([1, 6])}
    model = classifier((1, 3, 12, 10), middle=middle, weights=weights)
    read = read_classifier(saved(tmp_path, model))
    assert read.model(torch.zeros(4, 3, 12, 10)).shape == (4, CLASSES)
    weights["places"] = numbers[:, ::-1]  # another order is no Reshape
    model = classifier((1, 3, 12, 10), middle=middle, weights=weights)
    refused(tmp_path, model, r"must be logits \[B, C\] of B images, it is \[1, 5\]")


def test_what_depends_on_one_image_is_refused_by_name(tmp_path):
    # The mean over the batch's own axis: one image's features are mixed with the others'.
    mean = helper.make_node("ReduceMean", ["q"], ["f"], "over_batch", axes=[0], keepdims=1)
    middle = [helper.make_node("Flatten", ["p"], ["q"]), mean]
    model = classifier((1, 3, 12, 10), middle=middle)
    with pytest.raises(ModelError, match=r"must be logits \[B, C\] of B images, it is \[1, 5\]"):
        read_classifier(saved(tmp_path, model))


@pytest.mark.parametrize(
    ("nodes", "values", "limit"),
    [
        ([("Div", "d")], {"d": 255.0}, 255),
        ([("Mul", "m"), ("Add", "a")], {"m": 1 / 127.5, "a": -1.0}, 255),
        ([("Sub", "mean"), ("Div", "std")],
         {"mean": [[[123.0]], [[116.0]], [[103.0]]], "std": [[[58.0]], [[57.0]], [[57.0]]]}, 255),
        ([("Sub", "mean"), ("Div", "std")],
         {"mean": [[[0.485]], [[0.456]], [[0.4]]], "std": [[[0.2]], [[0.2]], [[0.2]]]}, 1),
        ([("Sub", "mean")], {"mean": [[[123.0]], [[116.0]], [[103.0]]]}, 255),
        ([("Mul", "m"), ("Sub", "a")], {"m": 2.0, "a": 1.0}, 1),
    ],
)  # fmt: skip
def test_normalisation_in_front_is_found(tmp_path, nodes, values, limit):
    names = ["x", *(f"v{i}" for i in range(len(nodes) - 1)), "image"]
    front = [
        helper.make_node(operator, [names[i], other], [names[i + 1]])
        for i, (operator, other) in enumerate(nodes)
    ]
    model = classifier(front=front, weights=constants(**values))
    read = read_classifier(saved(tmp_path, model))
    assert read.takes.range == limit
    loaded = load_model(str(tmp_path / "model.onnx"))
    assert loaded.knows_normalisation
    # A white pixel arrives as the graph wants it.
    white = 255 / loaded.preprocessing.scale - loaded.preprocessing.mean[0]
    assert white / loaded.preprocessing.std[0] == pytest.approx(limit)


def test_without_normalisation_nothing_is_assumed(tmp_path):
    assert not load_model(str(saved(tmp_path, classifier()))).knows_normalisation


@pytest.mark.parametrize("given", [{}, {"mean": (0.5,) * 3}, {"std": (0.5,) * 3}])
def test_mean_and_std_are_asked_for(tmp_path, given):
    path = saved(tmp_path, classifier())
    with pytest.raises(UsageError, match=r"mean and std must be given\. Usual are --mean 0\.485"):
        build_classifier(str(path), **given)


def test_bytes(tmp_path):
    front = [helper.make_node("Cast", ["x"], ["f32"], to=TensorProto.FLOAT),
             helper.make_node("Div", ["f32", "d"], ["image"])]  # fmt: skip
    model = classifier(front=front, weights=constants(d=255.0), element=TensorProto.UINT8)
    assert read_classifier(saved(tmp_path, model)).takes.is_bytes


def test_half_precision(tmp_path):
    model = classifier()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(
            numpy_helper.to_array(tensor).astype(np.float16), tensor.name))  # fmt: skip
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    read = read_classifier(saved(tmp_path, model))
    assert {p.dtype for p in read.model.parameters()} == {torch.float32}
    assert "half precision" in read.notes[0]


def test_weights_in_another_file(tmp_path):
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = saved(tmp_path, classifier(), **options)
    assert read_classifier(path).difference < 1e-5
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"weights in w\.bin beside it, which isn't there; copy"):
        read_classifier(path)


def test_a_quantised_network_is_read_without_its_rounding(tmp_path):
    """The Clip that takes the rounding's place does the ReLU that the quantiser left out."""
    middle = [
        helper.make_node("Flatten", ["p"], ["g"]),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["f"]),
    ]
    figures = {"s": np.array(0.001, np.float32), "z": np.array(-128, np.int8)}
    read = read_classifier(saved(tmp_path, classifier(middle=middle, weights=figures)))
    assert "quantised" in read.notes[0]
    features = read.model.get_submodule("f") if "f" in dict(read.model.named_modules()) else None
    assert "Clip" in [step.call.operator for step in read.model.steps], features
    images = torch.randn(2, 3, 12, 10, requires_grad=True)
    read.model(images).sum().backward()
    assert images.grad is not None


def test_weights_that_are_computed_are_folded(tmp_path):
    middle = [
        helper.make_node("Flatten", ["p"], ["e"]),
        helper.make_node("Transpose", ["w.t"], ["w"], perm=[1, 0]),
        helper.make_node("DequantizeLinear", ["w8", "s"], ["w2"]),
        helper.make_node("MatMul", ["e", "w"], ["m"], "first"),
        helper.make_node("MatMul", ["m", "w2"], ["f"], "second"),
    ]
    whole = np.random.default_rng(1).integers(-100, 100, (6, 6)).astype(np.int8)
    weights = {"w.t": weight(6, 6), "w8": whole, "s": np.array(0.01, np.float32)}
    read = read_classifier(saved(tmp_path, classifier(middle=middle, weights=weights)))
    assert {"w", "w2"} < {n for n, _ in read.model.named_parameters()}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"), (b"PK\x03\x04" + b"x" * 60, "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + b"x" * 9, "HDF5"), (b"\x1c\x00\x00\x00TFL3", "TensorFlow Lite"),
        (b"\x10\x00\x00\x00ORTM", "own format"), (b"\x80\x02\x8a\nl", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<html></html>", "web page"), (b"nothing that one knows", "a text"),
    ],
)  # fmt: skip
def test_other_files_are_named(tmp_path, content, words):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"must be an ONNX model") as error:
        read_classifier(path)
    assert words in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        read_classifier(tmp_path / "model.onnx")


def refused(tmp_path, model, pattern, kind=ModelError):
    with pytest.raises(kind, match=pattern):
        read_classifier(saved(tmp_path, model))


def test_unknown_opsets_operators_and_domains(tmp_path):
    refused(tmp_path, classifier(opset=6), r"opsets 7 to 22, it is of 6; convert it")
    odd = helper.make_node("Det", ["p"], ["f"], "odd")
    refused(tmp_path, classifier(middle=[odd]), r"aren't translated \(Det at odd\)")
    custom = helper.make_node("FusedConv", ["p"], ["f"], "own", domain="com.microsoft")
    refused(tmp_path, classifier(middle=[custom]), r"com\.microsoft\.FusedConv at own")


def test_control_flow_detectors_and_training(tmp_path):
    empty = helper.make_graph([], "e", [], [])
    branch = helper.make_node("If", ["p"], ["f"], "if", then_branch=empty, else_branch=empty)
    refused(tmp_path, classifier(middle=[branch]), r"control flow \(If at if\)")
    boxes = helper.make_node("NonMaxSuppression", ["p", "p"], ["f"], "nms")
    refused(tmp_path, classifier(middle=[boxes]), r"detector's graph \(NonMaxSuppression at nms\)")
    norm = helper.make_node("BatchNormalization", ["p"] * 5, ["f"], "bn", training_mode=1)
    refused(tmp_path, classifier(middle=[norm], opset=15), r"only training needs .*at bn")


def test_outputs(tmp_path):
    grid = (("masks", ("b", 5, 12, 10)),)
    refused(tmp_path, classifier(outputs=grid), r"masks \(float32 \[b, 5, 12, 10\]\), as segm")
    both = (("logits", ("b", 5)), ("f", ("b", 6)))
    model = classifier(outputs=both)
    refused(tmp_path, model, r"several that may be it: logits .*model\.onnx#logits")
    path = saved(tmp_path, model)
    assert read_classifier(path, "logits").num_classes == CLASSES
    assert load_model(f"{path}#logits").model.output_name == "logits"
    with pytest.raises(UsageError, match=r"no output 'scores', .*; it has 'logits', 'f'"):
        read_classifier(path, "scores")


def test_inputs(tmp_path):
    model = classifier(middle=[helper.make_node("Mul", ["p", "y"], ["f"])])
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", 6)))
    refused(tmp_path, model, r"one input of images, .* it has x .*, y \(float32 \[b, 6\]\)")
    refused(tmp_path, classifier(element=TensorProto.INT64), "floating or uint8")


@pytest.mark.parametrize("dims", [("b", 3), (), (1, 3, 12, 10)])
def test_an_input_that_no_node_takes_is_left_out(tmp_path, dims):
    """Keras's export leaves some."""
    alone = read_classifier(saved(tmp_path, classifier()))
    model = classifier()
    model.graph.input.insert(0, helper.make_tensor_value_info("y", TensorProto.FLOAT, dims))
    read = read_classifier(saved(tmp_path, model))
    assert read.takes == alone.takes
    images = torch.randn(2, 3, 12, 10)
    torch.testing.assert_close(read.model(images), alone.model(images))


def test_stored_tensors_that_nothing_takes_stay_inputs(tmp_path):
    """Before version 4 of the format each stored tensor had to be an input."""
    model = classifier()
    model.ir_version = 3
    model.graph.initializer.append(numpy_helper.from_array(weight(2), "spare"))
    for tensor in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims)
        )
    model.graph.input.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ("b", 3)))
    assert read_classifier(saved(tmp_path, model)).difference < 1e-5


@pytest.mark.parametrize("mark", ["@", "#", ":", "@0.", "::"])
def test_names_with_characters_that_mean_something_elsewhere(tmp_path, mark):
    """Old converters name nodes as MaxPool@0; torch writes so a module that runs again."""
    model = classifier()
    for node in model.graph.node:
        node.name = f"{node.op_type}{mark}0"
    path = str(saved(tmp_path, model))
    built = build_classifier(path, mean=(0.5,) * 3, std=(0.5,) * 3)
    (target,) = built.dual.targets
    assert target.layer == f"Relu{mark}0".translate(str.maketrans("@#:", "___"))
    again = build_classifier(
        path, mean=(0.5,) * 3, std=(0.5,) * 3, target_layers=[target.layer]
    )  # fmt: skip
    assert again.dual.targets == built.dual.targets


def test_weights_that_are_not_finite(tmp_path):
    broken = weight(6, 3, 3, 3)
    broken[0, 0, 0, 0] = np.nan
    model = classifier()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(broken, "conv.weight"))
    refused(tmp_path, model, r"weight conv\.weight must be finite")


def test_another_size_than_the_files(tmp_path):
    path = saved(tmp_path, classifier())
    with pytest.raises(ModelError, match=r"takes images of 12x10, the size asked for is"):
        read_classifier(path, size=(64, 64))
    free = saved(tmp_path, classifier(("b", 3, "h", "w")))
    assert read_classifier(free, size=(20, 16)).size == (20, 16)


def test_a_graph_that_was_read_wrongly_is_refused(tmp_path, monkeypatch):
    from sigcam.classifier.onnx.operators import table

    entry = table.TABLE["Relu"]
    wrong = table.Operator(lambda call, x: x, entry.weights, entry.static)
    monkeypatch.setitem(table.TABLE, "Relu", wrong)
    refused(
        tmp_path, classifier(), r"must give ONNX Runtime's logits to within 0.0001", ParityError
    )


def test_weights_and_classes_beside_the_file(tmp_path):
    path = str(saved(tmp_path, classifier()))
    for options, pattern in (
        ({"weights": "DEFAULT"}, "leave the weights out"), ({"num_classes": 7}, "has 5 classes"),
        ({"channels": 1}, "takes images of 3 channels"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=pattern):
            load_model(path, **options)
