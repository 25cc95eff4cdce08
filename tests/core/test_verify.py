"""What was damaged is found: single bytes of artifacts, weights, head graphs, engines, branches."""

import hashlib
import json
import re

import numpy as np
import pytest

from sigcam.core.artifact import head_path, read_spec
from sigcam.core.errors import ArtifactError, ModelError, SigcamError, UsageError
from sigcam.core.sidecar import sidecar_path
from sigcam.core.spec import SCHEMA_VERSION
from sigcam.core.verify import check_files, verified
from tests.support.tiny import seal_to, tiny_spec, with_data_file

FLIPS = 150


@pytest.fixture
def artifact(make_artifact):
    """An artifact with weights beside it, and a head graph with weights beside it."""
    import onnx

    path = make_artifact(head="mlp", head_input="features")
    with_data_file(head_path(path))
    with_data_file(path)
    seal_to(onnx.load(path, load_external_data=False), path, head_path(path))
    return path


@pytest.fixture
def engine(tmp_path):
    pytest.importorskip("onnx")
    from tests.support.fake_tensorrt import write_engine

    return write_engine(tmp_path)


@pytest.fixture
def branch(tmp_path):
    torch = pytest.importorskip("torch")
    from sigcam.classifier.branch_file import BranchInfo, save_branch
    from sigcam.classifier.dual_branch import DualBranch
    from sigcam.core.spec import Preprocessing

    nn = torch.nn
    layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    dual = DualBranch(nn.Sequential(*layers), input_size=8)
    info = BranchInfo("nets:small", dual.branch_layer, 2, Preprocessing(8, 8), "noise")
    save_branch(tmp_path / "branch.safetensors", dual, info)
    return tmp_path / "branch.safetensors"


def each_flip_is_found(file, check, flips=FLIPS, seed=0):
    whole = file.read_bytes()
    rng = np.random.default_rng(seed)
    places = rng.choice(len(whole), min(flips, len(whole)), replace=False)
    for place in places.tolist():
        bit = 1 << int(rng.integers(8))
        file.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(SigcamError):
            check()
    for cut in (whole[:-1], whole + b"\0", b""):
        file.write_bytes(cut)
        with pytest.raises(SigcamError):
            check()
    file.write_bytes(whole)
    check()


@pytest.mark.parametrize(
    "name", ["model.onnx", "model.onnx.data", "model.head.onnx", "model.head.onnx.data"]
)
def test_a_flipped_bit_of_an_artifact(artifact, name):
    each_flip_is_found(artifact.with_name(name), lambda: verified(artifact))


def test_every_byte_of_a_spec(make_artifact):
    path = make_artifact()
    data = path.read_bytes()
    begin = data.index(b'{"schema_version"')
    for place in range(begin, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ArtifactError):
            verified(path)


@pytest.mark.parametrize("which", ["engine", "sidecar"])
def test_a_flipped_bit_of_an_engine(engine, which):
    file = engine if which == "engine" else sidecar_path(engine)
    each_flip_is_found(file, lambda: verified(engine))
    each_flip_is_found(file, lambda: verified(sidecar_path(engine)), flips=5)


def test_a_flipped_bit_of_a_branch_file(branch):
    each_flip_is_found(branch, lambda: verified(branch))


def test_a_branch_file_is_compared_whenever_it_is_read(branch):
    from sigcam.classifier.branch_file import read_branch_info

    each_flip_is_found(branch, lambda: read_branch_info(branch), seed=1)


def test_loading_finds_it(make_artifact):
    from sigcam.runtime.session import load

    path = make_artifact(head="mlp", head_input="features")
    for file in (path, head_path(path)):
        each_flip_is_found(file, lambda: load(path).close(), flips=20)
        each_flip_is_found(file, lambda: load(path.read_bytes(), head=head_path(path)).close(), 5)


def test_without_looking_it_is_loaded(make_artifact):
    from sigcam.runtime.session import load

    path = make_artifact(head="mlp")
    data = path.read_bytes()
    place = data.index(b"tiny")
    path.write_bytes(data[:place] + b"tinY" + data[place + 4 :])
    with pytest.raises(ArtifactError, match="is not what was written: its digest is"):
        load(path)
    load(path, verify=False).close()


def test_the_digest_is_what_the_docs_say(artifact):
    """docs/design.md: anyone can compute it in a few lines."""
    data = artifact.read_bytes()
    digits = re.search(rb'"digest": "([0-9a-f]{64})"', data)
    zeros = data[: digits.start(1)] + b"0" * 64 + data[digits.end(1) :]
    spec = read_spec(artifact)
    assert spec.digest == digits.group(1).decode() == hashlib.sha256(zeros).hexdigest()
    beside = artifact.with_name("model.onnx.data")
    assert spec.external_data == {beside.name: hashlib.sha256(beside.read_bytes()).hexdigest()}
    assert spec.head_digest == read_spec(head_path(artifact)).digest


def test_what_is_said_of_whole_files(artifact, branch):
    found = verified(artifact)
    assert [one.kind for one in found] == ["artifact", "head graph"]
    assert [one.digest for one in found] == [
        read_spec(file).digest for file in (artifact, head_path(artifact))
    ]
    assert [one.kind for one in verified(head_path(artifact))] == ["head graph"]
    [found] = verified(branch)
    assert (found.kind, len(found.digest), found.error) == ("branch file", 64, None)


def test_files_without_a_digest(make_artifact, tmp_path):
    import onnx

    path = make_artifact()
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"sigcam": tiny_spec().to_json()})
    onnx.save(model, path)
    with pytest.raises(ArtifactError, match="carries no digest; export the model again"):
        verified(path)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="carries no digest of a branch file"):
        verified(other)
    for missing in ("none.onnx", "none.engine", "none.safetensors"):
        with pytest.raises(SigcamError, match="none"):
            verified(tmp_path / missing)


def test_weights_that_the_digest_does_not_cover(make_artifact):
    """Whoever moves weights out of the file must not get around the check."""
    import onnx

    path = make_artifact(head="mlp")
    with_data_file(path)
    model = onnx.load(path, load_external_data=False)
    for entry in model.metadata_props:
        if entry.key == "sigcam":
            entry.value = tiny_spec(digest=read_spec(path).digest).to_json()
    seal_to(model, path)
    with pytest.raises(ArtifactError, match="the model's spec says nothing"):
        verified(path)


def test_folders_and_many_files(artifact, branch, tmp_path):
    folder = artifact.parent
    (folder / "deep").mkdir()
    (folder / "deep" / "branch.safetensors").write_bytes(branch.read_bytes())
    (folder / ".hidden.onnx").write_bytes(b"being written")
    (folder / "cat.jpg").write_bytes(b"an image")
    found = check_files([folder, artifact])
    assert {one.file for one in found} == {
        str(folder / name) for name in ("model.onnx", "model.head.onnx", "deep/branch.safetensors")
    }
    assert all(one.error is None for one in found)
    head = head_path(artifact)
    head.write_bytes(head.read_bytes().replace(b"tiny", b"tinY"))
    found = {one.file: one for one in check_files([folder])}
    assert "head.onnx is not what was written" in found[str(head)].error
    assert found[str(folder / "deep" / "branch.safetensors")].error is None
    (tmp_path / "empty").mkdir()
    [one] = check_files([tmp_path / "empty"])
    assert "holds no .onnx" in one.error


@pytest.mark.parametrize(
    "wrong",
    [{"digest": "12"}, {"head_digest": "G" * 64}, {"external_data": {"a": "1"}},
     {"external_data": {"../a": "0" * 64}}, {"external_data": {"": "0" * 64}}],
)  # fmt: skip
def test_digests_that_cannot_be(wrong):
    with pytest.raises(UsageError, match=r"64 hexadecimal digits|beside the graph"):
        tiny_spec(**wrong)


def test_the_schema_is_checked_before_the_digest(make_artifact):
    """An older file says that it is older, not that it is damaged."""
    path = make_artifact()
    data = path.read_bytes()
    path.write_bytes(data.replace(f'"schema_version": {SCHEMA_VERSION}'.encode(),
                                  b'"schema_version": 3'))  # fmt: skip
    with pytest.raises(ArtifactError, match=r"schema version 3.*export the model again"):
        verified(path)


def test_the_digest_comes_first_in_the_json():
    keys = list(json.loads(tiny_spec(class_names=('"digest": "' + "0" * 64, "", "", "")).to_json()))
    assert keys[:2] == ["schema_version", "digest"]
