"""`sigcam serve` as a process of its own, on a free port, which ends with whoever started it."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HOST = "127.0.0.1"
TOGETHER = ("--parallel-runs", "1", "--batch-size", "8")
"""Options with which the images of a request are run together, whatever machine the tests run on:
results differ in their last bits from those of each image alone."""
_DIES_WITH_ITS_PARENT = 1  # prctl's PR_SET_PDEATHSIG


@dataclass
class LiveServer:
    """A running server.

    Attributes:
        process: the first of its processes.
        url: of HTTP.
        grpc: address and port of gRPC; empty without `--grpc-port`.
        log: the lines that it has written to standard error.
    """

    process: subprocess.Popen[str]
    url: str = ""
    grpc: str = ""
    log: list[str] = field(default_factory=list)

    @property
    def port(self) -> int:
        """Returns the port of HTTP."""
        return int(self.url.rpartition(":")[2])

    def get(self, path: str) -> bytes:
        """Returns the body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def logged(self, **wanted: object) -> list[dict[str, object]]:
        """Returns the lines of the log, as JSON, that have these values; waits for the first."""
        for _ in range(100):
            records = [json.loads(line) for line in self.log if line.startswith("{")]
            found = [one for one in records if all(one.get(k) == v for k, v in wanted.items())]
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError("".join(self.log[-20:]))

    def memory(self) -> int:
        """Returns the resident bytes of the process."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1]) * 1024


def start_server(*arguments: str, environ: dict[str, str] | None = None) -> LiveServer:
    """Starts a server and waits until it is ready.

    Args:
        arguments: models and options of `sigcam serve`.
        environ: further variables of its environment.

    Raises:
        AssertionError: it ended, or isn't ready after two minutes; with what it wrote.
    """
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "sigcam", "serve", *arguments, "--port", "0",
         "--backend", "ort"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **(environ or {})}, preexec_fn=_die_with_the_parent,
    )  # fmt: skip
    server = LiveServer(process)
    ready = threading.Event()

    def read() -> None:
        with process.stderr as lines:
            for line in lines:
                server.log.append(line)
                if found := re.search(r"for gRPC on (\S+);", line):
                    server.grpc = found[1]
                if found := re.search(r"ready on (\w+://\S+:\d+)", line):
                    server.url = found[1]
                    ready.set()
        ready.set()  # it has ended

    threading.Thread(target=read, daemon=True).start()
    if not ready.wait(120) or not server.url:
        process.kill()
        process.wait()
        raise AssertionError("".join(server.log))
    return server


@contextmanager
def live_server(*arguments: str, **more: dict[str, str]) -> Iterator[LiveServer]:
    """Starts a server for the length of a block; then it must end by itself, with exit code 0."""
    server = start_server(*arguments, **more)
    try:
        yield server
        assert server.process.poll() is None, "".join(server.log)
    finally:
        server.process.send_signal(signal.SIGTERM)
        try:
            code = server.process.wait(60)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
            raise
    assert code == 0, "".join(server.log)


def _die_with_the_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_ITS_PARENT, signal.SIGKILL)
