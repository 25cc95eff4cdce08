"""A server of its own process, as somebody starts it from the command line."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request


class Running:
    """A server that has loaded its models.

    Attributes:
        url: of HTTP.
        grpc: address and port of gRPC, or None.
        lines: what it wrote on standard error.
    """

    def __init__(self, process, grpc):
        self.process = process
        self.lines = []
        self.url, self.grpc = "", grpc
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"for gRPC on (\S+);", line)
            if found:
                self.grpc = found[1]
            found = re.search(r"^ready on (\S+)", line)
            if found:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def close(self):
        self._reader.join()
        self.process.stderr.close()

    def wait(self):
        assert self._ready.wait(120), self.lines
        assert self.url, "\n".join(self.lines)

    def get(self, path):
        """The body of an answer."""
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def logged(self, **wanted):
        """The lines of the log, as JSON, that have these values; waits for the first."""
        for _ in range(100):
            records = [json.loads(line) for line in self.lines if line.startswith("{")]
            found = [one for one in records if all(one.get(k) == v for k, v in wanted.items())]
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError("\n".join(self.lines[-20:]))


@contextlib.contextmanager
def running(*models, options=(), environment=()):
    """Starts `sigcam serve` on free ports; ends it afterwards."""
    process = subprocess.Popen(
        [
            sys.executable, "-m", "sigcam", "serve", *map(str, models), "--port", "0",
            "--log-format", "json", "--backend", "ort", "--threads", "1", *options,
        ],
        stderr=subprocess.PIPE, text=True, env={**os.environ, **dict(environment)},
    )  # fmt: skip
    found = Running(process, None)
    try:
        found.wait()
        yield found
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        found.close()
