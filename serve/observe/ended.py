"""A request that is over, over HTTP or gRPC, as the log and the spans tell of it."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sigcam.serve.observe.logs import log_event
from sigcam.serve.observe.stages import stages_of

if TYPE_CHECKING:
    from sigcam.serve.observe.tracing import Tracer
    from sigcam.serve.records import Record

_ID = re.compile(r"[!-~]{1,128}")
_LONGEST = 500


@dataclass(frozen=True)
class Ended:
    """A request that is over.

    Attributes:
        request_id: names it in the answer and in the log.
        name: of its span: the method, and the route or the procedure, without what a client chose.
        path: what was asked for.
        status: of its answer, as of HTTP; 499 where the client was gone before.
        started: its beginning on the clock of the records, `time.perf_counter`.
        began: the same in seconds since the epoch.
        seconds: how long it took.
        client: the address that it came from.
        record: its course, where it was for a model.
        headers: `traceparent` and `tracestate`, where it had them.
        attributes: of its span.
        is_probe: whether it is logged only when it fails: probes come every second.
    """

    request_id: str
    name: str
    path: str
    status: int
    started: float
    began: float
    seconds: float
    client: str = ""
    record: Record | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_probe: bool = False


@dataclass(frozen=True)
class Beginning:
    """The beginning of a request: its id, and the time on both clocks.

    Example:
        >>> Beginning("a7").request_id
        'a7'
    """

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    began: float = field(default_factory=time.time)

    @property
    def seconds(self) -> float:
        """Returns how long ago that was."""
        return time.perf_counter() - self.started


def request_id(given: str | None) -> str:
    r"""Returns the id that a client gave, or a new one.

    Args:
        given: kept where it is 1 to 128 visible ASCII characters: it comes back in a header and in
            the log, where anything else could end the line.

    Example:
        >>> request_id("a-7"), len(request_id("a\nb"))
        ('a-7', 32)
    """
    kept = given is not None and _ID.fullmatch(given)
    return str(given) if kept else uuid.uuid4().hex


def tell(request: Ended, tracer: Tracer | None) -> None:
    """Writes a request's line of the log, and makes its spans.

    Args:
        request: that is over.
        tracer: makes spans; None for none.

    Example:
        tell(Ended("a7", "GET /metrics", "/metrics", 200, 0.0, 0.0, 0.01), None)
    """
    fields: dict[str, Any] = {
        "request_id": request.request_id,
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
