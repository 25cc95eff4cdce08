"""ort-cuda with everything but ONNX Runtime's provider: bindings, streams, memory, kernels."""

import pytest

from tests.support.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.support.fake_cuda import fake_driver

    pytest.importorskip("cuda.bindings.nvrtc")
    made = tmp_path_factory.mktemp("driver")
    fake_driver(made)
    return made


def test_in_a_process_with_that_driver(folder):
    from tests.support.fake_cuda import run_cases

    run_cases(ROOT / "tests" / "support" / "ort_cuda_cases.py", folder)


def test_where_cpu_and_gpu_share_their_memory(folder):
    """As on Jetson."""
    from tests.support.fake_cuda import run_cases

    cases = ROOT / "tests" / "support" / "ort_cuda_cases.py"
    run_cases(f"{cases}::test_the_same_answers_as_on_the_cpu", folder, FAKE_CUDA_INTEGRATED="1")
    run_cases(f"{cases}::test_shared_memory_is_not_copied", folder, FAKE_CUDA_INTEGRATED="1")
