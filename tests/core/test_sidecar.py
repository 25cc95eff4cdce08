"""An engine's sidecar: what it says, and every way in which it may be malformed."""

import os
import shlex
from dataclasses import fields, replace

import pytest

from sigcam.core import sidecar as module
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ArtifactError, SchemaError, StorageError, UsageError
from sigcam.core.sidecar import Sidecar, read_sidecar, sidecar_path
from tests.support.fake_tensorrt import VERSION, altered, write_engine
from tests.support.tiny import tiny_spec


@pytest.fixture
def engine(tmp_path):
    return write_engine(tmp_path)


def test_it_says_what_the_engine_is(engine):
    found = read_sidecar(engine)
    assert found.spec == tiny_spec(profile="split") == read_spec(engine)
    assert found.size == engine.stat().st_size
    assert (found.package, found.version, found.capabilities) == ("tensorrt", VERSION, ("8.6",))
    assert Sidecar(**{f.name: getattr(found, f.name) for f in fields(found)}) == found
    assert not list(engine.parent.glob(".*"))


@pytest.mark.parametrize("name", [*(f.name for f in fields(Sidecar)), "schema_version"])
def test_a_field_that_is_missing(engine, name):
    altered(sidecar_path(engine), **{name: None})
    with pytest.raises(SchemaError, match="build the engine again"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sha256", 3), ("size", "3"), ("package", "trt"), ("package", 1), ("version", 10),
        ("platform", ["Linux"]), ("capabilities", 8.6), ("capabilities", []),
        ("capabilities", ["8.6`id`"]), ("capabilities", ["8.6", "8.9"]), ("gpu", 5),
        ("shapes", {"image": [[1]]}),
        ("shapes", {}), ("shapes", [1]), ("precision", "float8"), ("tf32", "no"), ("source", 0),
        ("source_sha256", 5), ("versions", 5), ("spec", {}), ("spec", "x"),
        ("schema_version", "3"), ("schema_version", 4),
    ],
)  # fmt: skip
def test_a_field_of_another_kind(engine, name, value):
    altered(sidecar_path(engine), **{name: value})
    with pytest.raises(SchemaError, match=r"model\.engine\.json"):
        read_sidecar(engine)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"schema_version": 1}', "\udcff"])
def test_text_that_is_no_sidecar(engine, text):
    sidecar_path(engine).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SchemaError, match="build the engine again"):
        read_sidecar(engine)


def test_half_a_pair(engine):
    sidecar_path(engine).unlink()
    with pytest.raises(ArtifactError, match=r"no model\.engine\.json beside it"):
        read_sidecar(engine)
    engine.unlink()
    with pytest.raises(ArtifactError, match="there is no engine"):
        read_spec(engine)


def test_a_pair_is_written_whole_or_not_at_all(engine, monkeypatch):
    before = {path: path.read_bytes() for path in engine.parent.iterdir()}
    found = read_sidecar(engine)
    with pytest.raises(StorageError):
        module.write_pair(engine.parent, memoryview(b"x"), found)

    def full(self):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Sidecar, "to_json", full)
    with pytest.raises(StorageError, match="No space left"):
        module.write_pair(engine, memoryview(b"x"), found)
    assert {path: path.read_bytes() for path in engine.parent.iterdir()} == before


def test_the_command_names_what_is_not_by_default(tmp_path):
    found = read_sidecar(write_engine(tmp_path, "tensorrt_rtx", ("8.6", "12.0")))
    usual = "sigcam build-engine model.onnx --package tensorrt_rtx --max-batch 4 --classes 1/1/3"
    usual += " --capability 8.6 --capability 12.0"
    assert found.command(tmp_path / "model.rtx.engine") == usual
    assert found.command(tmp_path / "model.engine") == f"{usual} --out model.engine"
    odd = replace(found, source="my model; rm.onnx")
    parts = shlex.split(odd.command("here/it's.engine"))
    assert parts[2] == "my model; rm.onnx"
    assert parts[-2:] == ["--out", "it's.engine"]


def test_a_gpu_belongs_to_tensorrt_alone(tmp_path):
    for package, wrong in (("tensorrt", None), ("tensorrt_rtx", "Fake GPU")):
        found = read_sidecar(write_engine(tmp_path, package))
        with pytest.raises(UsageError, match="be named for"):
            replace(found, gpu=wrong)


def test_a_model_whose_name_is_not_utf8(engine):
    found = replace(read_sidecar(engine), source=os.fsdecode(b"m\xff.onnx"))
    module.write_pair(engine, memoryview(b"x"), found)
    assert read_sidecar(engine) == found
