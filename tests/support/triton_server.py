"""Triton itself, out of the package nvidia-pytriton, which ships its program.

The package has the Python backend and no other. SIGCAM_TEST_TRITON names the Python of an
environment with it (`make triton-env`): its NumPy is below 2, as this Triton's Python backend knows
no later one.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

TRITON = os.environ.get("SIGCAM_TEST_TRITON")
REASON = "SIGCAM_TEST_TRITON names no Python with nvidia-pytriton; `make triton` makes one"

_STAND_IN = '''"""Runs a graph with ONNX Runtime: what Triton's own backend of that name does."""

import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        self.session = onnxruntime.InferenceSession(os.path.join(folder, "model.onnx"))
        self.inputs = [one.name for one in self.session.get_inputs()]

    def execute(self, requests):
        return [self.answer(one) for one in requests]

    def answer(self, request):
        wanted = list(request.requested_output_names())
        feeds = {
            name: triton.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs
        }
        try:
            found = self.session.run(wanted, feeds)
        except Exception as exc:
            return triton.InferenceResponse(error=triton.TritonError(str(exc)))
        return triton.InferenceResponse(
            [triton.Tensor(name, np.ascontiguousarray(v)) for name, v in zip(wanted, found)]
        )
'''


@dataclass
class Triton:
    """A running Triton.

    Attributes:
        http, grpc: its ports.
        log: the file that it writes to.
    """

    http: int
    grpc: int
    log: Path


def without_its_backend(folder: Path, name: str) -> None:
    """Lets a stand-in run a model of a repository, for want of the backend that it names."""
    config = folder / name / "config.pbtxt"
    text = config.read_text()
    assert 'backend: "onnxruntime"' in text
    config.write_text(text.replace('backend: "onnxruntime"', 'backend: "python"'))
    (folder / name / "1" / "model.py").write_text(_STAND_IN)


@contextmanager
def running_triton(repository: Path, scratch: Path) -> Iterator[Triton]:
    """Starts Triton on a repository, waits until all of its models are ready, and ends it."""
    assert TRITON is not None
    python = Path(TRITON)
    (package,) = python.parent.parent.glob("lib/python*/site-packages")
    server = package / "pytriton" / "tritonserver"
    backends = scratch / "backends"
    shutil.copytree(server / "backends" / "python", backends / "python")
    version = package.parent.name.removeprefix("python")
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    shutil.copy(stub, backends / "python")
    found = Triton(_free_port(), _free_port(), scratch / "triton.log")
    # The backend's interpreter is isolated: it takes its packages from beside the python on PATH.
    environ = {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": str(package / "nvidia_pytriton.libs"),
    }
    with found.log.open("wb") as log:
        process = subprocess.Popen(
            [server / "bin" / "tritonserver", "--model-repository", repository,
             "--backend-directory", backends, "--http-port", str(found.http),
             "--grpc-port", str(found.grpc), "--allow-metrics", "false",
             "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1",
             "--exit-timeout-secs", "5"],
            env=environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait(process, f"http://127.0.0.1:{found.http}/v2/health/ready", found.log)
        yield found
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + 180
    while True:
        with suppress(OSError), urllib.request.urlopen(address, timeout=5) as answer:
            if answer.status == 200:
                return
        text = log.read_text(errors="replace")[-4000:]
        assert process.poll() is None and time.monotonic() < end, text
        time.sleep(0.3)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])
