"""A running server's metrics over several processes, its log and its spans."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("starlette", reason="needs the extra serve")

from tests.serve.test_metrics import of
from tests.support.live_server import live_server

pytestmark = pytest.mark.slow


def explain(server, png, headers=(), words=""):
    """Sends an image; each time over a connection of its own."""
    request = urllib.request.Request(
        f"{server.url}/explain{words}", png, {"Content-Type": "image/png", **dict(headers)}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def successes(server):
    return of(server.get("/metrics"), "nv_inference_request_success", model="tiny")


def test_workers_count_together_and_go_on_when_one_dies(artifact, png):
    with live_server(f"tiny={artifact}", "--workers", "2") as server:
        for _ in range(12):
            explain(server, png)
        # Whichever process answers, it tells of all.
        assert {successes(server) for _ in range(8)} == {12}
        text = server.get("/metrics")
        assert of(text, "nv_inference_count", model="tiny") == 12
        assert of(text, "sigcam_batch_images_sum", model="tiny") == 12
        assert of(text, "sigcam_decode_seconds_count", model="tiny") == 12
        assert of(text, "nv_inference_pending_request_count", model="tiny") == 0
        workers = children(server.process.pid)
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        for _ in range(200):
            time.sleep(0.05)
            if len(set(children(server.process.pid)) - {workers[0]}) == 2:
                break
        for _ in range(20):  # the new one isn't there until its model is loaded
            try:
                explain(server, png)
                break
            except (ConnectionError, urllib.error.URLError):
                time.sleep(0.1)
        assert successes(server) == 13


def children(pid):
    """The workers of a server: children of the process that forks them."""
    return [
        worker
        for one in children_of(pid)
        if b"forkserver" in Path(f"/proc/{one}/cmdline").read_bytes()
        for worker in children_of(one)
    ]


def children_of(pid):
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Collector(http.server.BaseHTTPRequestHandler):
    """Keeps the spans that it gets."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    server.bodies = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("options", [[], ["--workers", "2"]])
def test_spans_reach_a_collector(artifact, png, collector, options):
    pytest.importorskip(
        "opentelemetry.exporter.otlp.proto.http", reason="needs the extra serve-otel"
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
    )

    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01", "X-Request-Id": "a-7"}
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    with live_server(f"tiny={artifact}", *options, environ=environ) as server:
        explain(server, png, headers)
    spans = {}
    for path, body in collector.bodies:
        assert path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            for scope in group.scope_spans:
                spans |= {one.name: one for one in scope.spans if one.trace_id.hex() == trace}
    assert set(spans) == {"POST /explain", "decode", "queue", "backend", "map", "encode"}
    request = spans.pop("POST /explain")
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    told = {one.key: one.value for one in request.attributes}
    assert told["sigcam.model"].string_value == "tiny"
    assert told["sigcam.request_id"].string_value == "a-7"
    for one in spans.values():
        assert one.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= one.start_time_unix_nano
        assert one.start_time_unix_nano <= one.end_time_unix_nano
        assert one.end_time_unix_nano <= request.end_time_unix_nano + 1000


def test_the_log_tells_of_each_request_and_of_no_contents(artifact, png):
    with live_server(f"tiny={artifact}", "--log-format", "json") as server:
        explain(server, png, {"X-Request-Id": "good"}, "?classes=red")
        with pytest.raises(urllib.error.HTTPError):
            explain(server, b"no image, SECRET", {"X-Request-Id": "bad"})
        (good,) = server.logged(request_id="good")
        assert (good["level"], good["status"], good["model"], good["images"]) == (
            "info", 200, "tiny", 1,
        )  # fmt: skip
        assert good["seconds"] >= good["backend_seconds"] > 0
        (bad,) = server.logged(request_id="bad")
        assert bad["status"] == 400
        server.get("/v2/health/ready")
        text = "".join(server.log)
        assert "SECRET" not in text
        assert "classes=red" not in text
        assert "/v2/health" not in text
