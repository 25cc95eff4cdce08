"""Temporary folders that can't be made or written."""

import errno
import os

import pytest

from sigcam.core.errors import StorageError
from sigcam.core.scratch import scratch_folder


def test_without_a_place_for_temporary_folders(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    told = pytest.raises(StorageError, match=r"no temporary folder can be made.*TMPDIR")
    with told, scratch_folder("x"):
        pytest.fail("there is no folder")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS])
def test_writing_fails(number):
    told = pytest.raises(StorageError, match=rf"{os.strerror(number)}.*TMPDIR")
    with told, scratch_folder("x") as folder:
        (folder / "half").write_bytes(b"abc")
        raise OSError(number, os.strerror(number))
    assert not folder.exists()


def test_what_isnt_the_disks_passes():
    with pytest.raises(ZeroDivisionError), scratch_folder("x") as folder:
        1 / 0  # noqa: B018
    assert not folder.exists()
