"""Files that are read aren't written over, whatever they are called."""

from __future__ import annotations

import os
import threading

import pytest

from sigcam.core.errors import StorageError, UsageError
from sigcam.core.files import atomic_path, check_writable, write_bytes
from sigcam.core.inputs import inputs_kept, keep, refuse_input
from sigcam.core.threads import in_order


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    path = tmp_path / "a.png"
    path.write_bytes(b"input")
    (tmp_path / "soft.png").symlink_to("a.png")
    (tmp_path / "twice.png").symlink_to("soft.png")
    (tmp_path / "hard.png").hardlink_to(path)
    (tmp_path / "here").symlink_to(tmp_path)
    return path


OTHER_NAMES = [
    "a.png", "./a.png", "sub/../a.png", "soft.png", "twice.png", "hard.png", "here/a.png",
]  # fmt: skip


def _write(path):
    write_bytes(path, b"output")


@pytest.mark.parametrize("read_as", OTHER_NAMES)
@pytest.mark.parametrize("written_as", OTHER_NAMES)
def test_every_name_of_a_file(file, read_as, written_as):
    with inputs_kept(read_as):
        for write in (refuse_input, check_writable, _write):
            with pytest.raises(UsageError, match=r"is an input .*name another"):
                write(written_as)
        with pytest.raises(UsageError), atomic_path(written_as):
            pass
    assert file.read_bytes() == b"input"
    left = {path.name for path in file.parent.iterdir()}
    assert left == {"a.png", "soft.png", "twice.png", "hard.png", "here", "sub"}


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")  # noqa: PTH112
def test_names_in_proc(file):
    with file.open("rb") as stream:
        for name in (f"/proc/self/fd/{stream.fileno()}", f"/dev/fd/{stream.fileno()}"):
            with inputs_kept(name), pytest.raises(UsageError):
                write_bytes(file, b"output")
            with inputs_kept(file), pytest.raises(UsageError):
                write_bytes(name, b"output")


def test_other_files_and_other_times(file):
    with inputs_kept(file, "none.png"):
        keep([file.with_name("later.png")])
        write_bytes("new.png", b"1")
        write_bytes("new.png", b"2")
        with inputs_kept("other.png"), pytest.raises(UsageError):
            write_bytes(file, b"3")
        with pytest.raises(UsageError):
            write_bytes(file, b"4")
    write_bytes(file, b"5")
    assert file.read_bytes() == b"5"


def test_helping_threads_know_and_others_do_not(file):
    def write(number):
        try:
            write_bytes(file, b"output")
        except UsageError:
            return number
        return None

    with inputs_kept(file):
        assert list(in_order(write, range(20), 3, "write")) == list(range(20))
        other = threading.Thread(target=write_bytes, args=(file, b"another's"))
        other.start()
        other.join()
    assert file.read_bytes() == b"another's"


def test_devices_and_folders_stay(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("/dev/null", tmp_path / "pipe"):
        for write in (check_writable, _write):
            with pytest.raises(StorageError, match="no plain file; name another"):
                write(path)
    with pytest.raises(StorageError, match="it is a folder"):
        check_writable(tmp_path)
    with pytest.raises(StorageError, match="choose a shorter name"):
        check_writable(tmp_path / ("n" * 300))
