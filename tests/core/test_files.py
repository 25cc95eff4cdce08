"""Files are written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sigcam.core.errors import StorageError
from sigcam.core.files import (
    atomic_path,
    check_writable,
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
