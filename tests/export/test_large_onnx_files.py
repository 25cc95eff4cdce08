"""Weights that are too large for a message stay in the files beside an ONNX file's graph."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import external_data_helper, numpy_helper
from torch import nn

from sigcam.classifier.build import build_classifier
from sigcam.classifier.onnx import file as onnx_file
from sigcam.classifier.onnx import tail as onnx_tail
from sigcam.classifier.onnx.load import read_classifier
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ExportError, ModelError
from sigcam.export import onnx_model
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions
from tests.export.test_kept_front import CLASSES, NORMAL, SIZE, network, weight

LARGE = {"w1", "w2", "fc"}


def wide(opset):
    """The same with a weight of over 1 KiB, which an export with a file beside it puts there."""
    stored = {"w2": weight(8, 4, 3, 3, seed=3), "fc": weight(CLASSES, 8, seed=4)}
    return network(opset, stored=stored.items())


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Returns a function that writes a graph whose weights of over 25 elements stay outside."""
    monkeypatch.setattr(onnx_file, "_MOST_LOADED", 0)
    monkeypatch.setattr(onnx_file, "_SMALL", 25)
    monkeypatch.setattr(onnx_tail, "_LARGE", 25)

    def write(model):
        path = tmp_path / "file.onnx"
        onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
        return path

    return write


def held(path):
    model = read_classifier(path).model.held.model
    return {t.name for t in model.graph.initializer if external_data_helper.uses_external_data(t)}


@pytest.mark.parametrize("opset", [9, 17])
def test_they_are_read_from_there(large, opset):
    path = large(network(opset))
    read = read_classifier(path)
    assert read.difference < 1e-5
    assert held(path) == LARGE
    stored = {t.name: numpy_helper.to_array(t) for t in network(opset).graph.initializer}
    for name in LARGE:
        assert np.array_equal(read.model.get_parameter(name).numpy(), stored[name])


def test_what_is_cut_out_of_a_file_finds_them(large):
    path = large(network(17, names=("x", "logits")))
    assert read_classifier(path, "f").num_classes == 6


def test_functions_are_written_out_without_them(large):
    model = network(17)
    inside = [model.graph.node[0]]
    function = onnx.helper.make_function(
        "own", "First", ["x", "w1"], ["features"], inside, [onnx.helper.make_opsetid("", 17)]
    )
    call = onnx.helper.make_node("First", ["x", "w1"], ["features"], "conv1", domain="own")
    model.graph.node.remove(inside[0])
    model.graph.node.insert(0, call)
    model.functions.append(function)
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    path = large(model)
    assert read_classifier(path).difference < 1e-5
    assert held(path) == LARGE


def test_damaged_ones_are_refused(large, tmp_path):
    path = large(network(17))
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:200])
    with pytest.raises(ModelError, match=r"copy the files? a"):
        read_classifier(path)


@pytest.mark.parametrize("location", ["../w.bin", "/etc/passwd"])
def test_files_elsewhere_are_not_read(large, tmp_path, location):
    path = large(network(17))
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name in LARGE:
            tensor.external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    (tmp_path.parent / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes())
    with pytest.raises(ModelError, match="can't be read"):
        read_classifier(path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_whole_file_of_over_2_gib_is_refused_with_what_to_do(tmp_path, monkeypatch, inside):
    path = tmp_path / "file.onnx"
    path.write_bytes(network(17).SerializeToString()[:-1])
    if inside:
        monkeypatch.setattr(onnx_file, "MOST_BYTES", 100)
    wanted = "file beside it .torch.onnx.export with external_data=True" if inside else "end early"
    with pytest.raises(ModelError, match=wanted):
        read_classifier(path)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("opset", [9, 22])
def test_the_artifact_has_them(large, tmp_path, monkeypatch, beside, opset):
    """In its graph, or in a file beside it where there are too many for a message."""
    if beside:
        monkeypatch.setattr(onnx_model, "MAX_MESSAGE_BYTES", 100)
    path, out = large(wide(opset)), tmp_path / "out.onnx"
    classifier = build_classifier(str(path), **NORMAL)
    export_artifact(classifier, out, ExportOptions(method="gradcam", branch="softmax"))
    spec = read_spec(out)
    assert bool(spec.external_data) == beside
    assert "stand in the graph as the file has them" in spec.source.front
    assert spec.parity.file["gradients"].max_rel < 1e-4
    (tmp_path / "w.bin").unlink()  # the artifact stands alone
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(str(out)).graph.initializer}
    wanted = {t.name: numpy_helper.to_array(t) for t in wide(opset).graph.initializer}
    for name in ("w1", "w2"):
        assert np.array_equal(stored[name], wanted[name])
    image = np.random.default_rng(0).integers(0, 255, (2, *SIZE, 3), np.uint8)
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    given = ((image / 255 - 0.5) / 0.25).transpose(0, 3, 1, 2).astype(np.float32)
    plain = ort.InferenceSession(
        wide(opset).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    np.testing.assert_allclose(
        session.run(["logits"], {"image": image})[0], plain.run(None, {"x": given})[0], atol=1e-5
    )


@pytest.mark.parametrize("most", [0, 2**31])
def test_a_tail_that_is_large_in_float64_runs_in_float32(large, monkeypatch, most):
    monkeypatch.setattr(onnx_tail, "_MOST_DOUBLE", most)
    read = read_classifier(large(network(17))).model
    tail = onnx_tail.FileTail(read, "f")
    assert (tail.runs, tail.is_double) == (True, most > 0)
    value = np.random.default_rng(1).standard_normal((2, 6))
    stored = {t.name: numpy_helper.to_array(t) for t in network(17).graph.initializer}
    wanted = value @ stored["fc"].T.astype(np.float64) + stored["bias"]
    error = np.abs(tail(value, np.zeros((2, 3, *SIZE), np.float32)) - wanted).max()
    assert error < (1e-12 if most else 1e-5)


def test_a_single_weight_that_onnx_runtime_does_not_take_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_model, "MAX_TENSOR_BYTES", 100)
    signature = onnx_model.GraphSignature({"x": torch.zeros(2, 30)}, ["y"])
    with pytest.raises(ExportError, match=r"weight must have at most 2 GiB.*weight has .* split"):
        onnx_model.to_onnx(nn.Linear(30, 20), signature)
    assert onnx_model.to_onnx(nn.Linear(3, 2), onnx_model.GraphSignature(
        {"x": torch.zeros(2, 3)}, ["y"])).graph.node  # fmt: skip


@pytest.mark.slow
def test_so_is_one_of_the_part_that_is_kept(large, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_model, "MAX_TENSOR_BYTES", 1100)
    classifier = build_classifier(str(large(wide(17))), **NORMAL)
    with pytest.raises(ExportError, match=r"each weight must have at most 2 GiB.* w[12] has"):
        export_artifact(
            classifier, tmp_path / "out.onnx", ExportOptions(method="gradcam", branch="softmax")
        )
    assert not (tmp_path / "out.onnx").exists()
