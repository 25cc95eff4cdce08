"""`sigcam verify` as a user calls it."""

import json
import os

import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.core.artifact import head_path, read_spec
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)
from tests.support.tiny import with_data_file


@pytest.fixture
def artifact(make_artifact):  # noqa: F811 (the fixture)
    return make_artifact(head="mlp", head_input="features")


def verify(*arguments):
    return CliRunner().invoke(main, ["verify", *map(str, arguments)])


def damage(path):
    data = bytearray(path.read_bytes())
    place = data.find(b"tiny")  # the graph's name
    data[place if place > 0 else len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def test_whole_files(artifact):
    with_data_file(artifact)
    done = verify(artifact)
    assert (done.exit_code, done.stderr) == (0, "")
    digests = [read_spec(file).digest for file in (artifact, head_path(artifact))]
    assert done.stdout.splitlines() == [
        f"{artifact}: OK, artifact, {digests[0]}",
        f"{head_path(artifact)}: OK, head graph, {digests[1]}",
    ]
    assert sorted(verify(artifact.parent).stdout.splitlines()) == sorted(done.stdout.splitlines())


def test_json(artifact):
    damage(head_path(artifact))
    done = verify(artifact, head_path(artifact), "--json")
    assert done.exit_code == 1
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["ok"], first["kind"], first["digest"]) == (False, None, None)
    assert first["file"] == str(artifact)
    assert "model.head.onnx is not what was written" in first["error"]
    assert (second["ok"], second["file"]) == (False, str(head_path(artifact)))


@pytest.mark.parametrize("which", ["model.onnx", "model.onnx.data", "model.head.onnx"])
def test_damaged_files(artifact, which):
    with_data_file(artifact)
    damage(artifact.with_name(which))
    done = verify(artifact)
    assert done.exit_code == 1
    assert f"{artifact}: FAILED, " in done.stdout
    assert which in done.stdout
    assert "1 of 1 files are not what was written" in done.stderr


def test_the_others_are_checked_too(artifact, tmp_path):
    done = verify(tmp_path / "none.onnx", artifact, tmp_path)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert [": OK" in line for line in lines] == [False, True, True, False]
    assert "there is no model file" in lines[0]
    assert "holds no .onnx" in lines[-1]
    assert "2 of 4" in done.stderr


def test_no_file_is_wrong_usage():
    assert verify().exit_code == 2


def test_a_name_that_is_not_utf8(artifact, tmp_path):
    if os.name == "nt":
        pytest.skip("names are Unicode there")
    odd = tmp_path / os.fsdecode(b"m\xff.onnx")
    odd.write_bytes(artifact.read_bytes())
    assert verify(odd).exit_code == 0
    assert verify(tmp_path, "--json").exit_code == 0
