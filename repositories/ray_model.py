"""The deployment of Ray Serve: a model over the Open Inference Protocol.

`app.py` in a repository imports `application` from here. Which replica a request goes to, how many
replicas there are, what is run together and what is refused is Ray's affair; what a request may
ask for, and the answer, is as with `sigcam serve`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from sigcam.repositories.answers import Answers
from sigcam.repositories.models import copied_file
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel
from sigcam.serve.http.answers import HEADER_LENGTH, error_response, infer_answer
from sigcam.serve.http.body import header, read_body
from sigcam.serve.http.infer import header_length
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InferResponse
from sigcam.serve.protocol.requests import decode_request
from sigcam.serve.service import refusal

__all__ = ["Model", "application"]


class Model:
    """One replica of a model. Its paths are those behind `/v2/models/NAME`."""

    def __init__(self, path: str, name: str, batch_size: int, batch_delay: int) -> None:
        """Loads the model.

        Args:
            path: of the .onnx or .engine file.
            name: of the model.
            batch_size: most images in one run, and requests that are answered together.
            batch_delay: microseconds that a request waits for others.

        Raises:
            SigcamError: as `sigcam.load`.
        """
        self._name = name
        model = ExportedModel.open(Path(path), options=BackendOptions(batch_size=batch_size))
        self._options = ServeOptions(batch_size=batch_size, queue_images=max(32, 2 * batch_size))
        self._answers = Answers(model, name, self._options, by_json=True)
        self._together.set_max_batch_size(batch_size)
        self._together.set_batch_wait_timeout_s(batch_delay / 1e6)

    async def __call__(self, request: Request) -> Response:
        """Answers a request: GET /ready, POST /infer, both with /versions/1 before or without."""
        place = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
        place = place.removeprefix("/versions/1")
        if place == "/ready" and request.method == "GET":
            return Response(b"")
        if place != "/infer" or request.method != "POST":
            return error_response(RequestError("Not Found", 404))
        try:
            return await self._infer(request)
        except Exception as exc:
            return error_response(refusal(exc))

    async def _infer(self, request: Request) -> Response:
        options = self._options
        length = header_length(header(request.scope, HEADER_LENGTH.lower().encode()))
        body = await read_body(
            request.scope, request.receive, options.request_bytes, options.body_timeout
        )
        read = await asyncio.to_thread(decode_request, body, length, self._name)
        answer = await self._together(read)
        if isinstance(answer, RequestError):
            raise answer
        return await asyncio.to_thread(infer_answer, answer)

    @serve.batch  # type: ignore[untyped-decorator]
    async def _together(self, requests: list[InferRequest]) -> list[InferResponse | RequestError]:
        """Answers what Ray has put together."""
        return await asyncio.to_thread(self._answers.to, requests)


def application(folder: Path, name: str, batch_size: int, batch_delay: int) -> Any:
    """Returns the application of a model; serve.yaml says how many replicas and the rest.

    Args:
        folder: holds model.onnx or model.engine.
        name: of the model.
        batch_size: most images in one run.
        batch_delay: microseconds that a request waits for others.

    Example:
        app = application(Path("models/net/1"), "net", 8, 0)
    """
    path = str(copied_file(folder))
    return serve.deployment(Model, name="Model").bind(path, name, batch_size, batch_delay)
