"""A CUDA driver without a GPU (fake_driver.cpp), and running tests in a process that has it.

Needs g++ and the package cuda-bindings; tests that use it skip where one is missing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.host_cuda import FLAGS, SOURCE

HERE = Path(__file__).resolve().parent


def fake_driver(folder: Path) -> Path:
    """Builds libcuda.so.1 in `folder`, for LD_LIBRARY_PATH."""
    compiler = shutil.which("g++")
    if compiler is None or platform.system() != "Linux":
        pytest.skip("the driver's stand-in is built by g++ on Linux")
    if importlib.util.find_spec("cuda") is None:
        pytest.skip("cuda-bindings is not installed")
    made = folder / "libcuda.so.1"
    flags = ["-O1", "-fPIC", "-shared", "-DSIGCAM_FIBERS", f'-DSIGCAM_SOURCE="{SOURCE}"']
    done = subprocess.run(
        [compiler, *FLAGS, *flags, "-Wl,-soname,libcuda.so.1", str(HERE / "fake_driver.cpp"),
         "-o", str(made), "-ldl", "-lpthread"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


def environment(folder: Path, **more: str) -> dict[str, str]:
    """That of a process whose CUDA driver is the one in `folder`."""
    paths = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths)),
        "SIGCAM_CACHE_DIR": str(folder / "cache"),
        **more,
    }
    env.pop("SIGCAM_KERNELS", None)
    return env


def run_cases(cases: str | Path, folder: Path, **more: str) -> None:
    """Runs a file of tests in a process of its own whose driver is the one in `folder`."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)],
        env=environment(folder, **more), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def calls() -> list[str]:
    """What was called since the last time, in a process that has the fake driver."""
    library = ctypes.CDLL("libcuda.so.1")
    text = ctypes.create_string_buffer(1 << 20)
    assert library.fake_calls(text, len(text)) < len(text)
    return text.value.decode().split()


def live() -> int:
    """Allocations and handles that weren't given back; all streams are run to their ends."""
    return int(ctypes.CDLL("libcuda.so.1").fake_live())


def owners() -> int:
    """How often device 0's primary context is retained."""
    return int(ctypes.CDLL("libcuda.so.1").fake_owners())
