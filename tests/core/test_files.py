"""Files: written whole or not at all, the folder of caches, and the names of their entries."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sigcam.core.errors import StorageError
from sigcam.core.files import (
    atomic_path,
    cache_folder,
    check_writable,
    key_of,
    write_bytes,
    write_text,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    write_bytes(file, b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert names(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("folder", [".", "/", "made"])
def test_a_folder_is_no_file(folder: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    for refused in (lambda: write_bytes(folder, b"x"), lambda: check_writable(folder)):
        with pytest.raises(StorageError, match="is a folder; name a file in it"):
            refused()
    assert names(tmp_path) == {"made"}


def test_a_name_as_long_as_allowed(tmp_path: Path) -> None:
    file = tmp_path / ("x" * 251 + ".bin")
    write_bytes(file, b"new")
    assert names(tmp_path) == {file.name}


def test_trying_a_place_leaves_it_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "a.bin"
    check_writable(file)
    assert names(tmp_path) == {"deep"}
    write_bytes(file, b"old")
    check_writable(file)
    assert file.read_bytes() == b"old"
    with pytest.raises(StorageError, match="cannot write"):
        check_writable(file / "below.bin")


def test_file_names_that_are_not_utf8_survive_json(tmp_path: Path) -> None:
    name = b"caf\xe9 \xc3\xa9.png".decode("utf-8", "surrogateescape")
    write_text(tmp_path / "a.json", json.dumps({"source": name}, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"source": name}


def test_where_caches_lie(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path))
    assert cache_folder("part") == tmp_path / "part"
    assert not cache_folder("part").exists()
    monkeypatch.delenv("SIGCAM_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("part") == Path("/x/sigcam/part")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache_folder("part") == Path("/local/sigcam/part")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_folder("part").parts[-3:] == ("Caches", "sigcam", "part")


def test_parts_of_a_key_do_not_run_into_each_other() -> None:
    assert len({key_of("ab", "c"), key_of("a", "bc"), key_of("abc")}) == 3


def test_an_error_of_removing_does_not_hide_the_first(tmp_path: Path, monkeypatch) -> None:
    def refuses(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuses)
    with pytest.raises(KeyError, match="first"), atomic_path(tmp_path / "a.bin"):
        raise KeyError("first")
