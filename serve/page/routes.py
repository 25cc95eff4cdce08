"""The routes of the page, and the headers that hold it in."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGE_PATHS", "page_routes"]

# Only what the server itself gives may run; images are also those that the page made of an answer,
# or of the file that was dropped. Nobody may put the page into a frame.
_POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'",
        "img-src 'self' blob: data:", "base-uri 'none'", "form-action 'none'",
        "frame-ancestors 'none'", "require-trusted-types-for 'script'",
    )
)  # fmt: skip
_FILES = {
    "/": ("index.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
}

PAGE_PATHS = frozenset(_FILES)
"""They need no token: there is nothing in them, and the page asks for the token itself."""


def page_routes() -> list[Route]:
    """Returns the routes, with the files read.

    Example:
        >>> [route.path for route in page_routes()]
        ['/', '/page/page.css', '/page/page.js']
    """
    return [_route(path, *named) for path, named in _FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    text = Path(__file__).with_name(name).read_bytes()
    headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache"}

    async def page(_: Request) -> Response:
        return Response(text, headers=headers, media_type=media_type)

    return Route(path, page)
