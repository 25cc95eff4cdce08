"""Telling of a request that is over: its line in the log, and its spans."""

from __future__ import annotations

import logging
from typing import Any

from sigcam.serve.observe.ended import Ended
from sigcam.serve.observe.logs import log_event
from sigcam.serve.observe.stages import stages_of
from sigcam.serve.observe.tracing import Tracer
from sigcam.serve.records import Record

_LONGEST = 500
"""Characters of a path."""


def tell(request: Ended, tracer: Tracer | None) -> None:
    """Writes a request's line of the log, and makes its spans.

    Args:
        request: that is over.
        tracer: makes spans; None for none.

    Example:
        tell(Ended(Beginning("a7"), "GET /metrics", "/metrics", 200, 0.01), None)
    """
    fields: dict[str, Any] = {
        "request_id": request.beginning.request_id,
        "name": request.name,
        "path": request.path[:_LONGEST],
        "status": request.status,
        "seconds": round(request.seconds, 6),
        "client": request.client,
    }
    if request.record is not None:
        fields |= _of_the_model(request.record)
    level = logging.ERROR if request.status >= 500 else logging.INFO
    if request.is_probe and request.status < 400:
        level = logging.DEBUG
    log_event("request", level, **fields)
    if tracer is not None:
        tracer.ended(request)


def _of_the_model(record: Record) -> dict[str, Any]:
    stages = {
        f"{name}_seconds": round(seconds, 6) for name, (_, seconds) in stages_of(record).items()
    }
    return {
        "model": record.model, "version": record.version, "images": record.images, **stages,
    }  # fmt: skip
