"""Routes that tell of the server and its models: health, metadata, statistics."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.serve.http.answers import json_response
from sigcam.serve.protocol.metadata import server_metadata
from sigcam.serve.service import Service

__all__ = ["health_routes"]


def health_routes(service: Service) -> list[Route]:
    """Returns the routes.

    Args:
        service: answers.
    """

    async def live(_: Request) -> Response:
        return json_response({"live": True})

    async def ready(_: Request) -> Response:
        is_ready = service.ready
        return json_response({"live": True, "ready": is_ready}, 200 if is_ready else 400)

    async def metadata(_: Request) -> Response:
        return json_response(server_metadata())

    async def model_metadata(request: Request) -> Response:
        return json_response(service.models.metadata(*_asked(request)))

    async def configuration(request: Request) -> Response:
        return json_response(service.models.configuration(*_asked(request)))

    async def model_ready(request: Request) -> Response:
        name, version = _asked(request)
        service.models.get(name, version)
        is_ready = not service.draining
        return json_response({"name": name, "ready": is_ready}, 200 if is_ready else 400)

    async def model_statistics(request: Request) -> Response:
        name, version = _asked(request)
        found = service.models.chosen(name or None, version)
        told = [service.statistics.of(one.name, one.version) for one in found]
        return json_response({"model_stats": told})

    model, version = "/v2/models/{name}", "/versions/{version}"
    return [
        Route("/v2", metadata),
        Route("/v2/", metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models/stats", model_statistics),
        Route(model, model_metadata),
        Route(f"{model}{version}", model_metadata),
        Route(f"{model}/config", configuration),
        Route(f"{model}{version}/config", configuration),
        Route(f"{model}/ready", model_ready),
        Route(f"{model}{version}/ready", model_ready),
        Route(f"{model}/stats", model_statistics),
        Route(f"{model}{version}/stats", model_statistics),
    ]


def _asked(request: Request) -> tuple[str, str | None]:
    return request.path_params.get("name", ""), request.path_params.get("version")
