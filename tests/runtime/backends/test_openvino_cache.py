"""The cache of models that OpenVINO compiled."""

import hashlib
import shutil
from pathlib import Path

import pytest

from sigcam.core.errors import ArtifactError, StorageError
from tests.support.openvino_cases import computes_in, feeds_of, opened, same

pytest.importorskip("openvino")


def test_nothing_is_cached_unless_a_folder_is_named(make_artifact, monkeypatch, tmp_path):
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert not opened(make_artifact()).from_cache
    assert not list(tmp_path.rglob("*"))


def test_the_second_load_comes_from_the_cache(make_artifact, tmp_path):
    path, folder = make_artifact(emit={"sigmoid_logits", "head_input"}), tmp_path / "a" / "b"
    feeds = feeds_of(2, 3)
    first = opened(path, cache=folder)
    second = opened(path, cache=folder)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.inputs == second.inputs
    assert first.outputs == second.outputs
    assert computes_in(second) == "f32"
    same(second.infer(feeds), first.infer(feeds))
    moved = tmp_path / "moved.onnx"  # known by its contents, not by its place
    shutil.copy(path, moved)
    assert opened(moved, cache=folder).from_cache
    assert not opened(path, cache=folder, mode="throughput").from_cache
    assert not opened(make_artifact(nwc=False), cache=folder).from_cache
    assert len(list(folder.iterdir())) == 3


def damaged(entry, how):
    good = entry.read_bytes()
    blob, magic, checksum = good[:-83], good[-83:-64], good[-64:]
    assert magic.startswith(b"\nsigcam")
    assert checksum == hashlib.sha256(blob).hexdigest().encode()
    if how == "checksum of garbage":
        garbage = b"garbage" * 100
        return garbage + magic + hashlib.sha256(garbage).hexdigest().encode()
    middle = len(good) * 2 // 3
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "one bit": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "zeros": bytes(len(good)),
        "one byte": b"x",
        "openvino's own format": blob,
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "one byte",
        "truncated",
        "one bit",
        "zeros",
        "openvino's own format",
        "checksum of garbage",
    ],
)
def test_a_damaged_entry_is_told_and_made_again(make_artifact, tmp_path, how):
    path = make_artifact()
    feeds = feeds_of(2, 2)
    wanted = opened(path, cache=tmp_path).infer(feeds)
    [entry] = tmp_path.iterdir()
    bad = damaged(entry, how)
    entry.write_bytes(bad)
    with pytest.warns(RuntimeWarning, match=r"\.blob can't be used .*compiled again"):
        again = opened(path, cache=tmp_path)
    assert not again.from_cache
    same(again.infer(feeds), wanted)
    assert entry.read_bytes() != bad  # OpenVINO's bytes, and their number, differ each time
    assert opened(path, cache=tmp_path).from_cache  # without a warning


def test_a_folder_that_cannot_be_written(make_artifact, tmp_path):
    place = tmp_path / "file"
    place.write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        opened(make_artifact(), cache=place)


def test_a_model_that_is_refused_leaves_nothing_in_the_cache(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\x08\x09garbage")
    with pytest.raises(ArtifactError, match=r"bad\.onnx is not a whole"):
        opened(path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ArtifactError, match="cannot read"):
        opened(Path("absent.onnx"), cache=tmp_path / "cache")
