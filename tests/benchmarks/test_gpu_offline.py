"""The GPU check on a machine without a network: from a bare checkout, with what pack.py brings."""

import json
import shutil
import struct
import subprocess
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

from benchmarks.gpu import pack, slim
from tests.support.paths import ROOT

BARE = ("numpy", "cuda-bindings", "cuda-pathfinder", "nvidia-cuda-nvrtc")
"""Of what torch, cuda-bindings and onnx bring, all that the kernels' checks may take."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """bare(*arguments): runs check.py where nothing else is installed, on a driver's stand-in."""
    from tests.support.fake_cuda import environment, fake_driver

    pytest.importorskip("cuda.bindings.nvrtc")
    folder = tmp_path_factory.mktemp("machine")
    fake_driver(folder)
    venv.create(folder / "venv", symlinks=True)
    [site] = (folder / "venv").glob("lib/python*/site-packages")
    for name in BARE:
        for file in distribution(name).files or ():
            source, target = Path(file.locate()), site / file
            if ".." not in file.parts and source.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(source)

    def run(*arguments, script="check.py"):
        env = environment(folder, PYTHONPATH="")
        python = str(folder / "venv" / "bin" / "python")
        command = [python, str(ROOT / "benchmarks" / "gpu" / script), *arguments]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, cwd=folder
        )

    return run


def test_nothing_but_these_can_be_imported(bare, tmp_path):
    script = tmp_path / "look.py"
    script.write_text(
        "import importlib.util as u\n"
        "print([n for n in ('sigcam', 'simplejpeg', 'cv2', 'click', 'tqdm', 'torch', 'onnxruntime',"
        " 'numpy', 'cuda') if u.find_spec(n)])"
    )
    assert bare(script=script).stdout.strip() == "['numpy', 'cuda']"


def test_what_is_listed(bare):
    done = bare("--list")
    assert done.returncode == 0, done.stderr
    listed = done.stdout.splitlines()
    assert {"values", "times", "backend ort-cuda", "backend tensorrt"} <= set(listed)
    assert not [name for name in listed if name.split()[0] in ("export", "compare", "latency")]


@pytest.mark.slow
def test_the_kernels_checks_run(bare, tmp_path):
    """The kernels themselves, compiled for the CPU, under the stand-in's launches."""
    out = tmp_path / "out.json"
    asked = ["compile", "copies", "interop", "peers", "backend"]
    done = bare("--out", str(out), *(part for name in asked for part in ("--only", name)))
    report = json.loads(out.read_text())
    found = {one["name"]: (one["status"], one["detail"]) for one in report["results"]}
    assert done.returncode == 0, (done.stdout, done.stderr, found)
    passed = {name for name, (status, _) in found.items() if status == "passed"}
    assert passed == {"compile", "copies"}, found
    for name in ("interop torch", "interop cupy", "peers", "backend ort-cuda"):
        assert found[name][0] == "skipped"
        assert "isn't installed" in found[name][1]
    assert len(done.stdout.splitlines()) < 60
    assert "Fake 0 (8.6, 4 multiprocessors)" in done.stdout
    assert str(tmp_path) not in out.read_text()


@pytest.mark.slow
def test_every_timing_runs_to_its_end(bare, tmp_path, monkeypatch):
    """On the smallest shapes: the CPU takes minutes for the others."""
    script = tmp_path / "small.py"
    script.write_text(
        f"import sys; sys.path[0] = {str(ROOT)!r}\n"
        "from benchmarks.gpu import timings\n"
        "timings.SHAPES, timings.COUNTS, timings.SIZES = ((8, 3, 3),), ((1, 2),), ((8, 8),)\n"
        "timings.LAUNCHES, timings.ROUNDS, timings.CALLS, timings.WARM_UP = 2, 1, 2, 1\n"
        "timings.ONE = (8, 3, 3)\n"
        "print([len(check()['rows']) for check in (timings.check_times, timings.check_enlarge)])\n"
        "print(sorted(timings.check_host()), sorted(timings.check_pool()['us']))\n"
    )
    done = bare(script=script)
    assert done.stdout.splitlines() == [
        "[2, 8]", "['calls', 'us'] ['given back', 'kept']",
    ], done.stderr  # fmt: skip


def elf(contents, name=b".nv_fatbin"):
    """A 64-bit ELF file with one section of these contents, and the one of names."""
    names = b"\0" + name + b"\0.shstrtab\0"
    begin, headers = 64, 64 + len(contents) + len(names)
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 0x28, headers)
    struct.pack_into("<HHH", header, 0x3A, 64, 3, 2)
    rows = [
        (0, 0, 0),
        (1, begin, len(contents)),
        (1 + len(name), begin + len(contents), len(names)),
    ]
    table = b"".join(
        struct.pack("<IIQQQQ", at, 1, 0, 0, offset, size) + bytes(64 - 40)
        for at, offset, size in rows
    )
    return bytes(header) + contents + names + table


def fatbin(*code):
    """A fat binary with (compute capability times ten, contents)."""
    body = b""
    for architecture, contents in code:
        own = bytearray(64)
        struct.pack_into("<HHIQ", own, 0, 2, 0x101, 64, len(contents))
        struct.pack_into("<I", own, 28, architecture)
        body += bytes(own) + contents
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def test_the_code_of_one_gpu_is_kept():
    data = elf(
        fatbin((80, b"a" * 40), (90, b"b" * 24))
        + bytes(16)
        + fatbin((90, b"c" * 8), (120, b"d" * 8))
    )
    assert [(one.architecture, one.size) for one in slim.entries(data)] == [
        (80, 40), (90, 24), (90, 8), (120, 8),
    ]  # fmt: skip
    kept = slim.slim(data, 90)
    assert len(kept) == len(data)
    assert (kept.count(b"a" * 40), kept.count(b"b" * 24), kept.count(b"c" * 8)) == (0, 1, 1)
    assert b"d" * 8 not in kept
    assert list(slim.entries(kept)) == list(slim.entries(data))  # headers and places stay


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"MZ" + bytes(100), "no library of Linux"),
        (elf(b"", name=b".text"), "holds no kernels"),
        (elf(fatbin((80, b"a" * 8))), r"has code for \[80\], not for 90"),
        (elf(fatbin((90, b"a" * 8))[:-4]), "ends after its section"),
        (elf(fatbin((90, b"a" * 8)).replace(b"\x40\0\0\0", b"\x41\0\0\0", 1)), "ends after it"),
    ],
)
def test_what_is_no_library_with_that_code(data, message):
    with pytest.raises(ValueError, match=message):
        slim.slim(data, 90)


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("cuobjdump") is None, reason="no CUDA toolkit"
)
def test_a_library_of_nvccs(tmp_path):
    """What NVIDIA's own tool sees: the kept code as it was, of others nothing that is code."""
    (tmp_path / "k.cu").write_text("__global__ void k(float* x) { x[threadIdx.x] += 1; }\n")
    code = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    library = tmp_path / "k.so"
    subprocess.run(
        ["nvcc", "-shared", "-Xcompiler", "-fPIC", *code, "k.cu", "-o", str(library)],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    before = library.read_bytes()
    assert {one.architecture for one in slim.entries(before)} == {80, 90}
    library.write_bytes(slim.slim(before, 90))

    def sass(data):
        library.write_bytes(data)
        command = ["cuobjdump", "-sass", "-arch", "sm_90", str(library)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "EXIT" in sass(before)
    assert sass(slim.slim(before, 90)) == sass(before)


def wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize("piece", [10**9, 200])
def test_pieces_go_over_and_are_put_together(tmp_path, piece):
    library = elf(fatbin((80, b"a" * 4000), (90, bytes(range(256)) * 4)))
    wheels = [
        wheel(tmp_path / "a.whl", {"simplejpeg/__init__.py": b"x = 1"}),
        wheel(
            tmp_path / "b.whl",
            {
                "onnxruntime/capi/libonnxruntime_providers_cuda.so": library,
                "onnxruntime/capi/libonnxruntime_providers_tensorrt.so": b"left out",
                "onnxruntime/__init__.py": b"y = 2",
            },
        ),
    ]
    folder, site = tmp_path / "pieces", tmp_path / "site"
    pack.pack(wheels, folder, 90, 100)  # from an earlier time, more than there are now
    written = pack.pack(wheels, folder, 90, piece)
    assert all(path.stat().st_size <= piece for path in written)
    assert (len(written) > 1) == (piece == 200)
    assert pack.unpack(folder, site) == len(written)
    there = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    provider = "onnxruntime/capi/libonnxruntime_providers_cuda.so"
    assert there == {"simplejpeg/__init__.py", "onnxruntime/__init__.py", provider}
    assert (site / provider).read_bytes() == slim.slim(library, 90)
    for path in (written[-1], written[0]):
        path.unlink()
        with pytest.raises(SystemExit, match=r"must have the pieces|no whole archive"):
            pack.unpack(folder, tmp_path / "again")
        if len(written) == 1:
            break


def test_pack_runs_in_a_bare_checkout(bare, tmp_path):
    done = bare("unpack", str(tmp_path), str(tmp_path / "site"), script="pack.py")
    assert done.returncode == 1
    assert "must have the pieces 0, 1 and so on" in done.stderr
