"""nvcc's fat binary, and the command that makes it."""

from __future__ import annotations

import shutil

import pytest
from click.testing import CliRunner

from sigcam.cli import main
from sigcam.kernels import fatbin
from sigcam.kernels.errors import CudaUnavailableError, KernelError

MAGIC = b"\x50\xed\x55\xba"


@pytest.fixture
def no_nvcc(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)


def fake_nvcc(folder, monkeypatch, body):
    """An nvcc that knows two architectures and otherwise does `body`."""
    program = folder / "bin" / "nvcc"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        "  --version) echo 'Cuda compilation tools, release 12.8, V12.8.1';;\n"
        "  --list-gpu-code) printf 'sm_70\\nsm_80\\nsm_86\\n';;\n"
        f"  *) {body};;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder))


def run(*arguments):
    return CliRunner().invoke(main, ["kernels", *map(str, arguments)])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_build(tmp_path):
    out = tmp_path / "kernels.fatbin"
    result = run("build", "--out", out, "--arch", "8.6")
    assert result.exit_code == 0, result.output
    assert "for 8.6, and PTX for newer ones" in result.output
    data = out.read_bytes()
    assert data.startswith(MAGIC)
    assert b"\x7fELF" in data
    assert list(tmp_path.iterdir()) == [out]


def test_all_that_nvcc_knows(tmp_path, monkeypatch):
    """The command line, from an nvcc that writes it to the output file."""
    fake_nvcc(tmp_path, monkeypatch, 'for last; do :; done; echo "$@" > "$last"')
    made = fatbin.build(tmp_path / "out.fatbin")
    assert (made.architectures, made.version) == ((80, 86), "12.8")
    words = made.path.read_text().split()
    assert [word for word in words if word.startswith("-gencode")] == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_86,code=compute_86",
    ]
    assert "-std=c++17" in words
    assert not any("fast" in word for word in words)


def test_architectures_that_are_refused(tmp_path, monkeypatch):
    fake_nvcc(tmp_path, monkeypatch, "true")
    with pytest.raises(CudaUnavailableError, match=r"doesn't know 9\.0, only 7\.0, 8\.0, 8\.6"):
        fatbin.build(tmp_path / "x", [90])
    with pytest.raises(ValueError, match=r"made for 7\.5, .*got 7\.0"):
        fatbin.build(tmp_path / "x", [70])
    for wrong in ("8", "8.x", "86", "8.66"):
        result = run("build", "--out", tmp_path / "x", "--arch", wrong)
        assert result.exit_code == 2
        assert "such as 8.6" in result.output
    assert run("build", "--out", tmp_path / "x", "--arch", "7.0").exit_code == 2


def test_a_failure_leaves_what_was_there(tmp_path, monkeypatch):
    out = tmp_path / "out.fatbin"
    out.write_text("before")
    fake_nvcc(tmp_path, monkeypatch, "echo 'no host compiler' >&2; exit 3")
    with pytest.raises(KernelError, match=r"(?s)exit code 3.*no host compiler"):
        fatbin.build(out)
    result = run("build", "--out", out)
    assert result.exit_code == 1
    assert "no host compiler" in result.output
    assert out.read_text() == "before"


def test_no_nvcc(no_nvcc, tmp_path):
    result = run("build", "--out", tmp_path / "x.fatbin")
    assert result.exit_code == 1
    assert "install NVIDIA's CUDA toolkit" in result.output
    assert not (tmp_path / "x.fatbin").exists()


def test_no_place_to_write(tmp_path):
    result = run("build", "--out", tmp_path)
    assert result.exit_code == 1
    assert "it is a folder" in result.output


def test_info(no_nvcc, monkeypatch, tmp_path):
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path))
    result = run("info")
    assert result.exit_code == 0, result.output
    lines = dict(line.split(maxsplit=1) for line in result.output.splitlines())
    assert lines["cache"] == f"{tmp_path / 'kernels'} (0 entries, 0.0 MB)"
    assert lines["nvcc"].startswith("missing: nvcc was not found")
    assert {"nvrtc", "driver", "GPUs"} <= set(lines)
