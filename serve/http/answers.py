"""Answers over HTTP: JSON, errors, and bodies with binary data."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response

from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferResponse
from sigcam.serve.protocol.responses import encode_response, error_body

__all__ = ["HEADER_LENGTH", "error_response", "infer_answer", "json_response"]

HEADER_LENGTH = "Inference-Header-Content-Length"


def json_response(content: Any, status: int = 200) -> Response:
    """Returns JSON.

    Example:
        >>> json_response({"live": True}).body
        b'{"live":true}'
    """
    body = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
    return Response(body, status, media_type="application/json")


def error_response(error: RequestError) -> Response:
    """Returns an error as the protocol has it.

    Example:
        >>> error_response(RequestError("try later", 429, 1)).headers["retry-after"]
        '1'
    """
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(error_body(str(error)), error.status, headers, "application/json")


def infer_answer(response: InferResponse) -> Response:
    """Writes an answer of inference; called in a thread.

    Raises:
        RequestError: an output that JSON can't hold.
    """
    body, length = encode_response(response)
    if length is None:
        return Response(body, media_type="application/json")
    headers = {HEADER_LENGTH: str(length)}
    return Response(body, headers=headers, media_type="application/octet-stream")
