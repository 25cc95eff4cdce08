"""The real onnxruntime-gpu, asked for what this machine may not have.

It can't be installed beside onnxruntime, so `make test` puts it into a folder of its own,
which $SIGCAM_TEST_ORT_GPU names, and a process of its own imports it from there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sigcam.runtime.backends.base import BackendOptions

FOLDER = os.environ.get("SIGCAM_TEST_ORT_GPU", "")

_ASK = """
import sys
sys.path.insert(0, sys.argv[1])
import onnxruntime as ort
from sigcam import load
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.core.model_file import ModelFile
from sigcam.core.errors import BackendUnavailableError
from pathlib import Path

path, name = Path(sys.argv[2]), sys.argv[3]
assert ort.__file__.startswith(sys.argv[1]), ort.__file__
assert backend_class(name).provider in ort.get_available_providers()

class NoDriver:
    "What opens a stream, where the driver isn't asked."
    device, ordinal, handle = "cuda", 0, 0
    def load_kernels(self): pass
    def close(self): pass

try:
    load(path, name).close()
    print("opened")
except BackendUnavailableError as exc:
    print("refused", " ".join(str(exc).split()))
    # The provider's own reason, behind the driver.
    try:
        backend_class(name)._open_on(NoDriver(), ort, ModelFile(path), BackendOptions())
        print("opened")
    except BackendUnavailableError as exc:
        print("refused", " ".join(str(exc).split()))
# What isn't asked for by name still runs.
with load(path, "ort") as session:
    print(session.backend_name)
"""


@pytest.mark.skipif(not FOLDER, reason="$SIGCAM_TEST_ORT_GPU names no folder of onnxruntime-gpu")
def test_the_options_that_are_set_are_the_providers_own():
    """Names that it doesn't know would only be seen on a GPU."""
    from sigcam.runtime.backends.onnxruntime.cuda import cuda_provider
    from sigcam.runtime.backends.onnxruntime.libraries import needed_tensorrt
    from sigcam.runtime.backends.onnxruntime.tensorrt import Largest, profile

    capi = Path(FOLDER).resolve() / "onnxruntime" / "capi"
    [cuda] = capi.glob("*onnxruntime_providers_cuda.*")
    [tensorrt] = capi.glob("*onnxruntime_providers_tensorrt.*")
    _, settings = cuda_provider(BackendOptions(), 0)
    known = cuda.read_bytes()
    for name in (*settings, "HEURISTIC", "EXHAUSTIVE", "DEFAULT"):
        assert name.encode() in known, name
    known = tensorrt.read_bytes() + b"".join(one.read_bytes() for one in capi.glob("*pybind11*"))
    for name in profile({"image": Largest((8,), (3, 8, 8))}):
        assert name.encode() in known, name
    # The extra's bounds are for this version; another one is another extra.
    assert set(needed_tensorrt(tensorrt).values()) == {10}


@pytest.mark.skipif(not FOLDER, reason="$SIGCAM_TEST_ORT_GPU names no folder of onnxruntime-gpu")
@pytest.mark.parametrize(("name", "provider"), [("ort-cuda", "CUDA"), ("ort-tensorrt", "Tensorrt")])
def test_asking_for_a_gpu_gives_one_or_an_error(make_artifact, name, provider):
    path = make_artifact(profile="split")
    command = [sys.executable, "-c", _ASK, str(Path(FOLDER).resolve()), str(path), name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *said, last = done.stdout.strip().splitlines()
    assert last == "ort"
    if said == ["opened"]:
        return  # there is a GPU, and all that it needs
    first, second = said
    assert first.startswith(f"refused the backend {name!r} can't run here: ")
    assert "CUDAExecutionProvider" in first
    assert "the backend 'ort' runs the model on the CPU" in first
    # Never the CPU in its place, and the library that is missing by its name.
    assert second.startswith("refused")
    assert f"{provider}ExecutionProvider" in second
    assert ".so" in second
