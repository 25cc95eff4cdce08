"""Reading a request's body: no more of it than allowed, and not for ever."""

from __future__ import annotations

import asyncio

from starlette.types import Receive, Scope

from sigcam.serve.protocol.errors import RequestError, client_has_gone

__all__ = ["header", "read_body"]


def header(scope: Scope, name: bytes) -> str | None:
    """Returns a header of a request; None without it.

    Args:
        scope: of the request.
        name: in small letters.

    Example:
        >>> header({"headers": [(b"host", b"localhost")]}, b"host")
        'localhost'
    """
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return None


async def read_body(scope: Scope, receive: Receive, most: int, seconds: float) -> bytes:
    """Reads a body.

    Args:
        scope: of the request.
        receive: gives its parts.
        most: bytes that it may have; more are refused by the header, or as soon as they come.
        seconds: that it may take.

    Raises:
        RequestError: too long (413), too slow (408), or compressed (415); or its client has gone.
    """
    length = header(scope, b"content-length")
    if length is not None and length.isdecimal() and int(length[:20]) > most:
        raise _too_long(most)
    encoding = header(scope, b"content-encoding")
    if encoding not in (None, "", "identity"):
        raise RequestError(
            f"the body is compressed ({encoding}), which this server doesn't take: images are "
            "compressed already; send it as it is",
            415,
        )
    try:
        return await asyncio.wait_for(_collect(receive, most), seconds)
    except asyncio.TimeoutError:
        raise RequestError(f"the body didn't arrive within {seconds:g} s", 408) from None


async def _collect(receive: Receive, most: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise client_has_gone()
        part = message.get("body", b"")
        total += len(part)
        if total > most:
            raise _too_long(most)
        if not message.get("more_body", False):
            return part if not parts else b"".join((*parts, part))
        parts.append(part)


def _too_long(most: int) -> RequestError:
    return RequestError(
        f"the body is longer than the {most} bytes that this server takes; send smaller images or "
        "fewer of them, or start it with a larger --request-bytes",
        413,
    )
