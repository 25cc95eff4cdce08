"""Ids, log lines, counts and spans of requests over HTTP."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from sigcam.serve.observe.logs import LOGGER, configure_logging, log_event
from sigcam.serve.observe.middleware import REQUEST_ID, Observed
from sigcam.serve.observe.records import LastRecord
from sigcam.serve.records import Record

SECRET = "s3cret-image-bytes"


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """What is logged as JSON meanwhile."""
    names = (LOGGER, "uvicorn", "uvicorn.error", "uvicorn.access")
    before = {
        name: (one.handlers, one.propagate, one.level)
        for name in names
        for one in [logging.getLogger(name)]
    }
    stream = io.StringIO()
    configure_logging("json", to=stream)
    yield stream
    for name, (handlers, propagate, level) in before.items():
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def answering(
    status: int | None, model: str = "", error: Exception | None = None
) -> Callable[..., Awaitable[None]]:
    """An application that answers with a status, or not at all."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope[REQUEST_ID]
        if model:
            now = time.perf_counter()
            record = Record(
                model, "1", images=1, status=status or 499,
                started=now, ran=now + 0.25, backend=0.25,
            )  # fmt: skip
            LastRecord().request_done(record)
        if error is not None:
            raise error
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    return app


def call(app: Any, path: str = "/v2/models/cat/infer", **headers: str) -> dict[str, str]:
    """Sends a request to an application; returns the headers of the answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": SECRET.encode(), "more_body": False}

    given = {"authorization": f"Bearer {SECRET}", **headers}
    scope = {
        "type": "http", "method": "POST", "path": path, "query_string": SECRET.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in given.items()],
        "client": ("127.0.0.1", 1),
    }  # fmt: skip
    asyncio.run(app(scope, receive, send))
    return {k.decode(): v.decode() for k, v in sent[0]["headers"]} if sent else {}


def logged(lines: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.getvalue().splitlines()]


def test_a_given_id_comes_back_and_stands_in_the_log(lines: io.StringIO) -> None:
    app = Observed(answering(200, "cat"))
    assert call(app, x_request_id="a-7/b")["x-request-id"] == "a-7/b"
    (line,) = logged(lines)
    assert line["request_id"] == "a-7/b"
    assert (line["model"], line["version"], line["status"]) == ("cat", "1", 200)
    assert line["backend_seconds"] == 0.25
    assert 0 <= line["seconds"] < 5


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\nb", "naïve", "a\x1b[2Jb"])
def test_an_id_that_could_break_a_line_is_replaced(given: str, lines: io.StringIO) -> None:
    made = call(Observed(answering(200)), x_request_id=given)["x-request-id"]
    assert len(made) == 32
    assert logged(lines)[0]["request_id"] == made


def test_ids_of_our_own_differ() -> None:
    app = Observed(answering(200))
    assert call(app)["x-request-id"] != call(app)["x-request-id"]


@pytest.mark.parametrize("error", [None, ValueError(SECRET)])
def test_nothing_that_was_sent_is_logged(error: Exception | None, lines: io.StringIO) -> None:
    app = Observed(answering(200, "cat", error))
    if error is None:
        call(app)
    else:
        with pytest.raises(ValueError):
            call(app)
        try:
            raise error
        except ValueError as exc:
            log_event("the request failed", logging.ERROR, exc_info=exc)
        assert "ValueError" in lines.getvalue()
        assert "test_observed.py" in lines.getvalue()
    assert SECRET not in lines.getvalue()


def test_a_path_cant_begin_a_line(lines: io.StringIO) -> None:
    configure_logging("text", to=lines)
    call(Observed(answering(404)), path="/v2/models/a\nb\x1b[2J")
    assert len(lines.getvalue().splitlines()) == 1
    assert "\x1b" not in lines.getvalue()
    assert "/v2/models/a\\nb" in lines.getvalue()


def test_a_client_that_went_has_a_status_of_its_own(lines: io.StringIO) -> None:
    call(Observed(answering(None)))
    call(Observed(answering(None, "cat")))
    assert [line["status"] for line in logged(lines)] == [499, 499]


def test_probes_dont_fill_the_log(lines: io.StringIO) -> None:
    call(Observed(answering(200)), path="/v2/health/ready")
    call(Observed(answering(200)), path="/metrics")
    assert logged(lines) == []
    call(Observed(answering(503)), path="/v2/health/ready")
    assert [line["status"] for line in logged(lines)] == [503]


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_spans_are_children_of_the_clients_and_have_the_stages() -> None:
    trace = pytest.importorskip("opentelemetry.sdk.trace", reason="needs opentelemetry-sdk")
    from opentelemetry import trace as api
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from sigcam.serve.observe.tracing import find_tracer

    exporter = InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    api.set_tracer_provider(provider)
    tracer = find_tracer()
    assert tracer is not None

    call(Observed(answering(500, "cat"), tracer), traceparent=TRACEPARENT)
    call(Observed(answering(200), tracer), traceparent="no such thing")
    backend, request, lonely = exporter.get_finished_spans()
    assert f"{request.context.trace_id:032x}" == TRACEPARENT[3:35]
    assert f"{request.parent.span_id:016x}" == TRACEPARENT[36:52]
    assert request.attributes["sigcam.model"] == "cat"
    assert request.attributes["http.response.status_code"] == 500
    assert not request.status.is_ok
    assert (backend.name, backend.parent.span_id) == ("backend", request.context.span_id)
    assert backend.end_time - backend.start_time == pytest.approx(0.25e9, rel=1e-3)
    assert lonely.parent is None
    assert SECRET not in "".join(one.to_json() for one in exporter.get_finished_spans())


WITHOUT = """
import sys
{block}
from sigcam.serve.observe.tracing import find_tracer
print(find_tracer(), [one for one in sys.modules if one.startswith("opentelemetry")])
"""
BLOCK = """
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: (
    None if name == "opentelemetry" else find(name))
"""


@pytest.mark.parametrize("block", ["", BLOCK])
def test_nothing_of_opentelemetry_is_loaded_unless_asked_for(block: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(block=block)],
        env={"PATH": ""}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == "None []\n", done.stderr


def test_a_collector_without_the_package_is_an_error() -> None:
    code = WITHOUT.format(block=BLOCK)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert 'pip install "sigcam[serve-otel]"' in done.stderr
