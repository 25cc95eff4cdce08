"""The servers that load is put on: how each is installed, started, asked and ended."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOST = "127.0.0.1"
START = 180.0
"""Seconds that a server may take until it is ready."""


@dataclass(frozen=True)
class Server:
    """A server.

    Attributes:
        title: as tables name it.
        module: the program that runs it; None for `sigcam serve`.
        packages: what its environment has beside sigcam; none runs in this one.
        ready: path that answers 200 when the model is loaded.
        path: where requests go.
        form: what a request holds: "protocol" for the Open Inference Protocol with binary data,
            "base64" for the same as JSON, "json" for an object with the image as base64, "file" for
            the image's bytes.
        outputs: which outputs are asked for by the protocol.
        options: of `sigcam serve`.
    """

    title: str
    module: str | None
    packages: tuple[str, ...]
    ready: str
    path: str
    form: str = "file"
    outputs: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_SIGCAM = Server(
    "sigcam serve", None, (), "/v2/health/ready", "/v2/models/net/infer", "protocol",
    ("boxes", "heatmap_png"),
)  # fmt: skip
_BATCHES = ("--parallel-runs", "1", "--batch-size", "8")

SERVERS: dict[str, Server] = {
    "sigcam": _SIGCAM,
    "sigcam-batches": replace(
        _SIGCAM, title=f"sigcam serve {' '.join(_BATCHES)}", options=_BATCHES
    ),
    "fastapi": Server(
        "plain FastAPI handler", "fastapi_app", ("fastapi", "uvicorn"), "/ready", "/explain"
    ),
    "litserve": Server("LitServe", "litserve_app", ("litserve",), "/ready", "/explain", "json"),
    "kserve": Server(
        "KServe's server", "kserve_app", ("kserve",), "/v2/health/ready", "/v2/models/net/infer",
        "base64", ("answer",),
    ),
    "ray": Server("Ray Serve", "ray_app", ("ray[serve]",), "/", "/"),
}  # fmt: skip


def environment(name: str, folder: Path) -> Path:
    """Makes a server's environment if there is none yet; returns its Python.

    Args:
        name: key of `SERVERS`.
        folder: of the environments.
    """
    server = SERVERS[name]
    if not server.packages:
        return Path(sys.executable)
    python = folder / name / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", *server.packages, f"{ROOT}[cpu]"]
        subprocess.run(pip, check=True)
    return python


def request_of(name: str, image: bytes) -> bytes:
    """Returns the HTTP request, whole, that asks a server for an image's boxes and heatmap."""
    server = SERVERS[name]
    fields = [f"POST {server.path} HTTP/1.1", f"Host: {HOST}"]
    text = base64.b64encode(image).decode()
    if server.form == "file":
        fields.append("Content-Type: image/jpeg")
        body = image
    elif server.form == "json":
        fields.append("Content-Type: application/json")
        body = json.dumps({"image": text}).encode()
    else:
        tensor = len(image).to_bytes(4, "little") + image
        by_binary = server.form == "protocol"
        data = {"parameters": {"binary_data_size": len(tensor)}} if by_binary else {"data": [text]}
        inputs = [{"name": "encoded_image", "shape": [1], "datatype": "BYTES", **data}]
        binary = {"binary_data": by_binary}
        outputs = [{"name": one, "parameters": binary} for one in server.outputs]
        body = json.dumps({"inputs": inputs, "outputs": outputs}).encode()
        if by_binary:
            fields.append(f"Inference-Header-Content-Length: {len(body)}")
            body += tensor
        fields.append(f"Content-Type: application/{'octet-stream' if by_binary else 'json'}")
    fields.append(f"Content-Length: {len(body)}")
    return "\r\n".join(fields).encode() + b"\r\n\r\n" + body


@dataclass
class Running:
    """A server that was started.

    Attributes:
        process: the first of its processes, which leads a group of its own.
        port: on which it listens.
    """

    process: subprocess.Popen[bytes]
    port: int

    @property
    def address(self) -> tuple[str, int]:
        """Returns host and port."""
        return HOST, self.port

    def processes(self) -> list[int]:
        """Lists the ids of its processes, the first one's own first."""
        found = [self.process.pid]
        for one in found:
            for task in Path(f"/proc/{one}/task").glob("*/children"):
                with suppress(OSError):
                    found += [int(word) for word in task.read_text().split()]
        return found

    def memory(self) -> int:
        """Returns the resident bytes of all its processes, what they share counted once each."""
        return sum(_resident(one) for one in self.processes())


@contextmanager
def running(
    name: str, model: Path, environments: Path, batch: int, *options: str
) -> Iterator[Running]:
    """Starts a server, waits until it is ready, and ends it.

    Args:
        name: key of `SERVERS`.
        model: the artifact.
        environments: folder of the other servers' environments.
        batch: most images in one run, of the other servers.
        options: further ones of `sigcam serve`.
    """
    server, port = SERVERS[name], free_port()
    python = environment(name, environments)
    if server.module is None:
        command = [str(python), "-m", "sigcam", "serve", f"net={model}", "--port", str(port)]
        command += ["--backend", "ort", *server.options, *options]
    else:
        module = f"benchmarks.serving.apps.{server.module}"
        command = [str(python), "-m", module, str(model), str(port), str(batch)]
    path = f"{python.parent}:{os.environ['PATH']}"
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": path, "RAY_AUTH_MODE": "disabled"}
    log = ROOT / "out" / f"serving-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environ, stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        _wait(process, f"http://{HOST}:{port}{server.ready}", log)
        yield Running(process, port)
    finally:
        _end(process)


def free_port() -> int:
    """Returns a port that nobody listens on just now."""
    with socket.create_server((HOST, 0)) as one:
        return int(one.getsockname()[1])


def is_ready(url: str) -> bool:
    """Says whether an address answers with 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + START
    while not is_ready(url):
        if process.poll() is not None or time.monotonic() > end:
            tail = log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{url} isn't ready; {log} ends with:\n{tail}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server and all of its processes, which are a group of their own."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _resident(process: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
