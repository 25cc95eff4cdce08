"""Wrong files, wrong images and wrong options: what was wanted, what came, what to do."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import onnx
import pytest

from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
from sigcam.convert.quantize.images import choose
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, DataError, UsageError
from sigcam.core.spec import Preprocessing
from tests.support.tiny import artifact_graph, head_graph, seal_to, tiny_spec, with_data_file, write

FEW = QuantizeOptions(calibration=8, held_out=8, threads=1, min_agreement=0, min_correlation=-1)
PREPROCESSING = Preprocessing(32, 32, rule="stretch")


def pick(folder, calibration=8, held_out=8, seed=0):
    return choose(folder, PREPROCESSING, calibration, held_out, seed, lambda done, total: None)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match="doesn't exist"):
        pick(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        pick(tmp_path / "file")
    with pytest.raises(DataError, match="has no images"):
        pick(tmp_path)


def test_too_few_images(images):
    with pytest.raises(DataError, match=r"must have 60 different images \(30 to calibrate, 30"):
        pick(images, 30, 30)
    with pytest.raises(UsageError, match="at least 8 calibration images, got 3"):
        pick(images, 3)
    with pytest.raises(UsageError, match="at least 8 held-out images, got 0"):
        pick(images, 8, 0)


def test_images_that_say_nothing(tmp_path):
    for index in range(20):
        black = np.zeros((20, 20, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"black{index}.png"), black)
        cv2.imwrite(str(tmp_path / f"plain{index}.png"), black + 10 + index)
    with pytest.raises(DataError, match=r"0 usable ones of 40 \(.*\)") as error:
        pick(tmp_path)
    assert "19 equal to another" in str(error.value)
    assert "21 of a single colour" in str(error.value)


def test_the_sets_are_disjoint_and_seeded(images, tmp_path):
    shutil.copytree(images, tmp_path / "all")
    for path in list((tmp_path / "all").iterdir()):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    (tmp_path / "all" / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    first, again, other = (pick(tmp_path / "all", 20, 20, seed) for seed in (0, 0, 1))
    assert first == again
    assert set(first.calibration) != set(other.calibration)
    contents = [path.read_bytes() for path in (*first.calibration, *first.held_out)]
    assert len(set(contents)) == 40
    assert any("broken.jpg" in reason for one in (first, other) for reason in one.unread)


def test_an_artifact_that_was_converted(artifacts, images, tmp_path):
    source = artifacts(method="cam")
    for precision in ("int8", "fp16"):
        options = QuantizeOptions(**{**vars(FEW), "precision": precision})
        out = tmp_path / f"{precision}.onnx"
        quantize_artifact(source, images, out, options)
        with pytest.raises(UsageError, match=rf"converted before \({precision}\)"):
            quantize_artifact(out, images, tmp_path / "again.onnx", options)
    model = onnx.load(str(tmp_path / "int8.onnx"))
    spec = read_spec(source).to_json()
    onnx.helper.set_model_props(model, {"sigcam": spec})
    seal_to(model, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="it has DequantizeLinear, QuantizeLinear"):
        quantize_artifact(tmp_path / "other.onnx", images, tmp_path / "again.onnx", FEW)
    assert not (tmp_path / "again.onnx").exists()


def test_files_of_another_kind(images, tmp_path):
    out = tmp_path / "out.onnx"
    with pytest.raises(UsageError, match="is a TensorRT engine"):
        quantize_artifact(tmp_path / "model.engine", images, out, FEW)
    spec = tiny_spec(kind="head", head_input="features")
    head = write(onnx, head_graph(onnx, spec), tmp_path / "m.head.onnx", spec.to_json())
    with pytest.raises(UsageError, match="is a head graph, which stays in float32"):
        quantize_artifact(head, images, out, FEW)
    with pytest.raises(ArtifactError, match="no model file"):
        quantize_artifact(tmp_path / "none.onnx", images, out, FEW)
    assert not out.exists()


def test_outputs_that_cannot_be(artifacts, images, tmp_path):
    source = artifacts(method="cam")
    with pytest.raises(UsageError, match="is an input and can't be"):
        quantize_artifact(source, images, source, FEW)
    with pytest.raises(UsageError, match=r"must end in \.onnx"):
        quantize_artifact(source, images, tmp_path / "model.int8", FEW)
    with pytest.raises(UsageError, match="without a head graph"):
        quantize_artifact(source, images, tmp_path / "o.onnx", FEW, head=tmp_path / "h.onnx")


def test_weights_in_a_file_beside_it(artifacts, images, tmp_path):
    """They come along: what is written is one file."""
    path = tmp_path / "apart.onnx"
    shutil.copy(artifacts(method="cam"), path)
    with_data_file(path)
    assert (tmp_path / "apart.onnx.data").stat().st_size > 1000
    out = tmp_path / "sub" / "one.onnx"
    quantize_artifact(path, images, out, FEW)
    assert [p.name for p in out.parent.iterdir()] == ["one.onnx"]
    onnx.checker.check_model(str(out), full_check=True)
    (tmp_path / "apart.onnx.data").unlink()
    with pytest.raises(ArtifactError, match="which isn't there"):
        quantize_artifact(path, images, out, FEW)


def test_a_layer_whose_input_is_constant(artifacts, images, tmp_path):
    model = onnx.load(str(artifacts(method="cam")))
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    for tensor in model.graph.initializer:
        if tensor.name in first.input[1:]:
            zeros = np.zeros_like(onnx.numpy_helper.to_array(tensor))
            tensor.CopyFrom(onnx.numpy_helper.from_array(zeros, tensor.name))
    path = tmp_path / "dead.onnx"
    seal_to(model, path)
    with pytest.raises(DataError, match="is 0 everywhere on all calibration images"):
        quantize_artifact(path, images, tmp_path / "out.onnx", FEW)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int4"}, "precision must be"),
        ({"min_agreement": 2}, "between 0 and 1"),
        ({"rounds": -1}, "rounds must be"),
        ({"precision": "fp16", "rounds": 1}, "rounds belong to the precision int8"),
        ({"precision": "bf16", "activations": "int8"}, "activations belong"),
    ],
)
def test_wrong_options(wrong, message):
    with pytest.raises(UsageError, match=message):
        QuantizeOptions(**wrong)


def test_the_head_graph_comes_along(images, tmp_path):
    """A graph without layers in 8 bits has nothing to quantise; in 16 bits all is as before."""
    as_head = tiny_spec(head_input="features", kind="head")
    beside = write(
        onnx, head_graph(onnx, as_head, head="mlp"), tmp_path / "m.head.onnx", as_head.to_json()
    )
    spec = tiny_spec(head_input="features", head_digest=read_spec(beside).digest)
    graph = artifact_graph(onnx, spec, head="mlp", emit=("features",))
    path = write(onnx, graph, tmp_path / "m.onnx", spec.to_json())
    options = QuantizeOptions(precision="fp16", held_out=8)
    _, written = quantize_artifact(path, images, tmp_path / "m.fp16.onnx", options)
    assert [p.name for p in written] == ["m.fp16.onnx", "m.fp16.head.onnx"]
    assert written[1].read_bytes() == beside.read_bytes()
    from sigcam.runtime.session import load

    with load(written[0]) as session:
        [one] = session.explain(sorted(images.iterdir())[0])
        assert [e.label for e in one.for_classes(["red", "blue"])] == ["red", "blue"]
    beside.unlink()
    _, written = quantize_artifact(path, images, tmp_path / "n.fp16.onnx", options)
    assert [p.name for p in written] == ["n.fp16.onnx"]
