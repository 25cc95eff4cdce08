"""Nothing is made of a damaged file: every conversion compares digests before it works."""

import shutil

import pytest

from sigcam.core.artifact import head_path, read_spec
from sigcam.core.errors import ArtifactError
from sigcam.core.threads import Stopwatch
from sigcam.core.verify import verified
from sigcam.runtime.backends.base import BackendOptions
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)
from tests.support.tiny import with_data_file


@pytest.fixture
def artifact(make_artifact):  # noqa: F811 (the fixture)
    return make_artifact(head="mlp", head_input="features")


def damage(path):
    data = bytearray(path.read_bytes())
    place = data.find(b"tiny")  # the graph's name: no weight, and still not what was written
    data[place if place > 0 else len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def quantized(path, folder):
    from sigcam.convert.quantize import QuantizeOptions, quantize_artifact

    quantize_artifact(path, folder, folder / "out.onnx", QuantizeOptions(precision="fp16"))


def engine(path, folder):
    from sigcam.convert.tensorrt.build import build_engine

    build_engine(path, folder / "out.engine")


def evaluated(path, folder):
    from sigcam.evaluate.model import EvaluatedModel

    EvaluatedModel("name", path, "auto", BackendOptions(), Stopwatch())


@pytest.mark.parametrize("which", ["model.onnx", "model.onnx.data"])
@pytest.mark.parametrize("convert", [quantized, engine, evaluated])
def test_a_damaged_artifact(artifact, convert, which, tmp_path):
    pytest.importorskip("onnx")
    with_data_file(artifact)
    damage(artifact.with_name(which))
    says = "is not what was written" if which == "model.onnx" else "doesn't hold the weights of"
    with pytest.raises(ArtifactError, match=says):
        convert(artifact, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_head_graph_is_not_copied(artifact, tmp_path):
    pytest.importorskip("onnxruntime")
    damage(head_path(artifact))
    with pytest.raises(ArtifactError, match=r"model\.head\.onnx is not what was written"):
        quantized(artifact, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_converted_has_digests_of_its_own(artifact, tmp_path):
    import cv2
    import numpy as np

    from sigcam.convert.quantize import QuantizeOptions, quantize_artifact

    rng = np.random.default_rng(0)
    for number in range(8):
        image = rng.integers(0, 256, (56, 56, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    with_data_file(artifact)
    out = tmp_path / "sub" / "fp16.onnx"
    spec, written = quantize_artifact(
        artifact, tmp_path, out, QuantizeOptions(precision="fp16", held_out=8)
    )
    assert written == [out, head_path(out)]
    assert [one.kind for one in verified(out)] == ["artifact", "head graph"]
    assert spec.digest == read_spec(out).digest != read_spec(artifact).digest
    assert (spec.external_data, spec.head_digest) == ({}, read_spec(artifact).head_digest)
    shutil.copy(out, artifact)  # it is in one file now, and its head graph is the same
    verified(artifact)
