"""Clients that misbehave on the connection itself; a server in a process of its own lives on."""

from __future__ import annotations

import json
import socket
import time
from contextlib import ExitStack

import pytest

from tests.robustness.requests import Requests, Sent, exchange
from tests.support.live_server import HOST, live_server

pytestmark = pytest.mark.slow

IDLE = 1000


@pytest.fixture(scope="module")
def requests():
    return Requests()


@pytest.fixture(scope="module")
def server(tmp_path_factory, make_artifact):
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny.onnx").write_bytes(make_artifact().read_bytes())
    (folder.parent / "secret.onnx").write_bytes(make_artifact().read_bytes())
    with live_server(str(folder), "--body-timeout", "2") as found:
        yield found


@pytest.fixture
def good(requests):
    """A valid request: encoded images, binary data."""
    import random

    made = requests.encoded_as_bytes(random.Random(1))
    return Sent("POST", "/v2/models/tiny/infer", (), made.head, made.rest)


def fields(**more):
    return tuple((name.replace("_", "-"), value) for name, value in more.items())


def test_a_thousand_idle_connections(server, good) -> None:
    with ExitStack() as stack:
        for number in range(IDLE):
            one = stack.enter_context(socket.create_connection((HOST, server.port), 30))
            if number % 2:  # half of them begin a request and leave it at that
                one.sendall(b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\n")
        begin = time.monotonic()
        assert exchange(server.port, good).status == 200
        assert time.monotonic() - begin < 10
    assert exchange(server.port, good).status == 200


def test_a_body_that_never_ends_is_given_up(server, good) -> None:
    with socket.create_connection((HOST, server.port), 30) as slow:
        slow.sendall(
            b"POST /v2/models/tiny/infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        begin = time.monotonic()
        answer = b""
        slow.settimeout(0.1)
        while b"\r\n\r\n" not in answer and time.monotonic() - begin < 20:
            try:
                slow.sendall(b"1\r\n{\r\n")
                answer += slow.recv(1 << 16)
            except TimeoutError:  # noqa: PERF203
                continue
            except ConnectionError:
                break
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert 1 < time.monotonic() - begin < 10
    assert exchange(server.port, good).status == 200


def test_a_body_that_is_shorter_than_it_says(server, good) -> None:
    long = fields(Content_Length=str(len(good.body) + 1000),
                  Inference_Header_Content_Length=str(len(good.head)))  # fmt: skip
    answer = exchange(server.port, Sent("POST", good.path, long, good.head, good.rest))
    assert answer.status == 408
    assert "didn't arrive within 2 s" in json.loads(answer.body)["error"]


@pytest.mark.parametrize(
    "headers",
    [(("X-Big", "a" * 200_000),), tuple((f"X-{one}", "a" * 100) for one in range(5000))],
)
def test_headers_that_are_too_large(server, good, headers) -> None:
    answer = exchange(server.port, Sent("POST", good.path, headers, good.head, good.rest))
    assert answer.status in (0, 400, 431)
    assert exchange(server.port, good).status == 200


@pytest.mark.parametrize(
    "name",
    ["..", "../secret", "%2e%2e%2fsecret", "..%2Fsecret", "....//secret", "%2fetc%2fpasswd",
     "tiny%00", "tiny%2f..%2f..%2fsecret", "..\\secret", "%5c..%5csecret", "/etc/passwd",
     "tiny.onnx", "%252e%252e%252fsecret"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v2/models/{}"), ("POST", "/v2/models/{}/infer"),
     ("POST", "/v2/repository/models/{}/load"), ("GET", "/v2/models/tiny/versions/{}")],
)  # fmt: skip
def test_names_are_never_paths(server, good, name, method, path) -> None:
    head = good.head if path.endswith("infer") else None
    answer = exchange(server.port, Sent(method, path.format(name), (), head))
    assert answer.status in (400, 404)
    index = exchange(server.port, Sent("POST", "/v2/repository/index"))
    assert [one["name"] for one in json.loads(index.body)] == ["tiny"]


def test_memory_stays_flat(server, requests) -> None:
    """Large bodies that are refused, images that are cut, answers that nobody reads."""
    import random

    def round_of(number: int) -> None:
        rng = random.Random(number)
        made = requests.encoded_as_bytes(rng)
        for keep in (0.3, 0.7, 1.0):
            exchange(server.port, Sent("POST", "/v2/models/tiny/infer", (), made.head, made.rest,
                                       keep=keep))  # fmt: skip
        large = b'{"inputs": [' + b'{"name": "image"},' * 50_000 + b"{}]}"
        assert exchange(server.port, Sent("POST", "/v2/models/tiny/infer", (), large)).status == 400
        with socket.create_connection((HOST, server.port), 30) as one:
            one.sendall(Sent("POST", "/v2/models/tiny/infer", (), made.head, made.rest).encoded())

    for number in range(30):
        round_of(number)
    before = server.memory()
    for number in range(30, 150):
        round_of(number)
    grown = (server.memory() - before) / 2**20
    assert grown < 24, f"{grown:.1f} MiB more after 120 rounds"
