"""Bad input: a clear error, and nothing half-written."""

from __future__ import annotations

import copy
import errno
import os

import numpy as np
import onnx
import pytest
import torch

from sigcam.core.errors import (
    ExportError,
    ModelError,
    ParityError,
    StorageError,
    UsageError,
)
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.export import ExportOptions, export_artifact, export_classifier, onnx_model, staging
from sigcam.export.parity.verify import check_choice


def nothing_in(folder):
    return not list(folder.iterdir())


_EXPORTED = {}


@pytest.fixture(autouse=True)
def exported_once(monkeypatch):
    """The same graph needn't be exported for each of these tests."""

    def cached(module, signature, opset, data_file):
        key = (type(module), tuple(signature.outputs), opset)
        if key not in _EXPORTED:
            _EXPORTED[key] = onnx_model.to_onnx(module, signature, opset, data_file)
        model = onnx.ModelProto()
        model.CopyFrom(_EXPORTED[key])
        return model

    monkeypatch.setattr(staging, "to_onnx", cached)
    return cached


@pytest.fixture
def plant(monkeypatch, exported_once):
    """Changes one initializer of the graph between export and the parity check."""

    def install(name, change):
        def faulty(*args):
            model = exported_once(*args)
            tensor = next(i for i in model.graph.initializer if i.name.endswith(name))
            value = change(onnx.numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), tensor.name))
            return model

        monkeypatch.setattr(staging, "to_onnx", faulty)

    return install


def test_a_fault_in_a_weight_is_found(tmp_path, dual, preprocessing, plant):
    plant("weight_graph.head.weight", lambda W: W * 1.001)
    with pytest.raises(ParityError) as caught:
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    lines = str(caught.value).splitlines()
    assert "more than 0.0001" in lines[0]
    faulty = {line.split()[0] for line in lines if "outside tolerance" in line}
    assert faulty == {"evidence_logits", "cams"}
    assert nothing_in(tmp_path)


def test_a_wrong_class_choice_is_found(tmp_path, dual, preprocessing, plant):
    plant("softmax.bias", lambda b: b + 100 * np.arange(len(b)))
    with pytest.raises(ParityError, match="chose the classes"):
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    assert nothing_in(tmp_path)


def test_a_graph_that_gives_nan_is_found(tmp_path, dual, preprocessing, plant):
    plant("unsqueeze", lambda b: b * np.nan)
    with pytest.raises(ParityError, match="nan"):
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    assert nothing_in(tmp_path)


def test_a_fault_in_the_bare_classifier_is_found(tmp_path, dual, preprocessing, plant):
    plant("fc.bias", lambda b: b + 0.1)
    with pytest.raises(ParityError, match="logits differ"):
        export_classifier(dual, tmp_path / "c.onnx", ExportOptions(preprocessing=preprocessing))
    assert nothing_in(tmp_path)


def test_an_existing_file_survives_a_failure(tmp_path, dual, preprocessing, plant):
    (tmp_path / "m.onnx").write_bytes(b"precious")
    plant("weight_graph.head.weight", lambda W: -W)
    with pytest.raises(ParityError):
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    assert (tmp_path / "m.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize(
    ("head", "words"),
    [("softmax_head", "of the classifier"), ("sigmoid_head", "of the sigmoid branch")],
)
def test_weights_that_are_not_finite(tmp_path, dual, preprocessing, head, words):
    broken = copy.deepcopy(dual)
    with torch.no_grad():
        getattr(broken, head).classifier.get_parameter("fc.weight")[0, 0] = torch.nan
    with pytest.raises(ModelError, match=rf"weights {words} are not finite: fc\.weight"):
        export_artifact(broken, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    assert nothing_in(tmp_path)


def test_a_head_that_cam_cannot_express(tmp_path, make, nets, preprocessing):
    with pytest.raises(ExportError, match=r"cam needs a head that is global average.*use gradcam"):
        export_artifact(
            make(nets["mlp"]), tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing)
        )
    assert nothing_in(tmp_path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"classes": ClassSelection("topk", 8)},
            "8 most probable classes were asked for, the model has 7",
        ),
        ({"class_names": ["one", "two"]}, "class_names must have 7 entries, got 2"),
        ({"method": "gradcamm"}, "method must be one of cam"),
        ({"has_sigmoid": False}, "branch='sigmoid' needs a trained sigmoid branch"),
        (
            {"has_sigmoid": False, "branch": "softmax", "sigmoid_logits": True},
            "sigmoid_logits=True needs",
        ),
        ({"tolerance": 0.0}, "tolerance must be between 0 and 1"),
        ({"profile": "both"}, "profile must be one of"),
        ({"method": "layercam", "nwc": True}, "layercam has a weight for each position"),
        ({"method_options": {"gamma": 1.0}}, r"gamma is no option of cam; leave it out"),
        (
            {"method": "finercam", "method_options": {"strength": 1.0}},
            r"strength is no option of finercam, which has gamma and similar",
        ),
        ({"method": "finercam", "method_options": {"gamma": -1.0}}, "gamma from 0 to 10"),
        ({"method": "finercam", "method_options": {"similar": 7}}, "set similar to at most 6"),
    ],
)
def test_options_that_contradict(tmp_path, dual, preprocessing, options, words):
    with pytest.raises(UsageError, match=words):
        export_artifact(
            dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing, **options)
        )
    assert nothing_in(tmp_path)


def test_a_preprocessing_of_another_size(tmp_path, dual):
    with pytest.raises(ExportError, match="size that the model was split for, 24x32"):
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=Preprocessing()))


def test_a_target_that_cannot_be_written(tmp_path, dual, preprocessing, monkeypatch):
    # Not a read-only folder: root may write into those.
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(staging, "to_onnx", lambda *_: pytest.fail("found after the work"))
    for export in (export_artifact, export_classifier):
        with pytest.raises(StorageError, match="choose a folder that is writable"):
            export(dual, tmp_path / "file" / "m.onnx", ExportOptions(preprocessing=preprocessing))
        with pytest.raises(StorageError, match="is a folder"):
            export(dual, tmp_path, ExportOptions(preprocessing=preprocessing))


def test_a_full_disk(tmp_path, dual, preprocessing, monkeypatch):
    from pathlib import Path

    def full(self, data):
        with self.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left"):
        export_artifact(dual, tmp_path / "m.onnx", ExportOptions(preprocessing=preprocessing))
    assert nothing_in(tmp_path)


def test_two_classes_within_rounding_may_change_places():
    logits = np.array([[1.0, 2.0, 2.0 + 1e-6]])
    options = ExportOptions(tolerance=1e-4)
    check_choice(np.array([[1]]), None, logits, options)
    with pytest.raises(ParityError, match="chose the classes"):
        check_choice(np.array([[0]]), None, logits, options)
