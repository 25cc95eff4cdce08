"""Reading a request's body: no more of it than allowed, and not for ever."""

from __future__ import annotations

import asyncio
import zlib

from starlette.types import Receive, Scope

from sigcam.serve.protocol.errors import RequestError, client_has_gone

__all__ = ["header", "read_body"]

_COMPRESSIONS = ("gzip", "deflate")
_EITHER_HEADER = 32 + zlib.MAX_WBITS
"""Has zlib tell by the first bytes whether it is gzip or its own format (HTTP's deflate)."""


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
        RequestError: too long (413), too slow (408), or compressed in another way than gzip and
            deflate (415); or its client has gone.
    """
    length = header(scope, b"content-length")
    if length is not None and length.isdecimal() and int(length[:20]) > most:
        raise _too_long(most)
    encoding = (header(scope, b"content-encoding") or "identity").strip().lower()
    if encoding not in ("identity", *_COMPRESSIONS):
        raise RequestError(
            f"the body is compressed by {encoding[:40]!r}; this server takes "
            f"{' and '.join(_COMPRESSIONS)}, and bodies as they are",
            415,
        )
    try:
        body = await asyncio.wait_for(_collect(receive, most), seconds)
    except asyncio.TimeoutError:
        raise RequestError(f"the body didn't arrive within {seconds:g} s", 408) from None
    if encoding == "identity":
        return body
    return await asyncio.to_thread(_inflated, body, encoding, most)


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


def _inflated(body: bytes, encoding: str, most: int) -> bytes:
    """Decompresses a body, and no more of it than allowed."""
    stream = zlib.decompressobj(_EITHER_HEADER)
    try:
        found = stream.decompress(body, most + 1)
    except zlib.error as exc:
        raise RequestError(f"the body isn't {encoding}, as its header says: {exc}") from exc
    if len(found) > most:
        raise _too_long(most)
    if not stream.eof or stream.unused_data:
        raise RequestError(f"the body isn't whole, or more than one piece of {encoding}")
    return found


def _too_long(most: int) -> RequestError:
    return RequestError(
        f"the body is longer than the {most} bytes that this server takes; send smaller images or "
        "fewer of them, or start it with a larger --request-bytes",
        413,
    )
