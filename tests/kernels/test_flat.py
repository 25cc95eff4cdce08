"""The kernel of addresses and whole numbers: on the CPU against the reference, and its PTX."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.cli import main
from sigcam.kernels import compile as compiling
from sigcam.kernels import flat
from sigcam.kernels.arguments import whole
from sigcam.kernels.compile import compile_source, resources, source
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.kernels.plan import THREADS
from sigcam.kernels.reference import normalised_heatmaps, to_bytes
from tests.support.host_cuda import library, program, run_case

GUARD = 64  # bytes before and after the heatmaps


class Arguments(ctypes.Structure):
    """As the harness passes them on, one by one."""

    _fields_ = (
        ("cams", ctypes.c_void_p),
        *((name, ctypes.c_int) for name in ("rows", "columns", "height", "width", "strip")),
        ("heatmaps", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("host") / "flat.so", source=flat.SOURCE)


@pytest.fixture(scope="module")
def made():
    try:
        return flat.ptx().decode()
    except CudaUnavailableError as exc:
        pytest.skip(str(exc))


def run(lib, cams, height, width, *, bytes_=False, shift=0):
    """Heatmaps [count, H, W] from CAMs [count, h, w], `shift` elements off an aligned address."""
    cams = np.ascontiguousarray(cams, np.float32)
    kind = np.dtype(np.uint8 if bytes_ else np.float32)
    shape = (len(cams), height, width)
    size = int(np.prod(shape)) * kind.itemsize
    memory = np.full(size + 2 * GUARD + 32, 0xAB, np.uint8)
    start = GUARD - memory.ctypes.data % 16 + 16 + shift * kind.itemsize
    step = flat.launch(*shape, bytes_=bytes_)
    address = memory.ctypes.data + start
    argument = Arguments(cams.ctypes.data, *cams.shape[1:], height, width, flat.STRIP, address)
    grid = (ctypes.c_uint * 3)(*step.grid)
    lib.run(step.kernel.encode(), ctypes.byref(argument), grid, step.block, step.shared)
    assert (memory[:start] == 0xAB).all()
    assert (memory[start + size :] == 0xAB).all()
    return memory[start : start + size].view(kind).reshape(shape)


def wanted(cams, height, width):
    axes = whole(height, cams.shape[1]), whole(width, cams.shape[2])
    return normalised_heatmaps(cams[None], *axes)[0][0]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(1, 150),
    st.integers(1, 150), st.booleans(), st.integers(0, 2), st.integers(0, 2**32),
)  # fmt: skip
def test_it_is_the_reference(lib, count, rows, columns, height, width, bytes_, shift, seed):
    cams = np.random.default_rng(seed).normal(size=(count, rows, columns)).astype(np.float32)
    found = run(lib, cams, height, width, bytes_=bytes_, shift=shift)
    want = wanted(cams, height, width)
    if bytes_:
        assert np.abs(found.astype(int) - to_bytes(want)).max() <= 1
    else:
        np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("bytes_", [False, True])
@pytest.mark.parametrize("size", [(256, 264), (129, 131), (1, 300)])
def test_several_blocks(lib, size, bytes_):
    """Strips and tiles at every edge, stored at once and one by one; a class that is flat."""
    cams = np.random.default_rng(3).normal(size=(3, 14, 14)).astype(np.float32)
    cams[1] = 2.5
    found = run(lib, cams, *size, bytes_=bytes_)
    want = wanted(cams, *size)
    assert not found[1].any()
    if bytes_:
        assert np.abs(found.astype(int) - to_bytes(want)).max() <= 1
    else:
        np.testing.assert_allclose(found, want, atol=1e-4)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_cam_that_is_not_finite(lib, broken):
    cams = np.random.default_rng(4).normal(size=(3, 7, 7)).astype(np.float32)
    cams[2, 6, 6] = broken
    found = run(lib, cams, 40, 50)
    assert not found[2].any()
    np.testing.assert_allclose(found[:2], wanted(cams[:2], 40, 50), atol=1e-4)


def test_ptx_has_the_arguments_that_are_described(made):
    """Every parameter's type in order: an address, five ints, an address."""
    assert ".target sm_75" in made
    assert "\0" not in made
    entries = re.findall(r"\.entry (\w+)\(([^)]*)\)", made)
    assert {name for name, _ in entries} == {"flat_bilinear_f32", "flat_bilinear_u8"}
    for _, parameters in entries:
        types = re.findall(r"\.param \.(\w+)", parameters)
        assert types == ["u64", "u32", "u32", "u32", "u32", "u32", "u64"]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [75, 87, 90, 120])
def test_machine_code_without_spills(made, architecture):
    if architecture not in compiling.supported():
        pytest.skip(f"NVRTC doesn't know sm_{architecture}")
    used = resources(compile_source(source(flat.SOURCE), architecture, report=True).log)
    assert set(used) == {"flat_bilinear_f32", "flat_bilinear_u8"}
    assert all(one.spills == one.stack == one.shared == 0 for one in used.values())
    assert max(one.registers for one in used.values()) * THREADS <= 65536


def test_sizes_that_cannot_be_launched():
    for wrong in ((0, 1, 1), (1, 0, 1), (1, 1, 0), (1, -5, 7)):
        with pytest.raises(ValueError, match="at least 1"):
            flat.launch(*wrong)
    assert flat.launch(1, 65535 * 128, 1).grid == (1, 65535, 1)
    for wrong in ((1, 65535 * 128 + 1, 1), (1, 1, 65535 * 128 + 1), (2**31, 1, 1)):
        with pytest.raises(ValueError, match="at most 2147483647 heatmaps of 8388480 rows and"):
            flat.launch(*wrong)
    assert flat.launch(1, 1, 65535 * 128 + 1, bytes_=True).grid == (1, 1, 32768)


def test_the_command(made, tmp_path):
    out = tmp_path / "flat.ptx"
    result = CliRunner().invoke(main, ["kernels", "ptx", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "for compute capability 7.5 and later" in result.output
    assert out.read_text() == made


def test_the_command_without_nvrtc(monkeypatch, tmp_path):
    def missing(*_):
        raise CudaUnavailableError("NVRTC's library was not found")

    monkeypatch.setattr(compiling, "_call", missing)
    result = CliRunner().invoke(main, ["kernels", "ptx", "--out", str(tmp_path / "x")])
    assert result.exit_code == 1
    assert "was not found" in result.output
    assert not list(tmp_path.iterdir())
    assert CliRunner().invoke(main, ["kernels", "ptx", "--out", str(tmp_path)]).exit_code == 1


FAULTS = {
    # The bounds are read before they are all there.
    "thread": (
        "        *valid = is_valid(found, *broken == 0);\n    }\n    __syncthreads();\n",
        "        *valid = is_valid(found, *broken == 0);\n    }\n",
    ),
    # A row of a strip after the heatmaps' end.
    "address": (
        "const int end = min(first + strip, height);",
        "const int end = first + strip;",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("tool", FAULTS)
@pytest.mark.parametrize("bytes_", [False, True])
def test_sanitizers(tmp_path, tool, bytes_):
    """No report, and one for the same source with a fault planted."""
    text = source(flat.SOURCE)
    planted = text.replace(*FAULTS[tool])
    assert planted != text
    cams = np.random.default_rng(5).normal(size=(2, 5, 3)).astype(np.float32)
    size = (19, 50)
    step = flat.launch(2, *size, bytes_=bytes_)
    kind = np.uint8 if bytes_ else np.float32
    buffers = {"cams": cams, "heatmaps": np.full((2, *size), 77, kind)}
    argument = Arguments(0, *cams.shape[1:], *size, flat.STRIP, 0)
    for name, one in (("whole.cu", text), ("planted.cu", planted)):
        (tmp_path / name).write_text(one)
        flags = (f"-fsanitize={tool}", "-Wno-unused-function")
        built = program(tmp_path / f"{name}.bin", *flags, source=tmp_path / name)
        done, left = run_case(built, tmp_path, buffers, [(step, argument)])
        if one is text:
            assert (done.returncode, done.stderr) == (0, "")
            want = wanted(cams, *size)
            tolerance = 1 if bytes_ else 1e-4
            found, want = left["heatmaps"].astype(float), to_bytes(want) if bytes_ else want
            assert np.abs(found - want).max() <= tolerance
        else:
            assert f"{tool.title()}Sanitizer" in done.stderr
