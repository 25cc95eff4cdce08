"""Files that belong together are published together."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import onnx
import pytest
from torch import nn

from sigcam.core.errors import StorageError
from sigcam.export import staging as staged
from sigcam.export.staging import StagedFiles


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    """Models that only say which version they are; their data file says the same."""

    def to_onnx(module, inputs, dynamic, outputs, opset, data):
        if data is not None:
            data.write_text(outputs[0])
        return onnx.ModelProto(producer_name=outputs[0])

    monkeypatch.setattr(staged, "to_onnx", to_onnx)


def publish(path, version, *, external):
    """An artifact and its head graph."""
    with StagedFiles(path) as made:
        for one in (path, path.with_name("m.head.onnx")):
            made.export(one, nn.Identity(), {}, {}, [version], 18, external)
        made.publish()


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
