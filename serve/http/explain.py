"""`POST /explain`: an image in, prediction and map out, for people with curl and for the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.serve.http.body import header
from sigcam.serve.http.infer import body_of, client_gone
from sigcam.serve.http.multipart import file_of
from sigcam.serve.http.queries import FORMATS, Query, query_of
from sigcam.serve.inputs import ENCODED
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import (
    InferRequest,
    InferResponse,
    InputTensor,
    RequestedOutput,
)
from sigcam.serve.service import Service

__all__ = ["explain_routes"]

_MOST_WORDS = 200


def explain_routes(service: Service) -> list[Route]:
    """Returns the route.

    Args:
        service: answers.
    """

    async def explain(request: Request) -> Response:
        query = query_of(_words(request.scope["query_string"]))
        with service.admit(query.model or _only_model(service), query.version) as ticket:
            body = await body_of(service, ticket, request)
            return await service.infer(
                ticket,
                partial(_request, body, header(request.scope, b"content-type"), query),
                _answer(query.form),
                partial(client_gone, request.receive),
            )

    return [Route("/explain", explain, methods=["POST"])]


def _words(text: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            text.decode("ascii"), keep_blank_values=True, errors="strict",
            max_num_fields=_MOST_WORDS,
        )  # fmt: skip
    except ValueError as exc:  # not ASCII, not UTF-8 behind the "%", or too many
        raise RequestError(f"the address's words can't be read: {exc}") from exc


def _only_model(service: Service) -> str:
    names = sorted({one.name for one in service.models.all()})
    if len(names) != 1:
        known = ", ".join(names[:20]) or "none is loaded"
        raise RequestError(f"the server has {len(names)} models; name one by ?model= ({known})")
    return names[0]


def _request(body: bytes, content_type: str | None, query: Query) -> InferRequest:
    file = file_of(body, content_type)
    output = FORMATS[query.form][0]
    return InferRequest(
        inputs=(InputTensor(ENCODED, "BYTES", (1,), [file]),),
        outputs=(RequestedOutput(output, binary=True),),
        parameters=query.parameters,
    )


def _json(response: InferResponse) -> Response:
    head = json.dumps({"model": response.model, "version": response.version})[:-1].encode()
    body = head + b', "explanations": [' + b", ".join(_elements(response)) + b"]}"
    return Response(body, media_type="application/json")


def _image(media_type: str, response: InferResponse) -> Response:
    """Answers with the last map: the one of the rank, or of the class that was named."""
    return Response(_elements(response)[-1], media_type=media_type)


def _elements(response: InferResponse) -> list[bytes]:
    found = response.outputs[0].data
    assert isinstance(found, list)  # noqa: S101 (all of these outputs are bytes)
    return found


def _answer(form: str) -> Callable[[InferResponse], Response]:
    return _json if form == "json" else partial(_image, FORMATS[form][1])
