"""Valid requests to `sigcam serve`, and damage to them: fields, bodies, lengths, paths, headers."""

from __future__ import annotations

import base64
import gzip
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import cv2
import numpy as np

from tests.robustness.mutators import mutate_bytes
from tests.robustness.structured import mutate_json, strange_value

LENGTH = "Inference-Header-Content-Length"
SIZE = 56
MODELS = ("tiny", "top1")
OUTPUTS = (
    "logits", "class_ids_out", "evidence_logits", "cams", "probabilities", "labels", "evidence",
    "heatmap", "heatmap_uint8", "heatmap_png", "overlay_png", "overlay_jpeg", "boxes",
    "explanations",
)  # fmt: skip


@cache
def bomb() -> bytes:
    """Returns a gzip file of 200 kB that is 200 MB long."""
    return gzip.compress(b" " * 200_000_000)


@dataclass(frozen=True)
class Sent:
    """A request, and how its bytes go out.

    Attributes:
        method, path, headers: as HTTP has them; Content-Length is added where it isn't named.
        head: the JSON; None where there is none.
        rest: the bytes behind it.
        pieces: how many pieces the body is sent in, with pauses between them.
        keep: share of the request's bytes that is sent before the connection is closed.
        chunked: whether the body goes without a length.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    head: bytes | None = None
    rest: bytes = b""
    pieces: int = 1
    keep: float = 1.0
    chunked: bool = False

    @property
    def body(self) -> bytes:
        """Returns the body."""
        return (self.head or b"") + self.rest

    def encoded(self) -> bytes:
        """Returns the bytes that go out."""
        body = self.body
        fields = list(self.headers)
        given = {name.lower() for name, _ in fields}
        if "host" not in given:
            fields.append(("Host", "localhost"))
        if self.chunked:
            fields.append(("Transfer-Encoding", "chunked"))
            size = max(1, len(body) // 3)
            parts = [body[at : at + size] for at in range(0, len(body), size)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in parts) + b"0\r\n\r\n"
        elif "content-length" not in given and (body or self.method == "POST"):
            fields.append(("Content-Length", str(len(body))))
        if self.head is not None and self.rest and LENGTH.lower() not in given:
            fields.append((LENGTH, str(len(self.head))))
        lines = [f"{self.method} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields)]
        text = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return text + b"\r\n\r\n" + body


@dataclass
class Answer:
    """What came back: a status of 0 means that the connection was closed without an answer."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def exchange(port: int, request: Sent, seconds: float = 20.0) -> Answer:
    """Sends a request over a connection of its own and reads the answer.

    Raises:
        TimeoutError: there is none after so many seconds.
    """
    data = request.encoded()
    data = data[: max(1, round(len(data) * request.keep))]
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with suppress(ConnectionError):  # refused before all of it was sent
            size = -(-len(data) // request.pieces)
            for at in range(0, len(data), size):
                connection.sendall(data[at : at + size])
                if request.pieces > 1:
                    time.sleep(0.01)
            if request.keep < 1:
                connection.shutdown(socket.SHUT_WR)
        return _read(connection, has_body=request.method != "HEAD")


def _read(connection: socket.socket, data: bytes = b"", *, has_body: bool) -> Answer:
    with suppress(ConnectionError):
        while b"\r\n\r\n" not in data:
            part = connection.recv(1 << 16)
            if not part:
                return Answer()
            data += part
        head, _, body = data.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        status = int(lines[0].split()[1])
        if 100 <= status < 200:  # what is meant for the client's way of sending
            return _read(connection, body, has_body=has_body)
        length = int(headers.get("content-length", 0)) if has_body else 0
        while len(body) < length:
            part = connection.recv(1 << 16)
            if not part:
                break
            body += part
        return Answer(status, headers, body[:length])
    return Answer()


class Requests:
    """Makes valid requests of every kind."""

    def __init__(self) -> None:
        noise = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
        self.files = [cv2.imencode(kind, noise)[1].tobytes() for kind in (".png", ".jpg", ".webp")]
        self.raw = noise[:SIZE, :SIZE].tobytes()

    def valid(self, rng: random.Random) -> Sent:
        """Returns a request that is answered with 200."""
        kinds = (self.tensors_as_json, self.tensors_as_bytes, self.encoded_as_bytes,
                 self.encoded_as_json, self.told)  # fmt: skip
        return rng.choice(kinds)(rng)

    def tensors_as_json(self, rng: random.Random) -> Sent:
        model = rng.choice(MODELS)
        return self._infer(model, self._tensors(model, None, rng), rng)

    def tensors_as_bytes(self, rng: random.Random) -> Sent:
        model = rng.choice(MODELS)
        ids = struct.pack("<q", -1) if model == "tiny" else b""
        return self._infer(model, self._tensors(model, True, rng), rng, self.raw + ids)

    def encoded_as_bytes(self, rng: random.Random) -> Sent:
        files = [rng.choice(self.files) for _ in range(rng.choice((1, 1, 3)))]
        data = b"".join(struct.pack("<I", len(one)) + one for one in files)
        tensor = self._encoded(len(files), parameters={"binary_data_size": len(data)})
        return self._infer(rng.choice(MODELS), [tensor], rng, data)

    def encoded_as_json(self, rng: random.Random) -> Sent:
        text = base64.b64encode(rng.choice(self.files)).decode()
        tensor = self._encoded(1, parameters={"content_type": "base64"}, data=[text])
        return self._infer(rng.choice(MODELS), [tensor], rng)

    def told(self, rng: random.Random) -> Sent:
        """Asks for what a server tells, or changes which models it has."""
        model = rng.choice(MODELS)
        gets = ("/v2", "/v2/health/live", "/v2/health/ready", f"/v2/models/{model}",
                f"/v2/models/{model}/ready", f"/v2/models/{model}/versions/1", "/v2/models/stats",
                f"/v2/models/{model}/stats", f"/v2/models/{model}/config")  # fmt: skip
        if rng.random() < 0.7:
            return Sent("GET", rng.choice(gets))
        head = json.dumps({"ready": rng.random() < 0.5}).encode()
        return Sent("POST", "/v2/repository/index", head=head)

    def _tensors(self, model: str, by_bytes: bool | None, rng: random.Random) -> list[Any]:
        shape = [1, SIZE, SIZE, 3]
        image: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": shape}
        ids: dict[str, Any] = {"name": "class_ids", "datatype": "INT64", "shape": [1, 1]}
        if by_bytes:
            image["parameters"] = {"binary_data_size": len(self.raw)}
            ids["parameters"] = {"binary_data_size": 8}
        else:
            image["data"] = [rng.randrange(256)] * len(self.raw)
            ids["data"] = [-1]
        return [image, ids] if model == "tiny" else [image]

    def _encoded(self, count: int, **more: Any) -> dict[str, Any]:
        return {"name": "encoded_image", "datatype": "BYTES", "shape": [count], **more}

    def _infer(self, model: str, inputs: list[Any], rng: random.Random, rest: bytes = b"") -> Sent:
        wanted = rng.sample(OUTPUTS, rng.randrange(1, 4))
        outputs = [{"name": one, "parameters": {"binary_data": True}} for one in wanted]
        message: dict[str, Any] = {"id": "7", "inputs": inputs, "outputs": outputs}
        if rng.random() < 0.6:
            message["parameters"] = {
                "threshold": rng.choice((0.2, 0.9)), "timeout": 10_000_000, "top_k": 1,
            }  # fmt: skip
        versions = ("", "/versions/1")
        path = f"/v2/models/{model}{rng.choice(versions)}/infer"
        return Sent("POST", path, head=json.dumps(message).encode(), rest=rest)


def damaged(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    """Changes a request in one way.

    Returns:
        The request, and what was done.
    """
    able: list[Callable[[Sent, random.Random], tuple[Sent, str]]] = [_path, _headers, _delivery]
    if request.head is not None:
        able += [_fields] * 6 + [_head_bytes, _big]
    if request.rest:
        able += [_rest] * 3 + [_lengths] * 2
    return rng.choice(able)(request, rng)


def _fields(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    assert request.head is not None
    text, done = mutate_json(request.head.decode(), rng)
    return replace(request, head=text.encode("utf-8", "surrogatepass")), f"field: {done}"


def _head_bytes(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    assert request.head is not None
    made, done = mutate_bytes(request.head, rng, request.rest or request.head)
    return replace(request, head=made), f"JSON: {done}"


def _rest(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    made, done = mutate_bytes(request.rest, rng, request.rest)
    keeps = rng.random() < 0.5 and len(made) != len(request.rest)
    if keeps:  # so that the length of what is there is right, and the image is what is wrong
        made = made[: len(request.rest)].ljust(len(request.rest), b"\0")
    return replace(request, rest=made), f"binary data: {done}{', its length kept' * keeps}"


def _lengths(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    right = len(request.head or b"")
    wrong = rng.choice(
        ("0", "-1", str(right - 1), str(right + 1), str(10**6), "9" * 30, "", "abc", "1e3", "٣",
         f"{right} ", f"+{right}", f"0x{right:x}")
    )  # fmt: skip
    return replace(request, headers=((LENGTH, wrong), *request.headers)), f"{LENGTH}: {wrong!r}"


def _big(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    """Asks for very much: classes, images, elements."""
    message = json.loads(request.head or b"{}")
    if "inputs" not in message:
        return request, "nothing"
    kind = rng.choice(("classes", "class_ids", "images", "outputs", "parameters", "top_k"))
    parameters = message.setdefault("parameters", {})
    if kind == "classes":
        parameters["classes"] = json.dumps(list(range(100_000)))
    elif kind == "class_ids":
        message["inputs"].append({"name": "class_ids", "datatype": "INT64",
                                  "shape": [1, 100_000], "data": [0] * 100_000})  # fmt: skip
    elif kind == "images":
        message["inputs"][0]["shape"] = [100_000, *message["inputs"][0]["shape"][1:]]
    elif kind == "outputs":
        message["outputs"] = [{"name": f"output {one}"} for one in range(20_000)]
    elif kind == "parameters":
        parameters |= {f"p{one}": strange_value(rng) for one in range(2_000)}
    else:
        parameters["top_k"] = rng.choice((0, -1, 5, 10**5, 10**30, 1.5, "1"))
    return replace(request, head=json.dumps(message).encode()), f"much: {kind}"


def _path(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    parts = ("..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "a%2Fb", "%00", "%", "%zz", "tiny%0d%0aX:1",
             "é", "\udcff", "x" * 5000, "", ".", "~", "versions", "1", "-1", "99999999999999999999",
             "tiny;a=b", "tiny?x=1", "*", "\\..\\", "%252e")  # fmt: skip
    pieces = request.path.split("/")
    at = rng.randrange(1, len(pieces))
    if rng.random() < 0.3:
        pieces.insert(at, rng.choice(parts))
    else:
        pieces[at] = rng.choice(parts)
    path = "/".join(pieces).replace(" ", "%20") or "/"
    return replace(request, path=path), f"path: {path[:80]!r}"


def _headers(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    made = rng.choice(
        (
            (("X-Big", "a" * 100_000),),
            tuple((f"X-{one}", "a" * 50) for one in range(3_000)),
            (("Content-Encoding", "gzip"),),
            (("Content-Encoding", "br, gzip"),),
            (("Content-Type", "\x01"),),
            (("Transfer-Encoding", "chunked"),),
            (("Transfer-Encoding", "gzip"),),
            (("Expect", "100-continue"),),
            (("Host", ""),),
            (("Origin", "https://elsewhere.example"),),
            (("Content-Length", "-5"),),
            (("Content-Length", "9" * 25),),
            (("Content-Length", "5"), ("Content-Length", "6")),
            (("Bad Name", "x"),),
            (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "x")),
        )
    )
    return replace(request, headers=(*made, *request.headers)), f"header: {made[0][0]}"


def _delivery(request: Sent, rng: random.Random) -> tuple[Sent, str]:
    """Sends it another way: cut, of another length, in pieces, compressed, by another method."""
    kind = rng.choice(
        ("cut", "longer", "shorter", "pieces", "chunked", "method", "gzip", "cut gzip", "bomb")
    )
    size = len(request.body)
    if kind == "cut":
        request = replace(request, keep=rng.random())
    elif kind == "longer":  # and what is missing never comes
        more = (("Content-Length", str(size + rng.choice((1, 1000)))),)
        request = replace(request, headers=(*more, *request.headers), keep=0.9999999)
    elif kind == "shorter" and size:
        less = (("Content-Length", str(rng.randrange(size))),)
        request = replace(request, headers=(*less, *request.headers))
    elif kind in ("gzip", "cut gzip", "bomb") and size:
        request = _compressed(request, kind, rng)
    elif kind == "pieces":
        request = replace(request, pieces=rng.choice((2, 5, 20)))
    elif kind == "chunked":
        request = replace(request, chunked=True, pieces=rng.choice((1, 3)))
    elif kind == "method":
        methods = (
            "PUT",
            "DELETE",
            "OPTIONS",
            "HEAD",
            "TRACE",
            "PATCH",
            "get",
            "",
            "P\tOST",
            "X" * 99,
        )
        request = replace(request, method=rng.choice(methods))
    return request, f"delivery: {kind}"


def _compressed(request: Sent, kind: str, rng: random.Random) -> Sent:
    """Compresses a body; a bomb is one of 200 MB that comes as 200 kB."""
    length = () if request.head is None else ((LENGTH, str(len(request.head))),)
    body = bomb() if kind == "bomb" else gzip.compress(request.body)
    if kind == "cut gzip":
        body = body[: rng.randrange(len(body))]
    headers = (("Content-Encoding", "gzip"), *length, *request.headers)
    return replace(request, headers=headers, head=None, rest=body)
