"""The whole GPU path of the kernels on a driver without a GPU; see tests/support/fake_cuda."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.fake_cuda import HERE, environment, fake_driver, run_cases

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fake")
    fake_driver(made)
    return made


def test_cases(folder):
    run_cases(HERE / "gpu_cases.py", folder)


def test_cases_without_memory_pools(folder):
    case = f"{HERE / 'gpu_cases.py'}::test_arrays_of_others"
    run_cases(case, folder, FAKE_CUDA_POOLS="0")


def test_two_gpus(folder):
    run_cases(f"{HERE / 'gpu_cases.py'}::test_a_stream_of_another_context", folder,
              FAKE_CUDA_DEVICES="2")  # fmt: skip


def test_no_device(folder):
    code = "from sigcam.kernels import driver; driver.available()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(folder, FAKE_CUDA_DEVICES="0"),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "CudaUnavailableError: CUDA can't start: cuInit gave CUDA_ERROR_NO_DEVICE" in done.stderr


def test_kernels_info(folder):
    done = subprocess.run(
        [sys.executable, "-m", "sigcam", "kernels", "info"],
        env=environment(folder), capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "0: Fake 0, compute capability 8.6" in done.stdout
    assert "CUDA 13.0" in done.stdout
