"""Routes that list, load and unload models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.serve.http.answers import json_response
from sigcam.serve.http.body import read_body
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.requests import json_object
from sigcam.serve.service import Service

__all__ = ["repository_routes"]

_MOST_BYTES = 1 << 16
_PARAMETERS = ("unload_dependents",)
"""Parameters that are taken: no model depends on another one, so there is nothing to unload."""


def repository_routes(service: Service) -> list[Route]:
    """Returns the routes.

    Args:
        service: whose models they are.
    """

    async def index(request: Request) -> Response:
        ready = (await _body(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise RequestError(f"Unable to parse 'ready': true or false is wanted, got {ready!r}")
        return json_response(await asyncio.to_thread(service.models.index, ready=ready))

    async def change(request: Request, action: Callable[[str], None]) -> Response:
        parameters = (await _body(request)).get("parameters", {})
        for name in parameters if isinstance(parameters, dict) else ["parameters"]:
            if name not in _PARAMETERS:
                raise RequestError(
                    f"the parameter {name!r} isn't known; models are loaded as the server was "
                    "started, so send none"
                )
        await asyncio.to_thread(action, request.path_params["name"])
        return Response(status_code=200)

    async def load(request: Request) -> Response:
        return await change(request, service.load)

    async def unload(request: Request) -> Response:
        return await change(request, service.unload)

    async def _body(request: Request) -> dict[str, Any]:
        seconds = service.options.body_timeout
        body = await read_body(request.scope, request.receive, _MOST_BYTES, seconds)
        return json_object(body) if body.strip() else {}

    model = "/v2/repository/models/{name}"
    return [
        Route("/v2/repository/index", index, methods=["POST"]),
        Route(f"{model}/load", load, methods=["POST"]),
        Route(f"{model}/unload", unload, methods=["POST"]),
    ]
