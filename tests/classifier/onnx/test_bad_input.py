"""What is no classifier's ONNX file is refused: what was wanted, what came, what to do.

Where a message says what to do, the advice is followed.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from sigcam.classifier.onnx.load import read_classifier
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import ModelError, SigcamError, UsageError
from tests.support.onnx_files import CLASSES, classifier, saved, weight

FLOAT = TensorProto.FLOAT


def node(operator, inputs, outputs, name=None, **attributes):
    return helper.make_node(operator, inputs, outputs, name or operator.lower(), **attributes)


def refusal(path, kind=ModelError, **options):
    """The message that a file is refused with; nothing is written beside it."""
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(kind) as error:
        read_classifier(path, **options)
    assert sorted(path.parent.rglob("*")) == before
    text = str(error.value)
    assert str(path) in text or re.search(r"the (node|graph|tensor|input|logits)", text), text
    assert ";" in text, text  # what came; what to do
    return text


# Files that aren't ONNX.


def zipped(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return stream.getvalue()


def checkpoint(**options):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, stream, **options)
    return stream.getvalue()


def tarred():
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.onnx"))
    return stream.getvalue()


def truncated(share):
    data = classifier().SerializeToString()
    return data[: int(len(data) * share)]


OTHERS = {
    "empty": (b"", "it is empty"),
    "TorchScript": (zipped("net/data.pkl", "net/constants.pkl"), "TorchScript archive"),
    "checkpoint": (checkpoint(), "PyTorch checkpoint"),
    "old checkpoint": (checkpoint(_use_new_zipfile_serialization=False), "pickle"),
    "pickle 5": (b"\x80\x05]q\x00K\x01a.", "pickle"),
    "keras": (zipped("config.json", "model.weights.h5"), "Keras model"),
    "zipped onnx": (zipped("net/model.onnx"), "unpack it"),
    "cut zip": (zipped("net/data.pkl")[:60], "zip archive"),
    "tar": (tarred(), "tar archive"),
    "safetensors": (b"\x10" + bytes(7) + b'{"a":{"dtype":"F32"}}', "tensors (.safetensors)"),
    "tflite": (b"\x1c\x00\x00\x00TFL3" + bytes(64), "TensorFlow Lite"),
    "ort": (b"\x10\x00\x00\x00ORTM" + bytes(64), "own format (.ort)"),
    "web page": (b"\n<!DOCTYPE html><html>", "web page"),
    "web page in small letters": (b"<!doctype html>", "web page"),
    "OpenVINO": (b'\xef\xbb\xbf<?xml version="1.0"?><net>', "OpenVINO"),
    "prototxt": (b'name: "CaffeNet"\nlayer {', ".prototxt"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "git lfs pull"),
    "JSON": (json.dumps({"model": 1}).encode(), "JSON"),
    "text": (b"404: Not Found", "a text"),
    "JPEG": (b"\xff\xd8\xff\xe0" + bytes(90), "JPEG"),
    "noise": (bytes(range(128, 256)), "128 bytes are no such graph"),
    "begun": (truncated(0.5), "end early, or are damaged; copy or download it again"),
    "nearly whole": (truncated(0.999), "end early, or are damaged"),
    "of another message": (helper.make_tensor("t", 1, [2], [0.0, 1.0]).SerializeToString(),
                           "end early|no such graph"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_files_that_are_not_onnx(tmp_path, name):
    content, words = OTHERS[name]
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert re.search(words if "|" in words else re.escape(words), refusal(path))


def test_folders(tmp_path):
    path = tmp_path / "model.onnx"
    path.mkdir()
    assert "it is a folder; name the file" in refusal(path)
    (path / "a.onnx").write_bytes(b"")
    assert "a folder with a.onnx; name the file" in refusal(path)
    (path / "saved_model.pb").write_bytes(b"")
    assert "tf2onnx.convert --saved-model" in refusal(path)
    assert "there is no file" in refusal(tmp_path / "none.onnx")


# Graphs that aren't classifiers'.


def with_outputs(*outputs, nodes=()):
    """The classifier with other outputs: (name, type, shape)."""
    model = classifier()
    del model.graph.output[:]
    model.graph.node.extend(nodes)
    model.graph.output.extend(helper.make_tensor_value_info(*o) for o in outputs)
    return model


def detector():
    return with_outputs(
        ("boxes", FLOAT, ("n", 4)), ("scores", FLOAT, ("n",)),
        nodes=[node("NonMaxSuppression", ["r", "r"], ["boxes"], "nms")],
    )  # fmt: skip


def zipmap():
    """What skl2onnx writes: a label, and a list of maps."""
    model = classifier(back=[node("Softmax", ["logits"], ["probabilities"], axis=1)])
    model.graph.node.extend([
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        node("ZipMap", ["probabilities"], ["output"], domain="ai.onnx.ml",
             classlabels_int64s=list(range(5))),
    ])  # fmt: skip
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    del model.graph.output[:]
    maps = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(FLOAT, []))  # fmt: skip
    model.graph.output.extend([
        helper.make_tensor_value_info("label", TensorProto.INT64, ("b",)),
        helper.make_value_info("output", helper.make_sequence_type_proto(maps)),
    ])  # fmt: skip
    return model


NO_CLASSIFIERS = {
    "segmentation": (
        lambda: with_outputs(("r", FLOAT, ("b", 6, 6, 5))),
        r"it has r \(float32 \[b, 6, 6, 5\]\), as segmentation networks .* have; give",
    ),
    "several grids": (
        lambda: with_outputs(("p3", FLOAT, ("b", 3, 6, 5)), ("p4", FLOAT, ("b", 3, 3, 2)),
                             nodes=[node("Relu", ["r"], ["p3"]), node("Relu", ["r"], ["p4"])]),
        r"it has p3 .*, p4 ",
    ),
    "tokens": (
        lambda: with_outputs(("p", FLOAT, ("b", 6, 8))), "as detectors and networks that give",
    ),
    "boxes": (detector, r"detector's graph \(NonMaxSuppression at nms\); give a classifier"),
    "labels": (
        lambda: with_outputs(("label", TensorProto.INT64, ("b", 1)),
                             nodes=[node("ArgMax", ["logits"], ["label"], axis=1)]),
        r"it has label \(int64 \[b, 1\]\); give a classifier, or name the value inside",
    ),
    "strings": (
        lambda: with_outputs(("name", TensorProto.STRING, ("b", 1)),
                             nodes=[node("Cast", ["logits"], ["name"], to=TensorProto.STRING)]),
        r"it has name \(string \[b, 1\]\)",
    ),
    "maps": (zipmap, r"output \(a sequence of maps from int64 to float32\).*#probabilities"),
    "nothing": (with_outputs, "it has no output"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_CLASSIFIERS)
def test_graphs_without_logits(tmp_path, name):
    make, pattern = NO_CLASSIFIERS[name]
    assert re.search(pattern, refusal(saved(tmp_path, make())))


@pytest.mark.parametrize("make", [zipmap, NO_CLASSIFIERS["labels"][0], detector])
def test_a_value_inside_can_be_named(tmp_path, make):
    path = saved(tmp_path, make())
    assert load_model(f"{path}#logits").model.output_name == "logits"
    assert read_classifier(path, "logits").num_classes == CLASSES


def test_the_maps_advice_is_followed(tmp_path):
    path = saved(tmp_path, zipmap())
    named = re.search(r"behind the file: (\S+)$", refusal(path))
    assert load_model(named[1]).model.output_name == "probabilities"


def test_several_outputs_are_named_and_one_is_chosen(tmp_path):
    model = with_outputs(("logits", FLOAT, ("b", 5)), ("f", FLOAT, ("b", 6)), ("r", FLOAT, None))
    path = saved(tmp_path, model)
    text = refusal(path)
    assert "logits (float32 [b, 5]), f (float32 [b, 6]), r (float32, of unknown shape)" in text
    named = re.search(r"name one behind the file: (\S+)$", text)
    assert load_model(named[1]).model.output_name == "logits"
    with pytest.raises(UsageError, match=r"no output 'scores', nor a value .*'logits', 'f', 'r'"):
        load_model(f"{path}#scores")


def test_beside_the_logits_anything_may_be(tmp_path):
    """What the logits don't need isn't looked at: labels, operators of other domains."""
    model = classifier()
    model.graph.node.append(node("Own", ["r"], ["other"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    assert read_classifier(saved(tmp_path, model)).num_classes == CLASSES


# Graphs that can't be read.


def condition(value):
    branch = [
        helper.make_graph([node(o, ["p"], ["q"])], o, [], [onnx.ValueInfoProto(name="q")])
        for o in ("Identity", "Neg")
    ]
    chosen = node("If", ["known"], ["q"], "if", then_branch=branch[0], else_branch=branch[1])
    middle = [chosen, node("Flatten", ["q"], ["f"])]
    return classifier(middle=middle, weights={"known": np.array(value)})


def training_norm(**options):
    stored = {n: np.ones(6, np.float32) for n in "smuv"}
    extra = ["m2", "v2"] if options.pop("outputs", 1) > 1 else []
    middle = [node("BatchNormalization", ["p", *"smuv"[:1], "m", "u", "v"], ["n", *extra], "bn",
                   **options), node("Flatten", ["n"], ["f"])]  # fmt: skip
    return middle, stored


def dropout():
    middle = [node("Dropout", ["p", "ratio", "training"], ["d"], "drop"),
              node("Flatten", ["d"], ["f"])]  # fmt: skip
    stored = {"ratio": np.array(0.5, np.float32), "training": np.array(True)}
    return classifier(middle=middle, weights=stored)


def broken(value):
    values = weight(6, 3, 3, 3)
    values[1, 1, 1, 1] = value
    return classifier(weights={"conv.weight": values})


def more_inputs():
    model = classifier(middle=[node("Flatten", ["p"], ["e"], "flatten"),
                               node("Mul", ["e", "size"], ["f"], "mul")])  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("size", FLOAT, ("b", 2)))
    return model


def artifact():
    model = classifier()
    model.metadata_props.append(onnx.StringStringEntryProto(key="sigcam", value="{}"))
    return model


def text_constant():
    model = classifier(middle=[node("Constant", [], ["t"], value_string="x"),
                               node("Own", ["p", "t"], ["f"])])  # fmt: skip
    model.graph.node[4].op_type = "Concat"
    return model


def function():
    """A function of the file's own, whose body is ONNX's own operators, and one that is empty."""
    model = classifier(middle=[node("Own", ["p"], ["f"], "own", domain="my.functions")])
    model.opset_import.append(helper.make_opsetid("my.functions", 1))
    return model


UNREADABLE = {
    "If": (lambda: condition(True), r"control flow \(If at if\); simplify it"),
    "Loop": (lambda: classifier(middle=[node("Loop", ["", "", "p"], ["f"], "loop")]), "Loop at l"),
    "Scan": (lambda: classifier(middle=[node("Scan", ["p"], ["f"], "scan")]), "Scan at scan"),
    "a detector's operator": (
        lambda: classifier(middle=[node("RoiAlign", ["p"], ["f"], "roi")]), "RoiAlign at roi",
    ),
    "a custom domain": (function, r"others \(my\.functions\.Own at own\); give the file from befo"),
    "training norm": (
        lambda: classifier(middle=training_norm(training_mode=1)[0], opset=15,
                           weights=training_norm()[1]), "only training needs .*at bn",
    ),
    "training norm of old": (
        lambda: classifier(middle=training_norm(outputs=3)[0], opset=9,
                           weights=training_norm()[1]), "only training needs .*at bn",
    ),
    "training dropout": (dropout, r"only training needs \(Dropout at drop\); export .*eval"),
    "gradient": (
        lambda: classifier(middle=[node("Gradient", ["p"], ["f"], "g",
                                        domain="ai.onnx.preview.training")]), "Gradient at g",
    ),
    "loss": (
        lambda: classifier(middle=[node("SoftmaxCrossEntropyLoss", ["p"], ["f"], "loss")]),
        r"only training needs \(SoftmaxCrossEntropyLoss at loss\)",
    ),
    "NaN": (lambda: broken(np.nan), r"weight conv\.weight must be finite, .* good checkpoint"),
    "infinite": (lambda: broken(np.inf), r"weight conv\.weight must be finite"),
    "opset 6": (lambda: classifier(opset=6), "opsets 7 to 22, it is of 6; convert it: python -m"),
    "opset 99": (lambda: classifier(opset=99), "opsets 7 to 22, it is of 99; convert it"),
    "several inputs": (more_inputs, r"one input of images.*x .*, size \(float32 \[b, 2\]\); make "),
    "an artifact": (artifact, r"an exported model of sigcam's; run it as it is"),
    "no images": (lambda: classifier(("b", 30)), r"one input of images, .* x \(float32 \[b, 30\]"),
    "integers": (lambda: classifier(element=TensorProto.INT64), "floating or uint8, it is int64"),
    "text": (text_constant, r"\(Constant\) must hold numbers|must hold numbers"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_graphs_that_can_not_be_read(tmp_path, name):
    make, pattern = UNREADABLE[name]
    assert re.search(pattern, refusal(saved(tmp_path, make())))


def test_external_weights(tmp_path):
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = saved(tmp_path, classifier(), **options)
    whole = (tmp_path / "w.bin").read_bytes()
    (tmp_path / "w.bin").write_bytes(whole[:20])
    assert "copy the files anew" in refusal(path)
    (tmp_path / "w.bin").unlink()
    assert "keeps its weights in w.bin beside it, which isn't there; copy that" in refusal(path)
    (tmp_path / "w.bin").write_bytes(whole)
    assert read_classifier(path).num_classes == CLASSES


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd"])
def test_external_weights_elsewhere_are_not_read(tmp_path, location):
    folder = tmp_path / "inside"
    folder.mkdir()
    options = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    path = saved(folder, classifier(), **options)
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    (folder / "w.bin").rename(tmp_path / "w.bin")
    with pytest.raises(SigcamError, match=r"can't be read|isn't there"):
        read_classifier(path)


# Advice that is followed.


def old(opset):
    """A classifier of an opset whose operators differ from the known ones."""
    middle = [node("Dropout", ["p"], ["d"]), node("Flatten", ["d"], ["f"], "flatten")]
    model = classifier(middle=middle, back=[node("Softmax", ["logits"], ["out"], axis=1)],
                       outputs=[("out", ("b", CLASSES))], opset=opset)  # fmt: skip
    if opset < 7:
        model.ir_version = 3
        known = {t.name: t for t in model.graph.initializer}
        model.graph.input.extend(  # as the old IR wants it
            helper.make_tensor_value_info(n, t.data_type, list(t.dims)) for n, t in known.items()
        )
        gemm = next(n for n in model.graph.node if n.op_type == "Gemm")
        gemm.attribute.append(helper.make_attribute("broadcast", 1))
    return model


@pytest.mark.parametrize("opset", [6, 23, 24])
def test_a_file_of_another_opset_is_converted_as_the_message_says(tmp_path, opset):
    path = saved(tmp_path, old(opset))
    for command in refusal(path).partition("convert it: ")[2].split(" && "):
        words = shlex.split(command)
        assert words[0] == "python"
        subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, check=True, timeout=120)
    read = read_classifier(tmp_path / "converted.onnx")
    assert read.num_classes == CLASSES
    # ONNX Runtime runs no opset 6; in 13 the same nodes mean the same.
    same = old(max(opset, 13)).SerializeToString()
    session = ort.InferenceSession(same, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 10)).astype(np.float32)
    with torch.no_grad():
        found = read.model(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, session.run(None, {"x": x})[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("value", [True, False])
def test_a_constant_branch_is_taken_out_as_the_message_says(tmp_path, value):
    pytest.importorskip("onnxsim")
    path = saved(tmp_path, condition(value))
    command = re.search(r"\(onnxsim (\S+) (\S+)\)", refusal(path))
    subprocess.run(
        [sys.executable, "-m", "onnxsim", *command.groups()], cwd=tmp_path, check=True, timeout=120
    )
    read = read_classifier(tmp_path / command[2])
    assert ("Neg" in [step.call.operator for step in read.model.steps]) != value


def test_a_further_input_is_made_a_constant(tmp_path):
    model = classifier(middle=[node("Flatten", ["p"], ["e"], "flatten"),
                               node("Mul", ["e", "size"], ["f"], "mul")])  # fmt: skip
    model.graph.input.append(helper.make_tensor_value_info("size", FLOAT, (1,)))
    path = saved(tmp_path, model)
    assert "make size a constant of the graph (an initializer)" in refusal(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(1, np.float32), "size"))
    assert read_classifier(saved(tmp_path, model)).num_classes == CLASSES


def test_inputs_of_open_sizes(tmp_path):
    read = read_classifier(saved(tmp_path, classifier(("b", 3, "h", "w"))), size=(20, 16))
    assert (read.size, read.takes.height) == ((20, 16), None)
    unnamed = classifier((None, None, None, None))
    assert read_classifier(saved(tmp_path, unnamed), size=(20, 16)).takes.channels == 3
