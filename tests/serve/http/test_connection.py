"""Connections that ask nothing, or never finish asking, are closed; others stay."""

from __future__ import annotations

import contextlib
import socket
import time

import cv2
import numpy as np
import pytest

from sigcam.serve.http.connection import Connection
from tests.serve.listening import listening
from tests.serve.requests import INFER, binary, elements

SECONDS = 1


@pytest.fixture
def port(client):
    with listening(client.app, http=Connection, timeout_keep_alive=SECONDS) as found:
        yield found


def closed_after(connection, slowly=b""):
    """The seconds until the server closes; meanwhile `slowly` goes byte by byte."""
    begin = time.monotonic()
    connection.settimeout(0.1)
    for at in range(60):
        with contextlib.suppress(OSError):
            connection.sendall(slowly[at : at + 1])
        try:
            if connection.recv(65536) == b"":
                return time.monotonic() - begin
        except TimeoutError:
            continue
        except OSError:
            return time.monotonic() - begin
    pytest.fail("the connection stays open")


@pytest.mark.parametrize("said", [b"", b"GET /v2 HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 9])
def test_who_does_not_ask(port, said):
    with socket.create_connection(("127.0.0.1", port)) as connection:
        assert 0.8 * SECONDS < closed_after(connection, said) < 4 * SECONDS


def test_who_does_not_read_his_answer(port):
    large = cv2.imencode(".png", np.zeros((2500, 2500, 3), np.uint8))[1].tobytes()
    asked = binary(
        {"encoded_image": ("BYTES", [1], elements([large]))}, ["heatmap"], parameters={"top_k": 4}
    )
    content, length = asked["content"], asked["headers"]["Inference-Header-Content-Length"]
    head = (
        f"POST {INFER} HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {length}\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + content)
        assert connection.recv(17) == b"HTTP/1.1 200 OK\r\n"
        time.sleep(1.5 * SECONDS)
        got = 0
        with contextlib.suppress(OSError):
            while data := connection.recv(1 << 20):
                got += len(data)
        assert got < 4 * 4 * 2500 * 2500


@pytest.mark.slow
def test_who_asks_stays_for_as_long_as_he_goes_on(port):
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(4):
            connection.sendall(request[:20])
            time.sleep(0.2)
            connection.sendall(request[20:])
            answer = b""
            while not answer.endswith(b'{"live":true}'):  # head and body may come one by one
                part = connection.recv(65536)
                assert part, answer
                answer += part
            assert answer.startswith(b"HTTP/1.1 200")
            time.sleep(0.3 * SECONDS)
        assert 0.5 * SECONDS < closed_after(connection) < 4 * SECONDS


ASKED = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % INFER.encode()
FORBIDDEN = {
    "no host": b"GET /v2/health/live HTTP/1.1\r\n\r\n",
    "two hosts": ASKED + b"Host: y\r\n\r\n",
    "address without an end": b"GET /" + b"a" * 600_000,
    "headers that are too long": ASKED + b"X-A: %s\r\n" % (b"b" * 1000) * 70 + b"\r\n",
    "header without an end": ASKED + b"X-A: " + b"b" * 600_000,
    "name without an end": ASKED + b"b" * 600_000,
    "headers without an end": ASKED + b"X-A: b\r\n" * 100_000,
    "headers after the body": CHUNKED + b"0\r\n" + b"X-A: b\r\n" * 100_000,
    "words of a chunk": CHUNKED + b"5;" + b"a" * 600_000,
    "two lengths": ASKED + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "length and chunks": ASKED
    + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "space before the colon": ASKED + b"Content-Length : 3\r\n\r\nabc",
    "folded header": ASKED + b"X-A: b\r\n c\r\n\r\n",
    "line feeds alone": b"GET /v2/health/live HTTP/1.1\nHost: x\n\n",
    "other protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
}


@pytest.mark.parametrize("said", FORBIDDEN.values(), ids=FORBIDDEN)
@pytest.mark.parametrize("at_once", [False, True])
def test_what_http_forbids(port, said, at_once):
    size = len(said) if at_once else 50_000
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        with contextlib.suppress(OSError):  # it is closed meanwhile
            for at in range(0, len(said), size):
                connection.sendall(said[at : at + size])
                time.sleep(0.01)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                answer += part
    assert answer.startswith(b"HTTP/1.1 400"), answer[:200]
    assert b"200 OK" not in answer


def test_long_heads_and_bodies_in_pieces(port):
    head = ASKED + b"X-A: %s\r\n" % (b"b" * 50_000)
    body = b"c" * 3_000_000
    wanted = [
        head + b"Content-Length: 0\r\n\r\n",
        ASKED + b"Content-Length: %d\r\n\r\n" % len(body) + body,
        ASKED
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"a\r\n0123456789\r\n" * 50_000
        + b"0\r\n\r\n",
        ASKED + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        b"GET /v2/health/live HTTP/1.0\r\n\r\n",
    ]
    for step in (9_000, 1 << 20):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for said in wanted:
                for at in range(0, len(said), step):
                    connection.sendall(said[at : at + step])
                answer = b""
                while not answer.endswith(b"}"):
                    part = connection.recv(65536)
                    assert part, (said[:200], answer)
                    answer += part
                assert answer.startswith(b"HTTP/1.1 200"), (said[:200], answer)


def test_an_answer_waits_for_no_acknowledgement(client):
    found = []

    class Watched(Connection):
        def connection_made(self, transport):
            super().connection_made(transport)
            own = transport.get_extra_info("socket")
            found.append(own.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    with (
        listening(client.app, http=Watched) as port,
        socket.create_connection(("127.0.0.1", port), timeout=10) as connection,
    ):
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(1)
    assert [bool(one) for one in found] == [True]
