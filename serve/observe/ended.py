"""A request that is over, over HTTP or gRPC, as the log and the spans tell of it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sigcam.serve.records import Record

_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True)
class Beginning:
    """The beginning of a request.

    Attributes:
        request_id: names it in the answer and in the log.
        started: the time on the clock of the records, `time.perf_counter`.
        began: the same in seconds since the epoch.

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


@dataclass(frozen=True)
class Ended:
    """A request that is over.

    Attributes:
        beginning: its id, and when it began.
        name: of its span: the method, and the route or the procedure, without what a client chose.
        path: what was asked for.
        status: of its answer, as of HTTP; 499 where the client was gone before.
        seconds: how long it took.
        client: the address that it came from.
        record: its course, where it was for a model.
        headers: `traceparent` and `tracestate`, where it had them.
        attributes: of its span.
        is_probe: whether it is logged only when it fails: probes come every second.
    """

    beginning: Beginning
    name: str
    path: str
    status: int
    seconds: float
    client: str = ""
    record: Record | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    is_probe: bool = False


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
