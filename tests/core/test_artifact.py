import json
import os
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, SchemaError
from sigcam.core.spec import ClassSelection, OutputError, ParityReport


def test_the_spec_comes_back(make_artifact, spec_of):
    parity = ParityReport(
        "torch", "ort", 1e-4, (1, 3), "noise", {"logits": OutputError(1e-6, 1e-5)}
    )
    changes = {"class_names": ("écru", "b", "c", "d"), "parity": parity}
    assert read_spec(make_artifact(**changes)) == spec_of(**changes)
    assert read_spec(str(make_artifact(classes=ClassSelection("topk", 2)))).classes.k == 2


def test_missing_folder_empty(tmp_path):
    with pytest.raises(ArtifactError, match="no model file"):
        read_spec(tmp_path / "missing.onnx")
    with pytest.raises(ArtifactError, match="is a folder"):
        read_spec(tmp_path)
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ArtifactError, match="is empty"):
        read_spec(tmp_path / "empty.onnx")


def test_a_model_of_something_else(make_artifact):
    with pytest.raises(ArtifactError, match=r"without a sigcam spec.*sigcam export"):
        read_spec(make_artifact(metadata=False))


@pytest.mark.parametrize(
    "data",
    [
        b"hello world, I am a text file\n" * 100,
        b"\x89PNG\r\n\x1a\n" + bytes(100),
        b"\x00" * 5000,
        b"\xff" * 5000,
        b"\x08\x09" * 300_000,
        b"\x80" * 1000,
        b"PK\x03\x04" + bytes(100),
        b"{}",
        b"\x39" + bytes(8),
    ],
    ids=["text", "png", "zeros", "ones", "many fields", "long varint", "zip", "json", "no graph"],
)
def test_other_files_are_not_onnx(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        read_spec(path)


def test_a_real_zip_is_not_onnx(tmp_path):
    path = tmp_path / "weights.onnx"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", os.urandom(1000))
    with pytest.raises(ArtifactError, match="is not an ONNX file"):
        read_spec(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=200))
def test_any_bytes_give_an_artifact_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(data)
    with pytest.raises(ArtifactError):
        read_spec(path)


def test_truncated_anywhere(make_artifact, tmp_path):
    whole = make_artifact().read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(1, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(ArtifactError, match=r"truncated|not an ONNX|without a sigcam spec"):
            read_spec(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="is truncated"):
        read_spec(path)


@pytest.mark.parametrize(
    ("version", "words"),
    [
        (99, r"schema version 99, this sigcam reads 4; upgrade sigcam or export"),
        (2, r"schema version 2, this sigcam reads 4; export the model again"),
        (1, r"schema version 1, this sigcam reads 4; export the model again"),
        (True, r"schema version True, .*; export the model again"),
        ("3", r"schema version '3', .*; export the model again"),
    ],
)
def test_another_schema(make_artifact, spec_of, version, words):
    text = json.dumps({**json.loads(spec_of().to_json()), "schema_version": version})
    path = make_artifact(spec_text=text)
    with pytest.raises(SchemaError, match=words) as caught:
        read_spec(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"schema_version": 1}'])
def test_a_malformed_spec(make_artifact, text):
    with pytest.raises(SchemaError, match="export the model again"):
        read_spec(make_artifact(spec_text=text))
