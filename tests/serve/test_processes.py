"""The command in a process of its own: it drains, refuses what doesn't work, and keeps workers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.serve.requests import binary, body, elements, encoded

pytestmark = pytest.mark.slow  # a process takes two seconds to begin, and one to end


class Process:
    """`sigcam serve` on a free port."""

    def __init__(self, *arguments, env=None):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sigcam", "serve", *map(str, arguments), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.said = []
        self.port = None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.said.append(line)

    def wait_for(self, word, seconds=60):
        end = time.monotonic() + seconds
        while not any(word in line for line in self.said):
            assert self.process.poll() is None and time.monotonic() < end, self.said
            time.sleep(0.02)
        found = re.search(r"://127\.0\.0\.1:(\d+)", "".join(self.said))
        self.port = int(found[1])
        return self

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, method, path, content=None, headers=None, connection=None):
        own = connection is None
        connection = connection or self.connect()
        try:
            connection.request(method, path, content, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            if own:
                connection.close()

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(10)
        self.process.stderr.close()


@pytest.fixture
def started():
    made = []

    def start(*arguments, **more):
        made.append(Process(*arguments, **more))
        return made[-1]

    yield start
    for one in made:
        one.end()


# Many passes of a tiny network take about a second, which is time enough to look around.
SLOW = {"method": "rise", "masks": 4000}
SLOW_OPTIONS = ("--max-passes", "100000")


def test_sigterm_drains(request, started, artifact, png):
    server = started(f"tiny={artifact}", *SLOW_OPTIONS).wait_for("ready on")
    idle = server.connect()
    request.addfinalizer(idle.close)
    assert server.ask("GET", "/v2/health/ready", connection=idle)[0] == 200
    answers = []

    def ask():
        content = json.dumps(body(encoded(png), outputs=["labels"], parameters=SLOW))
        answers.append(server.ask("POST", "/v2/models/tiny/infer", content))

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    waits = re.compile(rb"nv_inference_pending_request_count{[^}]*} [1-9]")
    end = time.monotonic() + 20
    while not waits.search(server.ask("GET", "/metrics")[1]) and time.monotonic() < end:
        time.sleep(0.02)
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    status, content = server.ask("GET", "/v2/health/ready")
    assert (status, json.loads(content)) == (400, {"live": True, "ready": False})
    quick = json.dumps(body(encoded(png)))
    assert server.ask("POST", "/v2/models/tiny/infer", quick)[0] == 503
    for one in asking:
        one.join()
    assert [status for status, _ in answers] == [200, 200]
    assert server.process.wait(20) == 0
    idle.close()
    with pytest.raises(OSError):
        server.ask("GET", "/v2")


def test_drain_delay_goes_on_as_before(started, artifact, png):
    server = started(f"tiny={artifact}", "--drain-delay", "1").wait_for("ready on")
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert server.ask("GET", "/v2/health/ready")[0] == 400
    quick = json.dumps(body(encoded(png)))
    assert server.ask("POST", "/v2/models/tiny/infer", quick)[0] == 200
    assert server.process.wait(20) == 0


def test_heads_that_are_too_long_and_bodies_that_do_not_come(started, artifact, png):
    server = started(f"tiny={artifact}", "--body-timeout", "0.5").wait_for("ready on")
    huge = "GET /v2 HTTP/1.1\r\nHost: x\r\n" + "".join(
        f"X-{i}: {'a' * 1000}\r\n" for i in range(200)
    )
    assert _raw(server.port, huge.encode()).startswith(b"HTTP/1.1 400")
    assert _raw(server.port, b"\x16\x03\x01nonsense\r\n\r\n").startswith(b"HTTP/1.1 400")
    late = b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    assert _raw(server.port, late).startswith(b"HTTP/1.1 408")
    chunked = (
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"1\r\n{\r\n"
    )
    assert _raw(server.port, chunked).startswith(b"HTTP/1.1 408")
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    quick = binary({"encoded_image": ("BYTES", [1], elements([png]))}, ["labels"])
    asked = server.ask("POST", "/v2/models/tiny/infer", quick["content"], quick["headers"])
    assert asked[0] == 200
    for one in connections:
        one.close()


def _raw(port, data):
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        with contextlib.suppress(OSError):  # the server may have closed by then
            connection.sendall(data)
        return connection.recv(65536)


def test_tokens(started, artifact, tmp_path):
    file = tmp_path / "token"
    file.write_text("abc-def\n")
    server = started(f"tiny={artifact}", "--token-file", file).wait_for("ready on")
    assert server.ask("GET", "/v2")[0] == 401
    assert server.ask("GET", "/v2", headers={"Authorization": "Bearer abc-def"})[0] == 200
    other = started(f"tiny={artifact}", env={"SIGCAM_SERVE_TOKEN": "xyz"}).wait_for("ready on")
    assert other.ask("GET", "/v2", headers={"Authorization": "Bearer xyz"})[0] == 200
    assert not any("abc-def" in line for line in server.said)


def test_workers_that_cannot_load_their_models(started):
    server = started("missing.onnx", "--workers", "2")
    assert server.process.wait(60) == 1
    server.end()
    assert "missing.onnx" in "".join(server.said)
    assert "Traceback" not in "".join(server.said)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system lacks SO_REUSEPORT")
def test_workers(started, artifact, tmp_path, png):
    shutil.copy(artifact, tmp_path / "tiny.onnx")
    shutil.copy(artifact, tmp_path / "other.onnx")
    server = started(tmp_path, "--workers", "2").wait_for("ready on")
    quick = binary({"encoded_image": ("BYTES", [1], elements([png]))}, ["labels"])

    def infer(connection=None):
        path = "/v2/models/tiny/infer"
        return server.ask("POST", path, quick["content"], quick["headers"], connection)[0]

    assert {infer() for _ in range(20)} == {200}
    # What is unloaded is unloaded everywhere, in a worker that comes later, too.
    assert server.ask("POST", "/v2/repository/models/other/unload")[0] == 200
    assert {server.ask("GET", "/v2/models/other")[0] for _ in range(20)} == {404}
    workers = _workers(server.process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    begin, failed = time.monotonic(), 0
    while len(set(_workers(server.process.pid)) - {workers[0]}) < 2:
        try:
            assert infer() == 200
        except OSError:  # the kernel had given the connection to the worker that was killed
            failed += 1
        assert time.monotonic() - begin < 30
    assert failed <= 2
    assert {server.ask("GET", "/v2/models/other")[0] for _ in range(20)} == {404}
    assert server.ask("POST", "/v2/repository/models/other/load")[0] == 200
    assert {server.ask("GET", "/v2/models/other")[0] for _ in range(20)} == {200}
    status, content = server.ask("POST", "/v2/repository/models/none/load")
    assert (status, b"no such model" in content) == (404, True)
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert not _workers(server.process.pid)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks into /proc")
def test_workers_end_with_their_supervisor(started, artifact):
    server = started(f"tiny={artifact}", "--workers", "2").wait_for("ready on")
    workers = _workers(server.process.pid)
    os.kill(server.process.pid, signal.SIGKILL)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{one}").exists() for one in workers):
        assert time.monotonic() < end
        time.sleep(0.1)


def _children(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    return [int(one) for one in text.split()]


def _workers(pid):
    """The children of the process that workers are forked from, which is a child of the server."""
    return [worker for child in _children(pid) for worker in _children(child)]


def test_tls(started, artifact, tmp_path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-passout", "pass:secret", "-days", "1",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    files = ("--tls-certificate", certificate, "--tls-key", key, "--tls-client-ca", certificate)
    password = {"SIGCAM_SERVE_KEY_PASSWORD": "secret"}
    server = started(f"tiny={artifact}", *files, env=password).wait_for("ready on https")
    context = ssl.create_default_context(cafile=certificate)
    context.load_cert_chain(certificate, key, "secret")

    def ask(context):
        connection = http.client.HTTPSConnection("localhost", server.port, context=context)
        with contextlib.closing(connection):
            return server.ask("GET", "/v2/health/ready", connection=connection)[0]

    assert ask(context) == 200
    with pytest.raises(OSError):  # without a certificate of the client's own
        ask(ssl.create_default_context(cafile=certificate))
