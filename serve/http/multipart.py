"""The file of a form, as browsers and `curl -F` send it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from sigcam.serve.protocol.errors import RequestError

__all__ = ["file_of"]

_BOUNDARY = re.compile(r'boundary=(?:"([^"]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE)
_NAME = re.compile(rb'\bname="([^"]*)"|\bname=([^\s;"]+)', re.IGNORECASE)
_HOW = "send it as a form, `curl -F image=@cat.jpg`, or as the body, with the type image/jpeg"


def file_of(body: bytes, content_type: str | None) -> bytes:
    r"""Returns the image of a request.

    Args:
        body: the request's: a form with one part, `image`, or the file itself.
        content_type: the request's.

    Raises:
        RequestError: neither, a form with other parts, or half a form.

    Example:
        >>> form = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nGIF\r\n--x--\r\n'
        >>> file_of(form, "multipart/form-data; boundary=x")
        b'GIF'
        >>> file_of(b"GIF", "image/gif")
        b'GIF'
    """
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind.startswith("image/") or kind == "application/octet-stream":
        return body
    if kind != "multipart/form-data":
        got = f"the type {kind[:80]!r}" if kind else "no Content-Type"
        raise RequestError(f"an image is wanted, got {got}; {_HOW}", 415)
    boundary = _BOUNDARY.search(content_type or "")
    if boundary is None:
        raise RequestError(f"the form's Content-Type names no boundary; {_HOW}")
    parts = _parts(body, boundary[1] or boundary[2])
    if [name for name, _ in parts] != ["image"]:
        names = ", ".join(repr(name[:40]) for name, _ in parts[:5]) or "none"
        raise RequestError(
            f"the form must have one part, 'image', got {names}; everything else stands in the "
            f"address, as ?top_k=3; {_HOW}"
        )
    return parts[0][1]


class _Collector:
    """Puts the parts of a form together, as the parser comes across them."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, bytes]] = []
        self.is_whole = False
        self._field = b""
        self._value = b""
        self._name = ""
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_part_data": self._on_data,
            "on_part_end": self._on_end,
            "on_end": self._on_last,
        }

    def _begin(self) -> None:
        self._name, self._data = "", []

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            found = _NAME.search(self._value)
            self._name = "" if found is None else (found[1] or found[2] or b"").decode("latin-1")
        self._field = self._value = b""

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _on_end(self) -> None:
        self.parts.append((self._name, b"".join(self._data)))

    def _on_last(self) -> None:
        self.is_whole = True


def _parts(body: bytes, boundary: str) -> list[tuple[str, bytes]]:
    """Returns the name and the contents of each part of a form."""
    collector = _Collector()
    try:
        callbacks: Any = collector.callbacks()
        parser = MultipartParser(boundary.encode("latin-1"), callbacks)
        parser.write(body)
    except FormParserError as exc:
        raise RequestError(f"the form can't be read ({exc}); {_HOW}") from exc
    if not collector.is_whole:
        raise RequestError(f"the form has no end: it was cut; {_HOW}")
    return collector.parts
