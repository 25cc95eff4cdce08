"""ort-cuda with everything but ONNX Runtime's provider: bindings, streams, memory, kernels."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from fake_cuda import fake_driver

    pytest.importorskip("cuda.bindings.nvrtc")
    made = tmp_path_factory.mktemp("driver")
    fake_driver(made)
    return made


def test_in_a_process_with_that_driver(folder):
    from fake_cuda import run_cases

    run_cases(Path(__file__).with_name("ort_cuda_cases.py"), folder)
