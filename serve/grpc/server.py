"""The port of gRPC: opened in the event loop that answers HTTP, and closed with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2_grpc
from tritonclient.grpc import service_pb2_grpc

from sigcam.core.errors import UsageError
from sigcam.serve.grpc.health import Health
from sigcam.serve.grpc.service import PACKAGE, InferenceService
from sigcam.serve.observe.tracing import Tracer
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.room import room_for
from sigcam.serve.runs import runs_by_callers
from sigcam.serve.service import Service

__all__ = ["GrpcSettings", "start_grpc"]

_SPARE = 1 << 20
"""Bytes of a message beside its tensors."""

_SPARE_CALLS = 100
"""Calls that are no inference, or are about to be refused."""


@dataclass(frozen=True)
class GrpcSettings:
    """Where and how a server listens for gRPC.

    Attributes:
        address: address and port, with a colon between.
        shared: whether several processes open the port.
        token: that calls must bear; None lets all in.
        certificate: file of the certificate for TLS; None for none.
        key: file of its key; None where the certificate's file holds it.
        client_ca: file of the authorities whose certificates clients must have; None asks for none.
    """

    address: str
    shared: bool = False
    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


class _Tolerant(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Hands bytes that are no message on as an error, for our service to word and to log it.

    gRPC's own answer would be UNKNOWN, with the name of a Python class.
    """

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Returns the handler of a call."""
        handler = await continuation(details)
        if handler is None or not details.method.startswith(f"/{PACKAGE}/"):
            return handler
        return handler._replace(request_deserializer=_tolerant(handler.request_deserializer))


def _tolerant(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return RequestError(
                "the message can't be read: it isn't what this method takes, or it was cut"
            )

    return read


async def start_grpc(
    service: Service, settings: GrpcSettings, tracer: Tracer | None
) -> grpc.aio.Server:
    """Starts to answer calls, in the running event loop.

    Args:
        service: answers.
        settings: where and how to listen.
        tracer: makes spans; None for none.

    Returns:
        The server; `await server.stop(seconds)` ends it.

    Raises:
        UsageError: the port is taken, or a file for TLS can't be used.

    Example:
        server = await start_grpc(service, GrpcSettings("127.0.0.1:8001"), None)
    """
    models = max(1, len(service.models.index()))
    room = room_for(runs_by_callers(service.options), service.options)  # none has more
    server = grpc.aio.server(
        interceptors=[_Tolerant()],
        # A message is read whole before its model is known, so the queues don't bound the memory.
        maximum_concurrent_rpcs=_SPARE_CALLS + 4 * models * room.most,
        options=[
            ("grpc.max_receive_message_length", service.options.request_bytes + _SPARE),
            ("grpc.max_send_message_length", -1),
            # Without it, another server's port would be shared without a word.
            ("grpc.so_reuseport", int(settings.shared)),
        ],
    )
    handler = InferenceService(service, settings.token, tracer)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(handler, server)
    health_pb2_grpc.add_HealthServicer_to_server(Health(service), server)
    credentials = _credentials(settings)
    try:
        if credentials is None:
            port = server.add_insecure_port(settings.address)
        else:
            port = server.add_secure_port(settings.address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise UsageError(
            f"cannot listen for gRPC on {settings.address}; choose another --grpc-port, and "
            "check the files for TLS, if there are any"
        )
    await server.start()
    return server


def _credentials(settings: GrpcSettings) -> grpc.ServerCredentials | None:
    """Reads the files of TLS; None without a certificate."""
    if settings.certificate is None:
        return None
    try:
        certificate = settings.certificate.read_bytes()
        key = certificate if settings.key is None else settings.key.read_bytes()
        roots = None if settings.client_ca is None else settings.client_ca.read_bytes()
    except OSError as exc:
        raise UsageError(f"cannot read a file for TLS: {exc}; check the path") from exc
    if b"ENCRYPTED" in key:
        raise UsageError("gRPC takes no key with a password; give a file without one")
    return grpc.ssl_server_credentials([(key, certificate)], roots, roots is not None)
