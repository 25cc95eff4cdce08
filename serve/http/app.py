"""The application: all routes behind the guard, as one that any ASGI server runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from sigcam.core.errors import SigcamError
from sigcam.serve.http.answers import error_response
from sigcam.serve.http.guard import OPEN_PATHS, Guard
from sigcam.serve.http.health import health_routes
from sigcam.serve.http.infer import infer_routes
from sigcam.serve.http.repository import repository_routes
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.service import Service, refusal

__all__ = ["make_app"]


def make_app(
    service: Service,
    token: str | None = None,
    origins: Sequence[str] = (),
    routes: Iterable[BaseRoute] = (),
    open_paths: Iterable[str] = (),
) -> Starlette:
    """Makes the application.

    Args:
        service: answers; its models are loaded by whoever runs the application.
        token: that requests must bear; None lets all in.
        origins: of web pages that may ask, beside the server's own.
        routes: further ones.
        open_paths: further paths that need no token.

    Example:
        service = Service(Repository(["model.onnx"]))
        service.models.load_all()
        app = make_app(service)  # uvicorn.run(app)
    """
    middleware = [
        Middleware(Guard, token=token, origins=origins, open_paths=OPEN_PATHS | {*open_paths})
    ]
    if origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(origins),
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["*"],
            )
        )
    app = Starlette(
        routes=[
            *infer_routes(service),  # first, as routes are tried one by one
            *health_routes(service),
            *repository_routes(service),
            *routes,
        ],
        middleware=middleware,
        exception_handlers={
            SigcamError: _told,
            HTTPException: _of_http,
            Exception: _told,
        },
    )
    # A slash too many is an unknown path: a redirection would name whatever host the client did.
    app.router.redirect_slashes = False
    return app


async def _told(_: Request, error: Exception) -> Response:
    return error_response(refusal(error))


async def _of_http(request: Request, error: Exception) -> Response:
    """Words what Starlette refuses: an unknown path, or a method that a path doesn't have."""
    assert isinstance(error, HTTPException)  # noqa: S101 (it is registered for these)
    status = error.status_code
    message = {
        404: "Not Found: the paths are those of the Open Inference Protocol",
        405: "Method Not Allowed",
    }.get(status, error.detail)
    response = error_response(RequestError(message, status))
    response.headers.update(error.headers or {})
    del request
    return response
