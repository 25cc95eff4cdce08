"""What every request passes before its route: who may ask, from where; and the answers' headers."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sigcam.serve.bearer import bears
from sigcam.serve.http.answers import error_response
from sigcam.serve.http.body import header
from sigcam.serve.protocol.errors import RequestError

__all__ = ["Guard"]

OPEN_PATHS = frozenset({"/v2/health/live", "/v2/health/ready"})
"""Paths that need no token: whoever watches the server has none."""

_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)
"""Headers of every answer that doesn't say otherwise itself."""


class Guard:
    """Lets requests through to an application: with the token, if there is one.

    None come through from pages of other origins: somebody's browser may reach a server that
    nobody else can.
    """

    def __init__(
        self,
        app: ASGIApp,
        token: str | None = None,
        origins: Iterable[str] = (),
        open_paths: Iterable[str] = OPEN_PATHS,
    ) -> None:
        """Wraps an application.

        Args:
            app: what comes behind.
            token: that requests must bear; None lets all in.
            origins: of web pages that may ask, beside the server's own.
            open_paths: that need no token.
        """
        self._app = app
        self._token = token
        self._origins = frozenset(origins)
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Checks a request, and passes it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add_headers(message)
            await send(message)

        error = self._refused(scope)
        app = self._app if error is None else error_response(error)
        await app(scope, receive, send_with_headers)

    def _refused(self, scope: Scope) -> RequestError | None:
        origin = header(scope, b"origin")
        if origin is not None and not self._may_ask(origin, header(scope, b"host") or ""):
            return RequestError(
                "this server doesn't answer to pages of other origins; start it with "
                "--allow-origin and the page's origin",
                403,
            )
        if self._token is None or scope["path"] in self._open_paths:
            return None
        if scope["method"] == "OPTIONS" and origin in self._origins:
            return None  # a browser asks whether it may ask, and sends no token with that
        if not bears(header(scope, b"authorization"), self._token):
            return RequestError(
                "a bearer token is wanted: send the header Authorization: Bearer TOKEN", 401
            )
        return None

    def _may_ask(self, origin: str, host: str) -> bool:
        """Says whether a web page may ask: one of the server's own, or of an allowed origin.

        Without a token, a name that isn't this machine's proves nothing: whoever owns it may have
        it mean 127.0.0.1 once his page is loaded (DNS rebinding).
        """
        if origin in self._origins:
            return True
        return origin.partition("://")[2] == host and (self._token is not None or _is_plain(host))


def _is_plain(host: str) -> bool:
    """Says whether a Host header is localhost or an address, with a port or without."""
    name = re.sub(r":\d+$", "", host)
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return name == "localhost"
    return True


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = list(message.get("headers", ()))
    there = {name.lower() for name, _ in headers}
    headers.extend(pair for pair in _HEADERS if pair[0] not in there)
    message["headers"] = headers
