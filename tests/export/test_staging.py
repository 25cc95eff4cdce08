"""Files that belong together are published together."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
from torch import nn

from sigcam.core.errors import StorageError
from sigcam.export import ExportOptions, staging
from sigcam.export.onnx_model import GraphSignature
from sigcam.export.staging import StagingFolder


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """Models that only say which version they are; their data file says the same."""

    def to_onnx(module, signature, opset, data_file):
        (version,) = signature.outputs
        if data_file is not None:
            data_file.write_text(version)
        return onnx.ModelProto(producer_name=version)

    monkeypatch.setattr(staging, "to_onnx", to_onnx)


def publish(path, version, *, external):
    """An artifact and its head graph."""
    options = ExportOptions(external_data=external)
    with StagingFolder(path) as folder:
        for one in (path, path.with_name("m.head.onnx")):
            folder.export(one, nn.Identity(), GraphSignature({}, [version]), options)
        folder.publish()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("external", [False, True])
def test_a_failure_in_the_middle_changes_nothing(tmp_path, monkeypatch, external):
    """An old graph beside new weights, or a new head graph, would be wrong without a word."""
    path, replace = tmp_path / "m.onnx", Path.replace
    publish(path, "old", external=external)
    before = contents(tmp_path)
    assert len(before) == (4 if external else 2)
    failures = 0
    while True:
        moves = 0

        def fails(self, target, failing=failures):
            nonlocal moves
            moves += 1
            if moves == failing + 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return replace(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fails)
            try:
                publish(path, "new", external=external)
                break
            except StorageError as exc:
                assert "cannot write" in str(exc)
        assert contents(tmp_path) == before
        failures += 1
    # Every move of each file: what was there, the new one; and writing it beside at first.
    assert failures >= 2 * len(before)
    after = contents(tmp_path)
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)


@pytest.mark.parametrize("external", [False, True])
def test_at_no_moment_do_files_of_two_versions_lie_together(tmp_path, monkeypatch, external):
    """The process may be killed before any of the moves."""
    path, replace, seen = tmp_path / "m.onnx", Path.replace, []
    publish(path, "old", external=external)

    def watched(self, target):
        visible = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()}
        seen.append({name: b"new" in data for name, data in visible.items() if name[0] != "."})
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    publish(path, "new", external=external)
    assert len(seen) > 4
    assert all(len(set(versions.values())) <= 1 for versions in seen)
    # The artifact is there with all that belongs to it, or not at all.
    whole = 4 if external else 2
    assert {len(versions) for versions in seen if "m.onnx" in versions} == {whole}


def test_a_first_file_that_cannot_be_moved_leaves_nothing(tmp_path, monkeypatch):
    replace = Path.replace

    def fails(self, target):
        if Path(target).name == "m.onnx" and Path(target).parent == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(StorageError, match="nothing was changed"):
        publish(tmp_path / "m.onnx", "new", external=True)
    assert contents(tmp_path) == {}
