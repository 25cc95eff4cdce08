"""GRPCInferenceService: the same models, batches, limits and token as over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial, wraps
from typing import Any

import grpc
from google.protobuf import json_format
from tritonclient.grpc import service_pb2, service_pb2_grpc

from sigcam.serve.bearer import bears
from sigcam.serve.grpc.messages import message_of, request_of
from sigcam.serve.observe.ended import Beginning, Ended, request_id
from sigcam.serve.observe.records import keep_record
from sigcam.serve.observe.telling import tell
from sigcam.serve.observe.tracing import Tracer
from sigcam.serve.protocol.errors import GONE, RequestError
from sigcam.serve.protocol.metadata import server_metadata
from sigcam.serve.service import Service, refusal

__all__ = ["PACKAGE", "InferenceService", "code_of"]

PACKAGE = "inference.GRPCInferenceService"
"""The service's name, with its package's."""

_OPEN = ("ServerLive", "ServerReady")
_CODES = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.UNAVAILABLE,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.UNAVAILABLE,
    GONE: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.UNAVAILABLE,
}
_UNLOAD_PARAMETERS = ("unload_dependents",)
"""Parameters that are taken: no model depends on another one, so there is nothing to unload."""


def code_of(status: int) -> grpc.StatusCode:
    """Returns gRPC's status for that of HTTP, as Triton chooses it.

    Example:
        >>> code_of(404).name, code_of(400).name, code_of(429).name, code_of(500).name
        ('NOT_FOUND', 'INVALID_ARGUMENT', 'UNAVAILABLE', 'INTERNAL')
    """
    other = grpc.StatusCode.INTERNAL if status >= 500 else grpc.StatusCode.INVALID_ARGUMENT
    return _CODES.get(status, other)


class _Call:
    """A call from its beginning: who may ask, its id, and its end in the log."""

    def __init__(self, service: InferenceService, name: str, context: Any) -> None:
        metadata = context.invocation_metadata() or ()
        self.headers = {key: one for key, one in metadata if isinstance(one, str)}
        self.beginning = Beginning(request_id(self.headers.get("x-request-id")))
        self.records = keep_record()
        self.status = GONE  # until it is answered
        self._service, self._name, self._context = service, name, context

    async def check(self) -> None:
        """Gives the call its id, and refuses it without the token."""
        await self._context.send_initial_metadata((("x-request-id", self.beginning.request_id),))
        token = self._service.token
        if token is None or self._name in _OPEN:
            return
        if not bears(self.headers.get("authorization"), token):
            raise RequestError(
                "a bearer token is wanted: send the metadata authorization: Bearer TOKEN", 401
            )

    async def refuse(self, error: RequestError) -> None:
        """Ends the call with an error."""
        self.status = error.status
        trailing: tuple[tuple[str, str], ...] = ()
        if error.retry_after is not None:  # what clients with a retry policy go by
            trailing = (("grpc-retry-pushback-ms", str(1000 * error.retry_after)),)
        await self._context.abort(code_of(error.status), str(error), trailing)

    def end(self) -> None:
        """Tells the log and the spans."""
        name = f"{PACKAGE}/{self._name}"
        code = "OK" if self.status == 200 else code_of(self.status).name
        peer = self._context.peer() or ""
        tell(
            Ended(
                beginning=self.beginning,
                name=name,
                path=f"/{name}",
                status=self.status,
                seconds=self.beginning.seconds,
                client=peer,
                record=self.records[0] if self.records else None,
                headers={
                    key: self.headers[key]
                    for key in ("traceparent", "tracestate")
                    if key in self.headers
                },
                attributes={
                    "rpc.system": "grpc", "rpc.service": PACKAGE, "rpc.method": self._name,
                    "rpc.response.status_code": code,
                },
                is_probe=self._name in (*_OPEN, "ModelReady"),
            ),
            self._service.tracer,
        )  # fmt: skip


Method = Callable[[Any, Any, Any], Awaitable[Any]]


def _answered(method: Method) -> Method:
    """Wraps a method that answers one message: token, id, errors and log."""

    @wraps(method)
    async def call(self: InferenceService, request: Any, context: Any) -> Any:
        found = _Call(self, method.__name__, context)
        try:
            await found.check()
            if isinstance(request, RequestError):
                raise request
            answer = await method(self, request, context)
            found.status = 200
        except asyncio.CancelledError:
            raise
        except BaseException as exc:
            await found.refuse(refusal(exc))
        else:
            return answer
        finally:
            found.end()

    return call


class InferenceService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers calls. What isn't here, such as shared memory, is UNIMPLEMENTED.

    Attributes:
        token: that calls must bear; None lets all in.
        tracer: makes spans; None for none.
    """

    def __init__(self, service: Service, token: str | None, tracer: Tracer | None) -> None:
        """Takes a service."""
        self.token, self.tracer = token, tracer
        self._service = service

    @_answered
    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Says that the server runs."""
        return service_pb2.ServerLiveResponse(live=True)

    @_answered
    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Says whether requests should come."""
        return service_pb2.ServerReadyResponse(ready=self._service.ready)

    @_answered
    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Says whether a model is ready; one that isn't there isn't."""
        try:
            self._service.models.get(request.name, request.version or None)
        except RequestError:
            return service_pb2.ModelReadyResponse(ready=False)
        return service_pb2.ModelReadyResponse(ready=not self._service.draining)

    @_answered
    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Tells of the server."""
        return json_format.ParseDict(server_metadata(), service_pb2.ServerMetadataResponse())

    @_answered
    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Tells of a model."""
        found = self._service.models.metadata(request.name, request.version or None)
        return json_format.ParseDict(found, service_pb2.ModelMetadataResponse())

    @_answered
    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """Tells how a model is run, as Triton words it."""
        found = self._service.models.configuration(request.name, request.version or None)
        return json_format.ParseDict({"config": found}, service_pb2.ModelConfigResponse())

    @_answered
    async def ModelStatistics(self, request: Any, context: Any) -> Any:
        """Tells what models did."""
        found = self._service.models.chosen(request.name or None, request.version or None)
        told = [self._service.statistics.of(one.name, one.version) for one in found]
        return json_format.ParseDict({"model_stats": told}, service_pb2.ModelStatisticsResponse())

    @_answered
    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Infers."""
        return await self._infer(request)

    async def ModelStreamInfer(
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        """Infers for each request of a stream; one that fails is told of, and the next one comes.

        Each request counts by itself; the stream has one line in the log.
        """
        call = _Call(self, "ModelStreamInfer", context)
        try:
            await call.check()
            async for request in requests:
                try:
                    if isinstance(request, RequestError):
                        raise request
                    answer = await self._infer(request)
                except RequestError as exc:
                    yield service_pb2.ModelStreamInferResponse(error_message=str(exc))
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=answer)
            call.status = 200
        except RequestError as exc:
            await call.refuse(exc)
        finally:
            call.end()

    @_answered
    async def RepositoryIndex(self, request: Any, context: Any) -> Any:
        """Lists the models."""
        _refuse_repository(request)
        found = await asyncio.to_thread(self._service.models.index, ready=request.ready)
        return json_format.ParseDict({"models": found}, service_pb2.RepositoryIndexResponse())

    @_answered
    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Loads a model."""
        await self._change(self._service.load, request, ())
        return service_pb2.RepositoryModelLoadResponse()

    @_answered
    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Unloads a model."""
        await self._change(self._service.unload, request, _UNLOAD_PARAMETERS)
        return service_pb2.RepositoryModelUnloadResponse()

    async def _change(
        self, action: Callable[[str], None], request: Any, known: Iterable[str]
    ) -> None:
        _refuse_repository(request)
        for name in request.parameters:
            if name not in known:
                raise RequestError(
                    f"the parameter '{name[:40]}' isn't known; models are loaded as the server was "
                    "started, so send none"
                )
        await asyncio.to_thread(action, request.model_name)

    async def _infer(self, request: Any) -> Any:
        with self._service.admit(request.model_name, request.model_version or None) as ticket:
            return await self._service.infer(ticket, partial(request_of, request), message_of)


def _refuse_repository(request: Any) -> None:
    if request.repository_name:
        raise RequestError("the server has one repository, without a name; leave the name out")
