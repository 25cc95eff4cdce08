"""`GET /metrics`, for Prometheus."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sigcam.serve.observe.metrics import CONTENT_TYPE, Metrics
from sigcam.serve.service import Service

__all__ = ["metrics_route"]


def metrics_route(service: Service, metrics: Metrics) -> Route:
    """Returns the route.

    Args:
        service: whose models are shown, whether they were asked or not.
        metrics: of this process, or of all where several serve.

    Example:
        metrics_route(service, Metrics()).path  # "/metrics"
    """

    async def told(_: Request) -> Response:
        for served in service.models.all():
            metrics.add_model(served.name, served.version)
        # Of several processes, the files of all are read.
        text = await asyncio.to_thread(metrics.text)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    return Route("/metrics", told)
