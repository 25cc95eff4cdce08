"""What every request over HTTP passes: its id, its line in the log and its spans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute, Route

from sigcam.serve.observe.ended import Beginning, Ended, request_id
from sigcam.serve.observe.records import keep_record
from sigcam.serve.observe.telling import tell
from sigcam.serve.protocol.errors import GONE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from sigcam.serve.observe.tracing import Tracer
    from sigcam.serve.records import Record

REQUEST_ID = "sigcam.request_id"
"""Where in its ASGI scope a request's id stands."""

_PROBES = ("/v2/health/", "/metrics")
_OF_TRACES = (b"traceparent", b"tracestate")


class Observed:
    """An ASGI application that gives every request an id, and tells of its end.

    Example:
        app = Observed(app, find_tracer())
    """

    def __init__(
        self, app: ASGIApp, tracer: Tracer | None = None, routes: Iterable[BaseRoute] = ()
    ) -> None:
        """Wraps an application.

        Args:
            app: answers the requests.
            tracer: makes spans; None for none.
            routes: those of the application, which name its requests.
        """
        self._app = app
        self._tracer = tracer
        self._paths: dict[tuple[Any, frozenset[str]], str] = {
            (route.endpoint, frozenset(route.param_convertors)): route.path
            for route in reversed([*routes])
            if isinstance(route, Route)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes on what isn't one."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: str(value, "latin-1") for name, value in scope["headers"]}
        beginning = Beginning(request_id(headers.get(b"x-request-id")))
        scope[REQUEST_ID] = beginning.request_id
        records = keep_record()
        status = GONE  # until an answer begins

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = (b"x-request-id", beginning.request_id.encode("ascii"))
                message = {**message, "headers": [*message.get("headers", ()), given]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            traces = {name.decode(): headers[name] for name in _OF_TRACES if name in headers}
            record = records[0] if records else None
            found = (scope.get("endpoint"), frozenset(scope.get("path_params", ())))
            route = self._paths.get(found, "")
            tell(_ended(scope, beginning, status, traces, record, route), self._tracer)


def _ended(
    scope: Scope,
    beginning: Beginning,
    status: int,
    traces: dict[str, str],
    record: Record | None,
    route: str,
) -> Ended:
    if record is not None and record.status == GONE:
        status = GONE
    return Ended(
        beginning=beginning,
        name=f"{scope['method']} {route}".rstrip(),
        path=scope["path"],
        status=status,
        seconds=beginning.seconds,
        client=(scope.get("client") or ("",))[0],
        record=record,
        headers=traces,
        attributes={
            "http.request.method": scope["method"],
            "http.route": route,
            "url.path": scope["path"],
            "http.response.status_code": status,
        },
        is_probe=scope["path"].startswith(_PROBES),
    )
