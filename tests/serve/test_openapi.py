"""The description is valid, and says of the routes what they are."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")
pytest.importorskip("openapi_spec_validator", reason="checks the description")

import jsonschema
import openapi_spec_validator

from sigcam.serve.http.openapi import description
from sigcam.serve.http.queries import QUERY
from tests.serve.requests import body, encoded


@pytest.fixture
def client(serve_all, artifact):
    return serve_all(f"tiny={artifact}")


def routes_of(client):
    """Method and path of every route of the application."""
    app = client.app
    while not hasattr(app, "routes"):
        app = app._app
    return {
        (method.lower(), route.path)
        for route in app.routes
        for method in route.methods
        if method != "HEAD"  # comes with every GET
    }


@pytest.mark.parametrize("has_token", [False, True])
def test_the_description_is_valid(has_token):
    openapi_spec_validator.validate(description(has_token=has_token))


def test_each_route_stands_in_it_and_the_reverse(client):
    told = client.get("/openapi.json").json()
    described = {
        (method, path)
        for path, item in told["paths"].items()
        for method in item
        if method != "parameters"
    }
    assert described == routes_of(client)


def test_requests_are_logged_by_the_path_that_is_described(client, png, monkeypatch):
    names = []
    told = lambda message, *_, **fields: names.append(fields["name"])  # noqa: E731
    monkeypatch.setattr("sigcam.serve.observe.telling.log_event", told)
    asked = {"json": body(encoded(png))}
    client.post("/v2/models/tiny/infer", **asked)
    client.post("/v2/models/tiny/versions/1/infer", **asked)
    client.get("/v2/models/tiny/versions/1")
    client.get("/v2")
    client.get("/no/such/path")
    model = "/v2/models/{name}"
    assert names == [
        f"POST {model}/infer", f"POST {model}/versions/{{version}}/infer",
        f"GET {model}/versions/{{version}}", "GET /v2", "GET",
    ]  # fmt: skip


def test_paths_need_the_token_as_it_says(serve_all, artifact):
    client = serve_all(f"tiny={artifact}", token="secret")
    assert client.get("/openapi.json").status_code == 401
    headers = {"Authorization": "Bearer secret"}
    told = client.get("/openapi.json", headers=headers).json()
    assert told["security"] == [{"token": []}]
    for path, item in told["paths"].items():
        for method in set(item) - {"parameters"}:
            is_open = item[method].get("security") == []
            answer = client.request(method, re.sub(r"{\w+}", "1", path))
            assert (answer.status_code != 401) == is_open, path


def test_answers_are_as_it_says(client, png):
    told = client.get("/openapi.json").json()

    def check(answer, method, path, status="200"):
        content = told["paths"][path][method]["responses"][status]["content"]
        media_type = answer.headers["content-type"].partition(";")[0]
        schema = {**content[media_type]["schema"], "components": told["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())

    asked = body(encoded(png))
    instances = {"instances": [encoded(png)["data"][0]]}
    instances = {"instances": [{"b64": one} for one in instances["instances"]]}
    check(client.post("/explain", files={"image": png}), "post", "/explain")
    check(client.post("/explain", files={"image": b"?"}), "post", "/explain", "4XX")
    infer, model = "/v2/models/{name}/infer", "/v2/models/{name}"
    jsonschema.Draft202012Validator(
        {**told["components"]["schemas"]["InferRequest"], "components": told["components"]}
    ).validate(asked)
    check(client.post("/v2/models/tiny/infer", json=asked), "post", infer)
    check(client.post("/v2/models/nope/infer", json=asked), "post", infer, "4XX")
    check(client.get("/v2/models/tiny"), "get", model)
    check(client.post("/v2/repository/index"), "post", "/v2/repository/index")
    check(client.get("/v1/models/tiny"), "get", "/v1/models/{name}")
    check(client.get("/v1/models"), "get", "/v1/models")
    v1 = "/v1/models/{name}:"
    check(client.post("/v1/models/tiny:predict", json=instances), "post", f"{v1}predict")
    check(client.post("/v1/models/tiny:explain", json=instances), "post", f"{v1}explain")


def test_the_words_of_explain_are_those_that_it_takes(client, png):
    told = client.get("/openapi.json").json()["paths"]["/explain"]["post"]["parameters"]
    assert [one["name"] for one in told] == list(QUERY)
    values = {
        "model": "tiny", "version": "1", "format": "json", "classes": "red", "top_k": "1",
        "rank": "1", "min_probability": "0.5", "method": "rise", "masks": "8", "cells": "3",
        "keep": "0.5", "seed": "1", "threshold": "0.5", "timeout": "9000000",
    }  # fmt: skip
    assert set(values) == set(QUERY)
    for name, value in values.items():
        form = "png" if name == "rank" else "json"
        words = {"format": form, name: value}
        if name in ("method", "masks", "cells", "keep", "seed"):
            words = {"masks": "8", **words, "method": "rise"}
        answer = client.post("/explain", params=words, files={"image": png})
        assert answer.status_code == 200, (name, answer.text)
