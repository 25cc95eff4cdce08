"""gRPC's own health checks (grpc.health.v1), which Kubernetes' probes and load balancers ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sigcam.serve.grpc.service import PACKAGE
from sigcam.serve.service import Service

__all__ = ["Health"]

_NAMES = ("", PACKAGE)
"""What may be asked for: the server as a whole, and its only service beside this one."""

_OFTEN = 0.5
"""Seconds between two looks for those who watch."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says SERVING while requests should come, as `/v2/health/ready` does, and asks for no token.

    Example:
        health_pb2_grpc.add_HealthServicer_to_server(Health(service), server)
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802 (gRPC's name)
        """Says it once; NOT_FOUND for another name than the two that are known."""
        if request.service not in _NAMES:
            await context.abort(
                grpc.StatusCode.NOT_FOUND, f"unknown service; ask for {PACKAGE}, or for no name"
            )
        return self._told(request.service)

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Says it now and whenever it changes; SERVICE_UNKNOWN for other names."""
        del context
        last = None
        while not self._service.closing:
            now = self._told(request.service)
            if now != last:
                yield now
                last = now
            await asyncio.sleep(_OFTEN)

    def _told(self, name: str) -> Any:
        if name not in _NAMES:
            word = "SERVICE_UNKNOWN"
        else:
            word = "SERVING" if self._service.ready else "NOT_SERVING"
        status = health_pb2.HealthCheckResponse.ServingStatus.Value(word)
        return health_pb2.HealthCheckResponse(status=status)
