"""The options of an export, and what a built classifier fills in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sigcam.classifier.branch_file import BranchInfo
from sigcam.classifier.build import BuiltClassifier
from sigcam.core.artifact import read_spec
from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.export import METHODS, ExportOptions, export_artifact, export_classifier

NAMES = ("a", "b", "c", "d", "e", "f", "g")


@pytest.fixture
def built(dual, preprocessing):
    info = BranchInfo("toy", dual.branch_layer, 7, preprocessing, "seven shapes", class_names=NAMES)
    return BuiltClassifier(dual, "toy", preprocessing, NAMES, info)


@pytest.mark.parametrize(
    ("text", "selection"),
    [
        ("top1", ClassSelection()),
        ("top5", ClassSelection("topk", 5)),
        ("input", ClassSelection("input")),
    ],
)
def test_classes_in_words(text, selection):
    options = ExportOptions(classes=text)
    assert options.selection == options.classes == selection
    assert ExportOptions(classes=selection) == options


@pytest.mark.parametrize("text", ["best", "top0", "top", "top-1", "topK", "top" + "9" * 5000, ""])
def test_classes_that_are_none(text):
    with pytest.raises(UsageError, match="classes must be top1, topK"):
        ExportOptions(classes=text)


@pytest.mark.parametrize("method", METHODS)
def test_clamping_follows_the_purpose_unless_it_is_said(method):
    localise = ExportOptions(method=method, purpose="localise")
    assert localise.clamps is METHODS[method].clamps
    assert localise.answers == "localise"
    assert ExportOptions(method=method, purpose="discriminate").clamps is False
    assert ExportOptions(method=method, nwc=False).clamps is False
    assert ExportOptions(method=method, nwc=False).answers is None


def test_the_default_tells_classes_apart():
    assert ExportOptions().answers == "discriminate"
    assert ExportOptions().clamps is False
    assert ExportOptions(nwc=True).clamps is True
    assert ExportOptions(signed=True).answers is None


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"purpose": "localise", "nwc": False}, "'localise' clamps .* leave nwc out"),
        ({"purpose": "discriminate", "nwc": True}, "'discriminate' does not clamp .* nwc out"),
        ({"purpose": "localise", "signed": True}, "leave signed out"),
        ({"purpose": "draw"}, "purpose must be one of localise, discriminate or None, got 'draw'"),
    ],
)
def test_purposes_that_contradict_other_options(wrong, words):
    with pytest.raises(UsageError, match=words):
        ExportOptions(**wrong)


def test_numbers_that_are_left_out_have_defaults():
    options = ExportOptions(method="finercam", method_options={"similar": 2})
    assert options.method_options == {"gamma": 0.6, "similar": 2}
    assert replace(options, opset=19).method_options == options.method_options


def test_a_head_graph_needs_the_features():
    assert ExportOptions(head_graph=True).features
    assert not ExportOptions().features


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"branch": "relu"}, "branch must be one of sigmoid, softmax, centred, got 'relu'"),
        ({"opset": 17}, "opset must be one of 18, 19, 20, got 17"),
        ({"tolerance": float("nan")}, "tolerance must be a finite number"),
        ({"tolerance": 2}, "tolerance must be between 0 and 1"),
    ],
)
def test_values_that_are_not_allowed(wrong, words):
    with pytest.raises(UsageError, match=words):
        ExportOptions(**wrong)


def test_a_built_classifier_says_what_the_options_leave_open(tmp_path, built):
    spec = export_artifact(built, tmp_path / "m.onnx")
    assert spec == read_spec(tmp_path / "m.onnx")
    assert spec.class_names == NAMES
    assert spec.preprocessing == built.preprocessing
    assert spec.source.trained_on == "seven shapes"
    assert spec.source.branch_sha256 is not None


def test_the_options_come_before_the_classifier(tmp_path, built):
    own = replace(built.preprocessing, mean=(0.1, 0.2, 0.3))
    names = tuple(name.upper() for name in NAMES)
    options = ExportOptions(
        branch="softmax",
        has_sigmoid=False,
        preprocessing=own,
        class_names=names,
    )
    spec = export_artifact(built, tmp_path / "m.onnx", options)
    assert (spec.preprocessing, spec.class_names) == (own, names)
    assert (spec.source.trained_on, spec.source.branch_sha256) == (None, None)


@pytest.mark.slow
def test_a_classifier_without_a_trained_branch(tmp_path, built):
    untrained = replace(built, info=None)
    with pytest.raises(UsageError, match="needs a trained sigmoid branch"):
        export_artifact(untrained, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    spec = export_artifact(untrained, tmp_path / "m.onnx", ExportOptions(branch="softmax"))
    assert spec.source.branch_sha256 is None
    export_classifier(untrained, tmp_path / "c.onnx")  # has no need of one
    assert (tmp_path / "c.onnx").is_file()
