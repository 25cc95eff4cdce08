"""The description of all routes at `/openapi.json`, as OpenAPI 3.1 has it."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.core.versions import __version__
from sigcam.serve.http.answers import HEADER_LENGTH, json_response
from sigcam.serve.http.queries import FORMATS, QUERY
from sigcam.serve.protocol.datatypes import DATATYPES
from sigcam.serve.wishes import PARAMETERS

__all__ = ["description", "openapi_route"]

Json = dict[str, Any]


def openapi_route(*, has_token: bool) -> Route:
    """Returns the route that answers with the description.

    Args:
        has_token: whether requests must bear a token.

    Example:
        >>> openapi_route(has_token=False).path
        '/openapi.json'
    """
    content = description(has_token=has_token)

    async def openapi(_: Request) -> Response:
        return json_response(content)

    return Route("/openapi.json", openapi)


def description(*, has_token: bool = False) -> Json:
    """Returns the description.

    Args:
        has_token: whether requests must bear a token.

    Example:
        >>> found = description()
        >>> found["openapi"], "post" in found["paths"]["/explain"]
        ('3.1.0', True)
    """
    made: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "sigcam serve",
            "version": __version__,
            "description": "Predictions with their evidence maps. The paths below /v2 are those of "
            "the Open Inference Protocol, those below /v1 of KServe's first protocol.",
        },
        "servers": [{"url": "/"}],
        "paths": {**_tools(), **_health(), **_infer(), **_repository(), **_v1()},
        "components": {"schemas": _schemas()},
    }
    if has_token:
        made["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        made["security"] = [{"token": []}]
        for path in _OPEN:
            made["paths"][path]["get"]["security"] = []
    return made


_OPEN = ("/", "/page/page.css", "/page/page.js", "/v2/health/live", "/v2/health/ready")


def _tools() -> Json:
    html, css, script = (
        _answer(text, {kind: {"schema": {"type": "string"}}})
        for text, kind in (
            ("The page.", "text/html"), ("Its style.", "text/css"),
            ("Its script.", "text/javascript"),
        )
    )  # fmt: skip
    metrics = _answer("Metrics.", {"text/plain": {"schema": {"type": "string"}}})
    image: Json = {"schema": {"type": "string", "format": "binary"}}
    form: Json = {"type": "object", "required": ["image"], "properties": {"image": image["schema"]}}
    body = {
        "multipart/form-data": {"schema": form, "encoding": {"image": {"contentType": "image/*"}}},
        "image/*": image,
        "application/octet-stream": image,
    }
    answers = {
        kind: image for kind in dict.fromkeys(kind for _, kind in FORMATS.values())
        if kind != "application/json"
    }  # fmt: skip
    explained = {"application/json": {"schema": _ref("Explained")}, **answers}
    return {
        "/": _get("page", "A page that explains an image that one drops on it.", html),
        "/page/page.css": _get("page_css", "The page's style.", css),
        "/page/page.js": _get("page_js", "The page's script.", script),
        "/openapi.json": _get("openapi", "This description.", _json_answer({"type": "object"})),
        "/metrics": _get("metrics", "Metrics in Prometheus' text format.", metrics),
        "/explain": {
            "post": {
                "operationId": "explain",
                "summary": "Explains one image: prediction and map, as JSON or as an image.",
                "parameters": [_query(name, *words) for name, words in QUERY.items()],
                "requestBody": {"required": True, "content": body},
                "responses": _responses(_answer("The explanations, or an image.", explained)),
            }
        },
    }


def _health() -> Json:
    told = _json_answer({"type": "object"})
    found: Json = {
        "/v2/health/live": _get("live", "Says whether the server runs.", told),
        "/v2/health/ready": _get("ready", "Says whether requests should come.", told),
        "/v2/models/stats": _get("all_statistics", "Statistics of all models.", told),
    }
    for path in ("/v2", "/v2/"):
        found[path] = _get(_id("server_metadata", path), "The server's metadata.", told)
    for path in _with_versions("/v2/models/{name}"):
        metadata = _json_answer(_ref("ModelMetadata"))
        text = "The model's metadata."
        found[path] = _get(_id("model_metadata", path), text, metadata, path)
        for what, text in _OF_A_MODEL:
            found[f"{path}/{what}"] = _get(_id(f"model_{what}", path), text, told, path)
    return found


def _infer() -> Json:
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    length = {
        "name": HEADER_LENGTH, "in": "header", "schema": {"type": "integer", "minimum": 0},
        "description": "Bytes of JSON at the beginning of the body; binary data follows.",
    }  # fmt: skip
    answer = _answer(
        "The outputs.", {"application/json": {"schema": _ref("InferResponse")}, **binary}
    )
    answer["headers"] = {HEADER_LENGTH: {key: length[key] for key in ("schema", "description")}}
    body = {"application/json": {"schema": _ref("InferRequest")}, **binary}
    found: Json = {}
    for path in _with_versions("/v2/models/{name}"):
        operation: Json = {
            "operationId": _id("infer", path),
            "summary": "Infers.",
            "parameters": [length],
            "requestBody": {"required": True, "content": body},
            "responses": _responses(answer),
        }
        found[f"{path}/infer"] = {"parameters": _of_path(path), "post": operation}
    return found


def _repository() -> Json:
    ready: Json = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
    entry = {"type": "object", "properties": dict.fromkeys(_INDEX, _TEXT)}
    listed = _json_answer({"type": "array", "items": entry})
    done = {"description": "Done."}
    parameters: Json = {"type": "object", "properties": {"parameters": {"type": "object"}}}
    model = "/v2/repository/models/{name}"
    return {
        "/v2/repository/index": _post("index", "Lists the models.", ready, listed, ""),
        f"{model}/load": _post("load", "Loads a model, or again.", parameters, done, model),
        f"{model}/unload": _post("unload", "Unloads a model.", parameters, done, model),
    }


def _v1() -> Json:
    model = "/v1/models/{name}"
    names = {"type": "object", "properties": {"models": {"type": "array", "items": _TEXT}}}
    request = _ref("V1Request")

    def answer(name: str) -> Json:
        each = {"type": "array", "items": {"type": "array", "items": _ref("Explanation")}}
        return _json_answer({"type": "object", "properties": {name: each}})

    about = _json_answer(_ref("V1Model"))
    return {
        "/v1/models": _get("v1_models", "Names the models.", _json_answer(names)),
        model: _get("v1_model", "Says whether a model is ready, and what it takes.", about, model),
        f"{model}:predict": _post(
            "v1_predict", "Predicts.", request, answer("predictions"), model, required=True
        ),
        f"{model}:explain": _post(
            "v1_explain", "Explains.", request, answer("explanations"), model, required=True
        ),
    }


_OF_A_MODEL = (
    ("config", "Its configuration, as Triton words it."),
    ("ready", "Says whether it is ready."),
    ("stats", "Its statistics."),
)
_TEXT: Json = {"type": "string"}
_INDEX = ("name", "version", "state", "reason")


def _schemas() -> Json:
    number, whole = {"type": "number"}, {"type": "integer"}
    datatype: Json = {"type": "string", "enum": [*DATATYPES, "BYTES"]}
    shape: Json = {"type": "array", "items": whole}
    free: Json = {"type": "object"}
    described = _object({"name": _TEXT, "datatype": datatype, "shape": shape})
    tensor = _object(
        {"name": _TEXT, "datatype": datatype, "shape": shape, "parameters": free,
         "data": {"type": "array"}}, ("name", "datatype", "shape"),
    )  # fmt: skip
    wanted = _object({"name": _TEXT, "parameters": free}, ("name",))
    known: Json = {"description": "; ".join(f"{name}: {text}" for name, text in PARAMETERS.items())}
    explanation = {
        "class_id": whole, "label": _TEXT, "probability": number,
        "evidence": {"type": ["number", "null"]}, "valid": {"type": "boolean"},
        "cam_range": {"type": ["array", "null"], "items": number}, "method": _TEXT,
        "passes": whole, "width": whole, "height": whole, "crop_box": shape,
        "box_threshold": number, "boxes": {"type": "array", "items": shape},
        "heatmap_png": _object({"b64": _TEXT}),
    }  # fmt: skip
    return {
        "Error": _object({"error": _TEXT}),
        "ModelMetadata": _object(
            {"name": _TEXT, "versions": _list(_TEXT), "platform": _TEXT,
             "inputs": _list(described), "outputs": _list(described)}
        ),
        "InferRequest": _object(
            {"id": _TEXT, "parameters": {**free, **known}, "inputs": _list(tensor),
             "outputs": _list(wanted)}, ("inputs",),
        ),
        "InferResponse": _object(
            {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": _list(tensor)},
            ("model_name", "model_version", "outputs"),
        ),
        "Explanation": _object(explanation, ("class_id", "label", "probability", "evidence")),
        "Explained": _object(
            {"model": _TEXT, "version": _TEXT, "explanations": _list(_ref("Explanation"))}
        ),
        "V1Request": _object(
            {"instances": {"type": "array", "minItems": 1}, "parameters": {**free, **known}},
            ("instances",),
        ),
        "V1Model": _object(
            {"name": _TEXT, "ready": {"type": "boolean"}, "version": _TEXT,
             "takes_classes": {"type": "boolean"}, "most_classes": whole}
        ),
    }  # fmt: skip


def _with_versions(path: str) -> tuple[str, str]:
    return path, f"{path}/versions/{{version}}"


def _id(name: str, path: str) -> str:
    """Names an operation that has several paths."""
    return name + ("_of_version" if "{version}" in path else "_" if path.endswith("/") else "")


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: Json, required: tuple[str, ...] | None = None) -> Json:
    wanted = list(properties if required is None else required)
    return {"type": "object", "properties": properties, "required": wanted}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _answer(text: str, content: Json) -> Json:
    return {"description": text, "content": content}


def _json_answer(schema: Json) -> Json:
    return _answer("The answer.", {"application/json": {"schema": schema}})


def _responses(answer: Json) -> Json:
    refused = _answer("Why it isn't answered.", {"application/json": {"schema": _ref("Error")}})
    return {"200": answer, "4XX": refused, "5XX": refused}


def _query(name: str, kind: str, text: str) -> Json:
    schema: Json = {"type": kind}
    if name == "format":
        schema["enum"] = list(FORMATS)
    if name == "classes":
        schema = _list(schema)
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _of_path(path: str) -> list[Json]:
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names]


def _get(name: str, text: str, answer: Json, path: str = "") -> Json:
    made: Json = {"get": {"operationId": name, "summary": text, "responses": _responses(answer)}}
    return {"parameters": _of_path(path), **made} if path else made


def _post(
    name: str, text: str, schema: Json, answer: Json, path: str, *, required: bool = False
) -> Json:
    body = {"required": required, "content": {"application/json": {"schema": schema}}}
    operation: Json = {
        "operationId": name, "summary": text, "requestBody": body,
        "responses": _responses(answer),
    }  # fmt: skip
    return {"parameters": _of_path(path), "post": operation} if path else {"post": operation}
