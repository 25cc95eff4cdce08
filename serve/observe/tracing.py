"""Spans of OpenTelemetry for each request and its stages, where the package is installed.

Nothing of it is imported where it isn't installed or where nobody asked for spans: whoever wants
them names a collector in `OTEL_EXPORTER_OTLP_ENDPOINT`, or starts the server under
`opentelemetry-instrument`, or sets a tracer provider in his own program.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from typing import Any, Protocol

from sigcam.core.errors import UsageError
from sigcam.serve.observe.ended import Ended
from sigcam.serve.observe.stages import stages_of

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


_LAST_MILLISECONDS = 3000
"""How long the end of a server may wait for a collector."""


class Tracer(Protocol):
    """Makes the spans of a request that has ended."""

    def ended(self, request: Ended) -> None:
        """Makes one span for a request and one for each of its stages."""

    def close(self) -> None:
        """Sends what wasn't sent yet."""


def find_tracer() -> Tracer | None:
    """Returns what makes spans, or None where nobody asked for them.

    Call it in the process that answers requests: an exporter has a thread of its own.

    Raises:
        UsageError: a collector is named, and the package that talks to it isn't installed.

    Example:
        >>> find_tracer() is None or hasattr(find_tracer(), "ended")
        True
    """
    if not _wanted():
        return None
    from opentelemetry import trace

    if any(os.environ.get(name) for name in ENDPOINTS) and _is_unset(trace):
        _export(trace)
    return _OpenTelemetry()


def _wanted() -> bool:
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if named is not None and not find_spec("opentelemetry"):
        raise UsageError(
            f"{named} names a collector for spans, but opentelemetry isn't installed; pip install "
            '"sigcam[serve-otel]", or unset the variable'
        )
    return named is not None or "opentelemetry.sdk" in sys.modules


def _is_unset(trace: Any) -> bool:
    return isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def _export(trace: Any) -> None:
    """Sends the spans of this process to the collector that the environment names."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise UsageError(
            f"spans for a collector need {exc.name}, which isn't installed; pip install "
            '"sigcam[serve-otel]"'
        ) from exc
    os.environ.setdefault("OTEL_SERVICE_NAME", "sigcam")
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


class _OpenTelemetry:
    """Makes spans after the fact, from the times of the record.

    So that no span is open while a request moves between threads, and a request costs nothing
    until its answer has gone.
    """

    def __init__(self) -> None:
        from opentelemetry import trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._tracer = trace.get_tracer("sigcam.serve")
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, request: Ended) -> None:
        """Makes the spans of a request that has ended."""
        trace = self._trace
        parent = self._propagator.extract(request.headers)
        known = {"sigcam.request_id": request.beginning.request_id, **request.attributes}
        if request.record is not None:
            known["sigcam.model"] = request.record.model
            known["sigcam.version"] = request.record.version
        began = request.beginning.began
        span = self._tracer.start_span(
            request.name, parent, trace.SpanKind.SERVER, known,
            start_time=_nanoseconds(began),
        )  # fmt: skip
        if request.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        inside = trace.set_span_in_context(span, parent)
        stages = {} if request.record is None else stages_of(request.record)
        for stage, (start, seconds) in stages.items():
            since = _nanoseconds(began + start - request.beginning.started)
            child = self._tracer.start_span(stage, inside, start_time=since)
            child.end(since + _nanoseconds(seconds))
        span.end(_nanoseconds(began + request.seconds))

    def close(self) -> None:
        """Sends what wasn't sent yet; a worker ends without Python's own last calls."""
        flush = getattr(self._trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            flush(_LAST_MILLISECONDS)


def _nanoseconds(seconds: float) -> int:
    return int(1e9 * seconds)
