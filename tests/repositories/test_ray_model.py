"""Ray's deployment, with a stand-in for what Ray does: it puts requests together."""

from __future__ import annotations

import importlib
import json
import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

import sigcam
from tests.repositories.test_ray import request_of


class Batch:
    """A method that gets one request at a time, in a list, as `serve.batch` gives it."""

    def __init__(self, function):
        self.function, self.told = function, {}

    def __get__(self, instance, owner):
        async def call(request):
            return (await self.function(instance, [request]))[0]

        call.set_max_batch_size = lambda size: self.told.update(size=size)
        call.set_batch_wait_timeout_s = lambda seconds: self.told.update(seconds=seconds)
        return call


@pytest.fixture
def module(monkeypatch):
    ray = ModuleType("ray")
    ray.serve = ModuleType("ray.serve")
    ray.serve.batch = Batch
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", ray.serve)
    monkeypatch.delitem(sys.modules, "sigcam.repositories.ray_model", raising=False)
    made = importlib.import_module("sigcam.repositories.ray_model")
    yield made
    monkeypatch.delitem(sys.modules, made.__name__)


@pytest.fixture
def client(module, make_artifact):
    """A client of a replica, whose application lies at /v2/models/net."""
    artifact = make_artifact()
    model = module.Model(str(artifact), "net", 4, 500)
    assert module.Model.__dict__["_together"].told == {"size": 4, "seconds": 0.0005}

    async def app(scope, receive, send):
        from starlette.requests import Request

        answer = await model(Request({**scope, "root_path": "/v2/models/net"}, receive))
        await answer(scope, receive, send)

    made = TestClient(app)
    made.artifact = artifact
    return made


def test_paths(client) -> None:
    for path in ("/ready", "/versions/1/ready"):
        assert client.get(f"/v2/models/net{path}").status_code == 200
    for method, path in (("GET", ""), ("POST", "/ready"), ("GET", "/infer"), ("GET", "/other")):
        answer = client.request(method, f"/v2/models/net{path}")
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


def test_an_answer(client) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    file = cv2.imencode(".png", noise)[1].tobytes()
    body, headers = request_of(file, ["labels", "boxes"], top_k=2)
    answer = client.post("/v2/models/net/infer", content=body, headers=headers)
    length = int(answer.headers["Inference-Header-Content-Length"])
    names = [one["name"] for one in json.loads(answer.content[:length])["outputs"]]
    assert names == ["labels", "boxes"]
    with sigcam.load(client.artifact, "ort") as session:
        for one in session.explain(file, top_k=2):
            assert one.label.encode() in answer.content[length:]
            assert json.dumps([list(box) for box in one.boxes()]).encode() in answer.content


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b"{", {}, 400, "failed to parse the request JSON"),
        (b"{}", {"Inference-Header-Content-Length": "x"}, 400, "must be a whole number of bytes"),
        (b"x" * 34_000_000, {}, 413, "longer than the 33554432 bytes"),
        (request_of(b"no image", ["boxes"])[0], request_of(b"no image", ["boxes"])[1], 400,
         "must be a JPEG or PNG or WebP file"),
    ],
)  # fmt: skip
def test_errors(client, body, headers, status, message) -> None:
    answer = client.post("/v2/models/net/infer", content=body, headers=headers)
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_what_fails_inside_is_told_without_the_inside(client, monkeypatch) -> None:
    from sigcam.runtime.model import ExportedModel

    monkeypatch.setattr(ExportedModel, "run", lambda *_, **__: 1 / 0)
    noise = np.zeros((9, 9, 3), np.uint8)
    body, headers = request_of(cv2.imencode(".png", noise)[1].tobytes(), ["boxes"])
    answer = client.post("/v2/models/net/infer", content=body, headers=headers)
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed; its log says why"}
