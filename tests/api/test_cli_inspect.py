"""`sigcam inspect` of files that can be exported, and of files that can't."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper

from sigcam.cli import main
from sigcam.core.artifact import read_spec
from tests.support.onnx_files import CLASSES, classifier, constants, saved

METHODS = "cam, gradcam, gradcam++, xgradcam, layercam, hirescam, finercam, reciprocam"


def inspect(*arguments):
    return CliRunner().invoke(main, ["inspect", *map(str, arguments)])


def rows(path, *options):
    """The printed rows by name, each as one line; nothing is written beside the file."""
    before = sorted(path.parent.iterdir())
    done = inspect(path, *options)
    assert (done.exit_code, done.stderr) == (0, ""), done.stderr
    assert sorted(path.parent.iterdir()) == before
    found = {}
    for line in done.stdout.splitlines():
        assert len(line) <= 100 or line.startswith("to export") or str(path) in line
        name, value = line[:15].strip(), line[15:].strip()
        last = name or next(reversed(found))
        found[last] = f"{found.get(last, '')} {value}".strip()
    return found


def plain(tmp_path):
    return saved(tmp_path, classifier(("b", 3, 16, 16)))


@pytest.mark.slow
def test_a_file_that_says_little(tmp_path):
    found = rows(plain(tmp_path))
    assert found["input"] == "x: float32 [b, 3, 16, 16]"
    assert found["layout"] == "channels first (NCHW), 3 of them"
    assert found["channel order"].startswith("not in the file; RGB is assumed")
    assert "--mean and --std must be given" in found["normalisation"]
    assert found["batch"] == "any number of images"
    assert found["outputs"] == f"logits: float32 [b, {CLASSES}]"
    assert found["logits"] == "logits"
    assert found["classes"] == "5; task single-label"
    assert found["branch layer"] == "relu (6 channels, 8x8)"
    assert found["pooling"] == "global average"
    assert found["head"] == "GlobalAveragePool, Flatten, Gemm"
    assert found["linear layer"] == "fc.weight: 6 to 5"
    assert found["target layer"] == (
        "relu (6 channels, 8x8), or --target-layer: and 1 more (--json lists them)"
    )
    assert found["quantised"] == "no"
    assert "5 nodes, 197 stored values: Conv 1, Relu 1" in found["operators"]
    assert found["untranslated"] == "none"
    assert found["methods"] == f"in the graph: {METHODS}; by the runtime: scorecam, eigencam"
    assert "several target layers" in found["not refinecam"]
    assert "in the way" not in found
    assert found["to export"].endswith("--mean ... --std ... --out explained.onnx")


def keras_like(batch=1):
    """Channels last, Caffe's normalisation in front, a softmax at the end, a fixed batch."""
    front = [helper.make_node("Sub", ["x", "mean"], ["v"]),
             helper.make_node("Transpose", ["v"], ["image"], perm=[0, 3, 1, 2])]  # fmt: skip
    back = [helper.make_node("Softmax", ["z"], ["probabilities"], axis=1)]
    outputs = (("probabilities", (batch, CLASSES)),)
    mean = constants(mean=[103.939, 116.779, 123.68])
    return classifier((batch, 16, 16, 3), front, back, "z", weights=mean, outputs=outputs)


def test_a_file_that_says_much(tmp_path):
    path = saved(tmp_path, keras_like(4))
    found = rows(path)
    assert found["layout"] == "channels last (NHWC), 3 of them"
    assert found["channel order"].startswith("BGR, by the mean that the graph takes off (103.939,")
    assert found["normalisation"] == (
        "in the graph (Sub), of pixels from 0 to 255: mean 103.939, 116.779, 123.68; "
        "deviation 1, 1, 1"
    )
    assert found["batch"] == "fixed to 4 in the file; the exported model takes any number"
    assert found["logits"] == "under softmax in probabilities, which is taken off"
    # The advice repeats what it was told, and asks for nothing that the file says.
    command = f"sigcam export --arch {path} --method gradcam --branch softmax --out explained.onnx"
    assert found["to export"] == command


@pytest.mark.slow
def test_the_command_is_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = shlex.split(rows(saved(tmp_path, keras_like()))["to export"])
    assert command[0] == "sigcam"
    done = CliRunner().invoke(main, command[1:])
    assert done.exit_code == 0, done.stderr
    spec = read_spec(tmp_path / "explained.onnx")
    assert (spec.method, spec.preprocessing.channel_order) == ("gradcam", "bgr")


def test_json_holds_everything(tmp_path):
    done = inspect(saved(tmp_path, keras_like()), "--json")
    record = json.loads(done.stdout)
    assert record["input"]["layout"] == "nhwc"
    assert record["input"]["mean"] == pytest.approx([103.939, 116.779, 123.68], rel=1e-5)
    assert record["classifier"]["squashing"] == "softmax"
    assert record["classifier"]["target_layers"] == {"relu": [6, 8, 8]}
    assert record["classifier"]["other_layers"] == {"conv": [6, 8, 8]}
    assert record["methods"]["gradcam"] == ""
    assert record["problems"] == []
    assert record["difference"] < 1e-5


def test_options_are_used(tmp_path):
    path = saved(tmp_path, classifier(("b", 3, "h", "w")))
    found = rows(path, "--size", "24x16", "--channel-order", "bgr")
    assert found["layout"].endswith("any size, looked at with 24x16 (--size)")
    assert found["channel order"] == "BGR, as you say"
    assert found["branch layer"] == "relu (6 channels, 12x8)"
    assert " --size 24x16 --channel-order bgr " in found["to export"]


def several_outputs():
    return classifier(outputs=(("logits", ("b", 5)), ("f", ("b", 6))))


def many_problems():
    middle = [helper.make_node("Det", ["p"], ["d"], "det"),
              helper.make_node("Own", ["d"], ["e"], "own", domain="com.example"),
              helper.make_node("Loop", ["", "", "e"], ["f"], "loop")]  # fmt: skip
    model = classifier((8, 3, 12, 10), middle=middle)
    model.opset_import.append(helper.make_opsetid("com.example", 2))
    return model


def segmentation():
    return classifier(outputs=(("r", ("b", 6, 6, 5)),))


@pytest.mark.parametrize(
    ("make", "patterns"),
    [
        (several_outputs, ["several that may be it"]),
        (segmentation, ["as segmentation networks"]),
        (many_problems, [r"control flow \(Loop at loop\)", r"com\.example\.Own at own",
                         r"aren't translated \(Det at det\)"]),
        (lambda: classifier(opset=6), ["opsets 7 to 22, it is of 6"]),
        (lambda: classifier(element=TensorProto.INT64), ["must be floating or uint8"]),
    ],
)  # fmt: skip
def test_files_that_can_not_be_exported_are_described(tmp_path, make, patterns):
    found = rows(saved(tmp_path, make()))
    for pattern in patterns:
        assert re.search(pattern, found["in the way"])
    assert "operators" in found
    assert "to export" not in found
    record = json.loads(inspect(tmp_path / "model.onnx", "--json").stdout)
    assert len(record["problems"]) == len(patterns)


def test_one_of_several_outputs(tmp_path):
    path = saved(tmp_path, several_outputs())
    done = inspect(f"{path}#logits")
    assert "in the way" not in done.stdout
    assert f"--arch {path}#logits" in done.stdout


def test_operators_that_are_missing_are_counted(tmp_path):
    found = rows(saved(tmp_path, many_problems()))
    assert found["untranslated"] == "Det 1, Loop 1, com.example.Own 1"
    assert found["written by"].startswith("not said; opset 13, com.example 2")
    assert found["batch"] == "fixed to 8"


def fused():
    """What ONNX Runtime's optimiser makes of a convolution and its activation."""
    model = classifier(("b", 3, 16, 16))
    conv, relu = model.graph.node[:2]
    conv.op_type, conv.domain, conv.output[0] = "FusedConv", "com.microsoft", relu.output[0]
    conv.attribute.append(helper.make_attribute("activation", "Relu"))
    model.graph.node.remove(relu)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def with_unused_input():
    model = classifier(("b", 3, 16, 16))
    model.graph.input.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, ["b", 3]))
    return model


@pytest.mark.parametrize("make", [fused, with_unused_input])
def test_what_export_reads_is_not_in_the_way(tmp_path, make):
    model = make()
    found = rows(saved(tmp_path, model))
    assert "in the way" not in found
    assert found["untranslated"] == "none"
    assert found["classes"].startswith("5")
    # The file is described as it is, not as it is read.
    assert ("com.microsoft.FusedConv 1" in found["operators"]) == (make is fused)
    assert all(f"{value.name}: float32" in found["input"] for value in model.graph.input)


@pytest.mark.slow
def test_a_head_that_is_no_pooling_says_why_cam_is_not_to_be_had(tmp_path):
    middle = [helper.make_node("Flatten", ["r"], ["f"], "flatten")]
    fc = np.ones((CLASSES, 6 * 8 * 8), np.float32)
    model = classifier(("b", 3, 16, 16), middle=middle, weights={"fc.weight": fc})
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(fc, "fc.weight"))
    found = rows(saved(tmp_path, model))
    assert (found["pooling"], found["head"]) == ("none, or no plain average", "Flatten, Gemm")
    assert "gradcam" in found["methods"]
    assert "average pooling" in found["not cam"]


def test_what_is_no_onnx_file_is_an_error(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<html>")
    done = inspect(path)
    assert done.exit_code == 1
    assert "must be an ONNX model, it is a web page" in done.stderr
    assert inspect(tmp_path / "none.onnx").exit_code == 1
