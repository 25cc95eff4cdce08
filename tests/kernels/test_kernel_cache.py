"""The cache of compiled kernels: several processes, damage, other versions, no room."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from sigcam.kernels import cache
from sigcam.kernels import compile as compiling
from sigcam.kernels.compile import Compiled


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(cache, "_told", set())
    return tmp_path / "kernels"


@pytest.fixture
def compiler(monkeypatch):
    """NVRTC's place is taken by one that counts; what it makes tells what it was made from."""

    class Compiler:
        made = 0
        version = (13, 0)

        def compile(self, source, architecture, options=(), *, report=False):
            self.made += 1
            return Compiled(f"{architecture} {self.made}".encode() * 1000, "")

        def call(self, name, *arguments):
            return {"nvrtcVersion": self.version, "nvrtcGetSupportedArchs": [80, 86]}[name]

    found = Compiler()
    monkeypatch.setattr(compiling, "compile_source", found.compile)
    monkeypatch.setattr(compiling, "_call", found.call)
    return found


def entry(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_compiled_once(compiler, folder):
    first = compiling.cubin_for((8, 6))
    assert compiling.cubin_for((8, 6)) == first == b"86 1" * 1000
    assert compiler.made == 1
    assert compiling.cubin_for((8, 0)) == b"80 2" * 1000
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: data[:200] + b"?" + data[201:],
        lambda data: data.replace(b"sigcam kernel 1", b"sigcam kernel 2"),
        lambda data: data + b"more",
    ],
    ids=["one byte short", "truncated", "empty", "a byte changed", "other format", "longer"],
)
def test_a_damaged_entry_is_made_again(compiler, folder, damage):
    compiling.cubin_for((8, 6))
    path = entry(folder)
    path.write_bytes(damage(path.read_bytes()))
    assert compiling.cubin_for((8, 6)) == b"86 2" * 1000
    assert compiling.cubin_for((8, 6)) == b"86 2" * 1000
    assert entry(folder) == path


def test_what_the_key_depends_on(compiler, folder, monkeypatch, tmp_path):
    compiling.cubin_for((8, 6))
    compiler.version = (13, 1)
    compiling.cubin_for((8, 6))
    assert compiler.made == 2
    monkeypatch.setattr(compiling, "OPTIONS", ("-std=c++17",))
    compiling.cubin_for((8, 6))
    assert compiler.made == 3
    other = tmp_path / "other.cu"
    other.write_text('// another source\n#include "header.cuh"\n')
    monkeypatch.setattr(compiling, "SOURCE", other)
    for made, text in ((4, "constexpr int N = 1;"), (5, "constexpr int N = 2;"), (5, "")):
        (tmp_path / "header.cuh").write_text(text or "constexpr int N = 2;")
        compiling.cubin_for((8, 6))
        assert compiler.made == made
    assert len(list(folder.iterdir())) == 5


def test_a_folder_that_cannot_be_written(compiler, folder):
    folder.write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="SIGCAM_CACHE_DIR"):
        assert compiling.cubin_for((8, 6)) == b"86 1" * 1000
    with warnings.catch_warnings():  # said once, compiled every time
        warnings.simplefilter("error")
        assert compiling.cubin_for((8, 6)) == b"86 2" * 1000


def test_nothing_is_left_when_writing_fails(folder, monkeypatch):
    def full(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        cache.write("key", b"payload")
    assert list(folder.iterdir()) == []


WRITER = """
import sys
from sigcam.kernels import cache
letter = sys.argv[1].encode()
for turn in range(60):
    cache.write("shared", letter * (200_000 + turn))
    found = cache.read("shared")
    assert found is not None, "an entry that isn't whole was seen"
    assert len(set(found)) == 1 and len(found) >= 200_000
"""


def test_two_processes_at_once(folder):
    running = [
        subprocess.Popen([sys.executable, "-c", WRITER, letter], stderr=subprocess.PIPE, text=True)
        for letter in "ab"
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert [path.name for path in folder.iterdir()] == ["shared.bin"]


def test_where_it_lies(monkeypatch):
    assert cache.cache_dir() == Path(os.environ["SIGCAM_CACHE_DIR"]) / "kernels"
    monkeypatch.delenv("SIGCAM_CACHE_DIR")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache.cache_dir() == Path("/x/sigcam/kernels")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert cache.cache_dir() == Path("/local/sigcam/kernels")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_dir().parts[-3:] == ("Caches", "sigcam", "kernels")
