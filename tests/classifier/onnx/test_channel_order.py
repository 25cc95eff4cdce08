"""Files that take B, G, R: the user says it, or metadata, or the mean that the graph takes off."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from sigcam import ExportOptions, build_classifier, export_artifact
from sigcam.classifier.branch_file import BranchInfo, save_branch
from sigcam.classifier.onnx.load import read_classifier
from sigcam.classifier.zoo import load_model
from sigcam.core.errors import BranchMismatchError, UsageError
from tests.support.onnx_files import CLASSES, classifier, constants, saved

CAFFE = {"mean": [[[103.939]], [[116.779]], [[123.68]]]}
IMAGENET = {"mean": [[[123.68]], [[116.779]], [[103.939]]]}
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


def by_hand(model, images):
    """What the original file gives for images whose channels were turned round by hand."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ascontiguousarray(images[:, ::-1])})[0]


def images(seed=0):
    return np.random.default_rng(seed).standard_normal((2, 3, 12, 10)).astype(np.float32)


def test_the_user_says_that_a_file_takes_bgr(tmp_path):
    model = classifier()
    path = str(saved(tmp_path, model))
    built = build_classifier(path, channel_order="bgr", **PLAIN)
    found = built.dual(torch.from_numpy(images())).logits
    np.testing.assert_allclose(found.numpy(), by_hand(model, images()), atol=1e-5)
    assert (built.dual.channel_order, built.preprocessing.channel_order) == ("bgr", "bgr")
    assert "takes its channels as B, G, R; the graph turns RGB into that" in built.notes[0]
    plain = build_classifier(path, **PLAIN)
    assert (plain.dual.channel_order, plain.notes) == ("rgb", ())


def test_channels_last_are_turned_too(tmp_path):
    front = [helper.make_node("Transpose", ["x"], ["image"], perm=[0, 3, 1, 2])]
    model = classifier(("b", 12, 10, 3), front)
    path = saved(tmp_path, model)
    read = read_classifier(path, channel_order="bgr").model
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = np.ascontiguousarray(np.transpose(images()[:, ::-1], (0, 2, 3, 1)))
    expected = session.run(None, {"x": given})[0]
    np.testing.assert_allclose(read(torch.from_numpy(images())).numpy(), expected, atol=1e-5)


def sub(values):
    return classifier(front=[helper.make_node("Sub", ["x", "mean"], ["image"])],
                      weights=constants(**values))  # fmt: skip


@pytest.mark.parametrize(("mean", "order"), [(CAFFE, "bgr"), (IMAGENET, "rgb")])
def test_the_mean_tells(tmp_path, mean, order):
    path = saved(tmp_path, sub(mean))
    takes = read_classifier(path).takes
    assert (takes.order, takes.front.order) == (order, order)
    assert "the mean that the graph takes off" in takes.front.reason
    assert read_classifier(path, channel_order="rgb").takes.order == "rgb"


def turned(values, last=False):
    """Channels that the graph itself turns round first, by a Gather or a Slice."""
    if last:
        nodes = [helper.make_node("Slice", ["x", "s", "e", "a", "t"], ["v"])]
        extra = {"s": [-1], "e": [-(2**31)], "a": [1], "t": [-1]}
    else:
        nodes = [helper.make_node("Gather", ["x", "places"], ["v"], axis=1)]
        extra = {"places": [2, 1, 0]}
    nodes.append(helper.make_node("Sub", ["v", "mean"], ["image"]))
    stored = {**constants(**values), **{n: np.array(v, np.int64) for n, v in extra.items()}}
    return classifier(front=nodes, weights=stored)


@pytest.mark.parametrize("last", [False, True])
def test_a_graph_that_turns_its_channels_itself_takes_rgb(tmp_path, last):
    takes = read_classifier(saved(tmp_path, turned(CAFFE, last))).takes
    assert (takes.order, takes.front.turned) == ("rgb", True)
    assert takes.front.mean == pytest.approx((123.68, 116.779, 103.939))


def test_metadata_tells_the_order_and_the_range(tmp_path):
    model = classifier()
    for key, value in (("Image.BitmapPixelFormat", "Bgr8"),
                       ("Image.NominalPixelRange", "Normalized_1_1")):  # fmt: skip
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=value))
    loaded = load_model(str(saved(tmp_path, model)))
    assert loaded.knows_normalisation
    preprocessing = loaded.preprocessing
    assert preprocessing.channel_order == "bgr"
    assert (preprocessing.mean[0], preprocessing.std[0]) == (0.5, 0.5)


def test_a_branch_file_remembers_the_order(tmp_path):
    path = str(saved(tmp_path, classifier()))
    built = build_classifier(path, channel_order="bgr", **PLAIN)
    info = BranchInfo(path, built.dual.branch_layer, CLASSES, built.preprocessing, "noise")
    branch = tmp_path / "branch.safetensors"
    save_branch(branch, built.dual, info)
    again = build_classifier(branch_file=branch)
    assert again.dual.channel_order == "bgr"
    given = torch.from_numpy(images())
    torch.testing.assert_close(again.dual(given).logits, built.dual(given).logits)
    with pytest.raises(BranchMismatchError, match="for the channel order bgr, not rgb; leave"):
        build_classifier(branch_file=branch, channel_order="rgb")


def test_an_order_of_other_channels_is_refused(tmp_path):
    model = classifier(("b", 1, 12, 10))
    model.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.ones((6, 1, 3, 3), np.float32), "conv.weight"))  # fmt: skip
    with pytest.raises(UsageError, match=r"order of three channels .* takes 1; leave"):
        read_classifier(saved(tmp_path, model), channel_order="bgr")


def test_the_order_of_other_models_is_refused():
    with pytest.raises(UsageError, match=r"question for ONNX files, resnet18 takes RGB; leave it"):
        load_model("resnet18", channel_order="bgr")


@pytest.mark.slow
def test_the_artifact_takes_rgb(tmp_path):
    model = classifier(("b", 3, 16, 16))
    built = build_classifier(str(saved(tmp_path, model)), channel_order="bgr", **PLAIN)
    options = ExportOptions(method="gradcam", branch="softmax")
    spec = export_artifact(built, tmp_path / "out.onnx", options)
    assert spec.preprocessing.channel_order == "bgr"
    pixels = np.random.default_rng(1).integers(0, 256, (1, 16, 16, 3), np.uint8)
    graph = ort.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])
    found = graph.run(["logits"], {"image": pixels})[0]
    expected = by_hand(model, np.transpose(pixels, (0, 3, 1, 2)).astype(np.float32) / 255)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (1, CLASSES)
