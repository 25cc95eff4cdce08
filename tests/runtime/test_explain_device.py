"""Images that lie on the device: on the stand-in driver, and what can't be asked."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.runtime.session import load
from tests.support.fake_cuda import fake_driver, run_cases
from tests.support.paths import ROOT
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

# ruff: noqa: F811

CASES = ROOT / "tests" / "support" / "on_device_cases.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    pytest.importorskip("cuda.bindings.nvrtc")
    made = tmp_path_factory.mktemp("driver")
    fake_driver(made)
    return made


@pytest.mark.slow
def test_on_the_stand_in_driver(folder):
    run_cases(CASES, folder)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["FAKE_CUDA_POOLS=0", "FAKE_CUDA_INTEGRATED=1"])
@pytest.mark.parametrize("case", ["a_list_of_any_sizes", "graphs_of_shapes_that_come_again"])
def test_other_gpus(folder, variable, case):
    """Without memory pools, and where CPU and GPU share their memory."""
    run_cases(f"{CASES}::test_{case}", folder, **dict([variable.split("=")]))


@pytest.mark.slow
def test_two_gpus(folder):
    case = f"{CASES}::test_a_stream_of_another_context"
    run_cases(case, folder, FAKE_CUDA_DEVICES="2")


def test_a_backend_on_the_cpu(make_artifact):
    with load(make_artifact(profile="split"), "ort", threads=1) as session:
        with pytest.raises(UsageError, match=r"'ort' runs on the CPU.*backend \"ort-cuda"):
            session.explain_device(np.zeros((1, 64, 64, 3), np.uint8))
        assert session.explain(np.zeros((64, 64, 3), np.uint8))
