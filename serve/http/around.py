"""What stands around inference over HTTP: the page, `/explain`, V1, metrics and the description."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import ASGIApp

from sigcam.serve.http.app import make_app
from sigcam.serve.http.explain import explain_routes
from sigcam.serve.http.metrics import metrics_route
from sigcam.serve.http.openapi import openapi_route
from sigcam.serve.http.v1 import v1_routes
from sigcam.serve.observe.metrics import Metrics
from sigcam.serve.observe.middleware import Observed
from sigcam.serve.observe.records import LastRecord
from sigcam.serve.observe.tracing import Tracer
from sigcam.serve.page.routes import PAGE_PATHS, page_routes
from sigcam.serve.service import Service

__all__ = ["make_server_app"]


def make_server_app(
    service: Service,
    metrics: Metrics,
    token: str | None = None,
    origins: Sequence[str] = (),
    tracer: Tracer | None = None,
) -> ASGIApp:
    """Makes the application with all of its routes, whose requests are logged and counted.

    Args:
        service: answers; it tells the metrics from now on.
        metrics: of this process.
        token: that requests must bear; None lets all in.
        origins: of web pages that may ask, beside the server's own.
        tracer: makes spans; None for none.

    Example:
        app = make_server_app(service, Metrics())  # uvicorn.run(app)
    """
    service.observers += [metrics, LastRecord()]
    routes = [
        *explain_routes(service),
        *v1_routes(service),
        *page_routes(),
        metrics_route(service, metrics),
        openapi_route(has_token=token is not None),
    ]
    app = make_app(service, token, origins, routes, PAGE_PATHS)
    return Observed(app, tracer, app.routes)
