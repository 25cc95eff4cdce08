"""NVRTC compiles every kernel for every architecture, without spills; and what is missing."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from sigcam.core.files import key_of
from sigcam.kernels import calls, driver
from sigcam.kernels import compile as compiling
from sigcam.kernels.clamp_combine import KERNELS
from sigcam.kernels.compile import ARCHITECTURES, compile_source, resources
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import THREADS


@pytest.fixture(scope="module")
def nvrtc():
    try:
        return compiling.nvrtc_version()
    except CudaUnavailableError as exc:
        pytest.skip(str(exc))


KEPT = "sigcam/kernel-reports"


@pytest.fixture(scope="module")
def compiled(nvrtc, request):
    """Whether it is a cubin, and the log, for every architecture: after `--cache-clear`, or when
    source, options or NVRTC are others than at the last time, compiled; otherwise kept since.

    In two processes, as NVRTC takes one compilation at a time.
    """
    text = compiling.source()
    key = key_of(text, Path(compiling.__file__).read_text(), str(nvrtc))
    cache = getattr(request.config, "cache", None)  # not with -p no:cacheprovider
    kept = cache.get(KEPT, {}) if cache else {}
    if kept.get("key") == key:
        yield {int(number): found for number, found in kept["found"].items()}.get
        return
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        made = {
            number: pool.submit(compile_source, text, number, report=True)
            for number in compiling.supported()
        }

        def found(number):
            if number not in made:
                return None
            result = made[number].result()
            return result.cubin.startswith(b"\x7fELF"), result.log

        yield found
        if cache and not any(one.exception() for one in made.values()):
            cache.set(KEPT, {"key": key, "found": {number: found(number) for number in made}})


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_without_spills(nvrtc, compiled, architecture):
    made = compiled(architecture)
    if made is None:
        pytest.skip(f"NVRTC {nvrtc} doesn't know sm_{architecture}")
    is_cubin, log = made
    assert is_cubin
    found = resources(log)
    assert set(found) == set(KERNELS)
    assert {name: used for name, used in found.items() if used.spills or used.stack} == {}
    # A block must fit a multiprocessor: 65,536 registers, and 48 KiB of static memory.
    assert max(used.registers for used in found.values()) * THREADS <= 65536
    assert max(used.shared for used in found.values()) <= 48 * 1024


def test_the_source_is_put_together(tmp_path):
    """Each file once, with the lines that compilers name those of the files."""
    (tmp_path / "a.cu").write_text('// a\n#include "b.cuh"\n#include "c.cuh"\nend of a\n')
    (tmp_path / "b.cuh").write_text('#pragma once\n#include "c.cuh"\nend of b\n')
    (tmp_path / "c.cuh").write_text("#pragma once\nonly c\n")
    found = compiling.source(tmp_path / "a.cu")
    assert found.count("only c") == 1
    at = {}
    name, number = "", 0  # of the line before
    for line in found.splitlines():
        if line.startswith("#line"):
            _, number, name = line.split()
            number = int(number) - 1
        else:
            number += 1
            at[line] = (name.strip('"'), number)
    assert at["// a"] == ("a.cu", 1)
    assert at["only c"] == ("c.cuh", 2)
    assert at["end of b"] == ("b.cuh", 3)
    assert at["end of a"] == ("a.cu", 4)


def test_the_report_sees_spills_and_local_memory(nvrtc):
    """Kernels that have them, so that their absence means something."""
    source = """
    extern "C" __global__ void __launch_bounds__(1024, 2) many(const float* in, float* out) {
        float values[128];
        #pragma unroll
        for (int i = 0; i < 128; ++i) values[i] = in[i * 7 + threadIdx.x];
        __syncthreads();
        #pragma unroll
        for (int i = 0; i < 128; ++i) out[i * 3 + threadIdx.x] = values[i] * values[127 - i];
    }
    extern "C" __global__ void indexed(const int* in, float* out) {
        __shared__ float common[64];
        float values[64];
        for (int i = 0; i < 64; ++i) values[in[i]] = common[i] = in[i + 64];
        __syncthreads();
        out[threadIdx.x] = values[in[threadIdx.x]] + common[63 - threadIdx.x];
    }
    """
    found = resources(compile_source(source, compiling.supported()[0], report=True).log)
    assert found["many"].spills > 0
    assert found["indexed"].stack >= 256
    assert found["indexed"].shared >= 256


def test_a_report_that_cannot_be_read():
    with pytest.raises(KernelError, match="no report"):
        resources("")
    with pytest.raises(KernelError, match="report of x"):
        resources("ptxas info : Compiling entry function 'x' for 'sm_86'\n")


def test_errors_carry_the_log(nvrtc):
    with pytest.raises(KernelError, match=r"(?s)for sm_\d+ \(NVRTC_ERROR_COMPILATION\).*nonsense"):
        compile_source("__global__ void f() { nonsense; }", compiling.supported()[0])
    with pytest.raises(KernelError, match="INVALID_OPTION"):
        compile_source("", compiling.supported()[0], ("--no-such-option",))


def test_architectures(nvrtc):
    assert compiling.architecture_of((8, 6)) == 86
    with pytest.raises(CudaUnavailableError, match=r"capability 7\.0; the kernels need 7\.5"):
        compiling.architecture_of((7, 0))
    with pytest.raises(CudaUnavailableError, match=r"99\.0, which NVRTC .* install a newer one"):
        compiling.architecture_of((99, 0))


def _fails(*arguments):
    raise RuntimeError("Failure finding libnvrtc.so")


@pytest.fixture
def forgetful():
    """What was found before is looked for again, now and afterwards."""
    for once in (compiling._nvrtc, calls.bindings):
        once.cache_clear()
    yield
    for once in (compiling._nvrtc, calls.bindings):
        once.cache_clear()


def test_nvrtc_is_missing(monkeypatch, forgetful):
    found = SimpleNamespace(nvrtcVersion=_fails, nvrtcGetSupportedArchs=_fails)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", found)
    for call in (compiling.nvrtc_version, lambda: compiling.cubin_for((8, 6))):
        with pytest.raises(CudaUnavailableError, match="pip install nvidia-cuda-nvrtc"):
            call()


def test_cuda_bindings_is_missing(monkeypatch, forgetful):
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    for call in (compiling.nvrtc_version, driver.available, driver.current_device):
        with pytest.raises(CudaUnavailableError, match="cuda-bindings is not installed"):
            call()


def test_the_driver_is_missing(monkeypatch, forgetful):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", SimpleNamespace(cuInit=_fails))
    for call in (driver.available, driver.devices, lambda: driver.retain_primary_context(0)):
        with pytest.raises(CudaUnavailableError, match="libcuda"):
            call()


def test_a_function_that_the_driver_is_too_old_for(monkeypatch, forgetful):
    found = SimpleNamespace(
        cuInit=lambda flags: (0,), cuDeviceGetCount=lambda: (0, 1), cuNew=_fails
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", found)
    with pytest.raises(KernelError, match="cuNew can't be called with the installed driver"):
        calls.call("cuNew")


def test_statuses_are_unwrapped():
    assert driver.check((0,)) is None
    assert driver.check((0, 5)) == 5
    assert driver.check((0, 5, 6)) == (5, 6)


def test_nothing_is_imported_before_use():
    """Importing the modules needs no CUDA package: asked in a process that refuses them."""
    code = (
        "import sys; sys.modules['cuda'] = None\n"
        "import sigcam.kernels.clamp_combine, sigcam.kernels.fatbin\n"
        "assert not any(name.startswith('cuda.') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
