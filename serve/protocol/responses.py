"""From an `InferResponse` to the body of an HTTP answer: JSON, and binary data behind it."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

from sigcam.serve.protocol.datatypes import bytes_of, join_bytes
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferResponse, OutputTensor

__all__ = ["encode_response", "error_body"]


def encode_response(response: InferResponse) -> tuple[bytes, int | None]:
    """Writes an answer.

    Returns:
        The body, and how many bytes of JSON it begins with; None where all of it is JSON.

    Raises:
        RequestError: an output that JSON can't hold, which wasn't asked for as binary data.

    Example:
        >>> made = OutputTensor("logits", "FP32", (1, 2), np.array([[0.5, 1]], np.float32))
        >>> body, length = encode_response(InferResponse("cats", "1", (made,), "7"))
        >>> json.loads(body)["outputs"][0]["data"], length
        ([0.5, 1.0], None)
    """
    head: dict[str, Any] = {} if response.id is None else {"id": response.id}
    head |= {"model_name": response.model, "model_version": response.version}
    blobs: list[bytes] = []
    head["outputs"] = [_described(one, blobs) for one in response.outputs]
    text = json.dumps(head, separators=(",", ":"), allow_nan=False).encode()
    if not any(one.binary for one in response.outputs):
        return text, None
    return b"".join((text, *blobs)), len(text)


def error_body(message: str) -> bytes:
    """Returns the body of an error.

    Example:
        >>> error_body("no such model")
        b'{"error":"no such model"}'
    """
    return json.dumps({"error": message}, separators=(",", ":")).encode()


def _described(one: OutputTensor, blobs: list[bytes]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": one.name,
        "datatype": one.datatype,
        "shape": list(one.shape),
    }
    if one.binary:
        blob = join_bytes(one.data) if isinstance(one.data, list) else bytes_of(one.data)
        blobs.append(blob)
        made["parameters"] = {"binary_data_size": len(blob)}
    else:
        made["data"] = _values(one)
        if one.base64:
            made["parameters"] = {"content_type": "base64"}
    return made


def _values(one: OutputTensor) -> list[Any]:
    if isinstance(one.data, list):
        if one.base64:
            return [base64.b64encode(element).decode("ascii") for element in one.data]
        try:
            return [element.decode("utf-8") for element in one.data]
        except UnicodeDecodeError as exc:
            raise RequestError(
                f"output '{one.name}' is bytes, which JSON can't hold; ask for it as binary data: "
                '"parameters": {"binary_data": true}'
            ) from exc
    if one.data.dtype.kind == "f" and not np.isfinite(one.data).all():
        raise RequestError(
            f"output '{one.name}' has values that aren't finite, which JSON can't hold; ask for "
            'it as binary data: "parameters": {"binary_data": true}'
        )
    values: list[Any] = one.data.ravel().tolist()
    return values
