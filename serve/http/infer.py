"""The route that infers, over HTTP."""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive

from sigcam.serve.http.answers import HEADER_LENGTH, infer_answer
from sigcam.serve.http.body import header, read_body
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.requests import decode_request
from sigcam.serve.served import Ticket
from sigcam.serve.service import Service

__all__ = ["body_of", "client_gone", "header_length", "infer_routes"]


def infer_routes(service: Service) -> list[Route]:
    """Returns the routes.

    Args:
        service: answers.
    """

    async def infer(request: Request) -> Response:
        name = request.path_params["name"]
        with service.admit(name, request.path_params.get("version")) as ticket:
            try:
                length = header_length(header(request.scope, HEADER_LENGTH.lower().encode()))
            except RequestError as exc:
                service.refused(ticket.record(), exc)
                raise
            body = await body_of(service, ticket, request)
            return await service.infer(
                ticket,
                partial(decode_request, body, length, name),
                infer_answer,
                partial(client_gone, request.receive),
                by_json=True,
            )

    model = "/v2/models/{name}"
    return [
        Route(f"{model}/infer", infer, methods=["POST"]),
        Route(f"{model}/versions/{{version}}/infer", infer, methods=["POST"]),
    ]


async def body_of(service: Service, ticket: Ticket, request: Request) -> bytes:
    """Reads the body of a request that was let in.

    Args:
        service: whose limits count, and who is told of what is refused.
        ticket: the request's.
        request: whose body it is.

    Raises:
        RequestError: as `read_body`.
    """
    options = service.options
    try:
        return await read_body(
            request.scope, request.receive, options.request_bytes, options.body_timeout
        )
    except RequestError as exc:
        service.refused(ticket.record(), exc)
        raise


async def client_gone(receive: Receive) -> None:
    """Returns when the client of a request has gone, whose body was read."""
    while True:
        if (await receive())["type"] == "http.disconnect":
            return


def header_length(text: str | None) -> int | None:
    """Reads the header that says how many bytes of JSON a body begins with.

    Args:
        text: its value; None where there is none, and so is what is returned.

    Raises:
        RequestError: no whole number.

    Example:
        >>> header_length("120"), header_length(None)
        (120, None)
    """
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise RequestError(f"{HEADER_LENGTH} must be a whole number of bytes, got {text[:40]!r}")
    return int(text)
