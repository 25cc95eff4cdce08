"""Prometheus metrics: Triton's names and labels, the right sums, one process or several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="needs the extra serve")

from prometheus_client.parser import text_string_to_metric_families

from sigcam.serve.observe.metrics import REASONS, Metrics
from sigcam.serve.observe.stages import stages_of
from sigcam.serve.records import Record

TRITON = {
    "nv_inference_request_success": "counter",
    "nv_inference_request_failure": "counter",
    "nv_inference_count": "counter",
    "nv_inference_exec_count": "counter",
    "nv_inference_request_duration_us": "counter",
    "nv_inference_queue_duration_us": "counter",
    "nv_inference_compute_input_duration_us": "counter",
    "nv_inference_compute_infer_duration_us": "counter",
    "nv_inference_compute_output_duration_us": "counter",
    "nv_inference_pending_request_count": "gauge",
}


def values(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and its labels, read by Prometheus' own parser."""
    return {
        # This parser puts "_total" behind the names of counters, as they stand or not.
        (sample.name.removesuffix("_total"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def of(text: bytes, name: str, **labels: str) -> float:
    wanted = {"model": "cat", "version": "1", **labels}
    return values(text)[name, tuple(sorted(wanted.items()))]


def test_a_model_has_all_of_tritons_metrics_from_the_beginning() -> None:
    metrics = Metrics()
    metrics.add_model("cat", "1")
    text = metrics.text()
    kinds = dict(line.split()[2:4] for line in text.decode().splitlines() if "# TYPE" in line)
    for name, kind in TRITON.items():
        assert kinds[name] == kind
        for reason in REASONS if name.endswith("failure") else [None]:
            assert of(text, name, **({} if reason is None else {"reason": reason})) == 0
    assert b"_created" not in text
    assert not [name for name in kinds if name.startswith("nv_") and name.endswith("_total")]


def passed(**fields: Any) -> Record:
    """A request that came at 10 s and passed every stage; its answer was done at 10.02 s."""
    times = {
        "arrived": 10.0, "received": 10.001, "decoded": 10.003, "started": 10.006, "ran": 10.012,
        "done": 10.020, "backend": 0.005, "map_seconds": 0.006, "encode_seconds": 0.002,
        "images": 1,
    }  # fmt: skip
    return Record("cat", "1", **{**times, **fields})


def test_each_answer_counts_once_and_its_stages_as_triton_adds_them() -> None:
    metrics = Metrics()
    metrics.request_done(passed())
    metrics.request_done(passed(started=10.010))
    text = metrics.text()
    assert of(text, "nv_inference_request_success") == 2
    assert of(text, "nv_inference_request_duration_us") == pytest.approx(40_000)
    assert of(text, "nv_inference_queue_duration_us") == pytest.approx(10_000)
    assert of(text, "nv_inference_compute_input_duration_us") == pytest.approx(4_000)
    assert of(text, "nv_inference_compute_infer_duration_us") == pytest.approx(8_000)
    assert of(text, "nv_inference_compute_output_duration_us") == pytest.approx(16_000)
    assert of(text, "sigcam_backend_seconds_count") == 2
    assert of(text, "sigcam_backend_seconds_bucket", le="0.0025") == 1
    assert of(text, "sigcam_backend_seconds_sum") == pytest.approx(0.008)
    assert of(text, "sigcam_map_seconds_sum") == pytest.approx(0.008)
    assert of(text, "sigcam_encode_seconds_sum") == pytest.approx(0.008)
    assert of(text, "sigcam_request_seconds_count") == 2


def test_what_a_request_didnt_reach_isnt_counted() -> None:
    assert stages_of(Record("cat", "1", arrived=1, received=2, done=3, status=400)) == {}
    assert list(stages_of(passed(ran=0, status=503))) == ["decode", "queue"]
    assert list(stages_of(passed())) == ["decode", "queue", "backend", "map", "encode"]


def test_batches_give_the_mean_batch_size_as_inferences_over_runs() -> None:
    metrics = Metrics()
    for images in (1, 8, 3):
        metrics.batch_ran("cat", "1", images, 0.004)
    text = metrics.text()
    assert of(text, "nv_inference_count") == 12
    assert of(text, "nv_inference_exec_count") == 3
    assert of(text, "sigcam_batch_images_bucket", le="4.0") == 2
    assert of(text, "sigcam_batch_images_sum") == 12
    assert of(text, "sigcam_run_seconds_sum") == pytest.approx(0.012)


@pytest.mark.parametrize(
    ("status", "reason"),
    [(429, "REJECTED"), (503, "REJECTED"), (400, "OTHER"), (500, "BACKEND"), (499, "CANCELED")],
)
def test_failures_have_a_reason_and_dont_count_as_answers(status: int, reason: str) -> None:
    metrics = Metrics()
    metrics.add_model("cat", "1")
    metrics.request_done(passed(status=status))
    text = metrics.text()
    for one in REASONS:
        assert of(text, "nv_inference_request_failure", reason=one) == (one == reason)
    assert of(text, "nv_inference_request_success") == 0
    assert of(text, "nv_inference_request_duration_us") == 0
    assert of(text, "sigcam_backend_seconds_count") == 0


def test_requests_for_no_model_are_counted_nowhere() -> None:
    metrics = Metrics()
    metrics.request_done(Record("", "", status=404, error="unknown model 'whatever'"))
    assert not values(metrics.text())


def test_the_queue_is_counted_up_and_down() -> None:
    metrics = Metrics()
    metrics.request_waits("cat", "1", 1)
    metrics.request_waits("cat", "1", 1)
    metrics.request_waits("cat", "1", -1)
    assert of(metrics.text(), "nv_inference_pending_request_count") == 1


def test_models_names_are_escaped() -> None:
    metrics = Metrics()
    name = 'a"b\\c\nd'
    metrics.batch_ran(name, "1", 2, 0.1)
    assert of(metrics.text(), "nv_inference_count", model=name) == 2


WORKER = """
import sys
from sigcam.serve.observe.metrics import Metrics
from sigcam.serve.records import Record
metrics = Metrics()
metrics.add_model("cat", "1")
metrics.request_waits("cat", "1", 1)
metrics.request_done(Record("cat", "1", done=float(sys.argv[1])))
metrics.batch_ran("cat", "1", int(sys.argv[2]), 0.004)
print(flush=True)
sys.stdin.read()
"""

READER = """
import sys
from pathlib import Path
from sigcam.serve.observe.metrics import Metrics, forget_process
if len(sys.argv) > 1:
    forget_process(int(sys.argv[1]), sys.argv[2])
sys.stdout.buffer.write(Metrics().text())
"""


@pytest.mark.slow
def test_any_of_several_processes_gives_the_sum_and_the_dead_ones_counts_stay(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def read(*arguments: str) -> bytes:
        return subprocess.run(
            [sys.executable, "-c", READER, *arguments],
            env=environment, check=True, capture_output=True, timeout=60,
        ).stdout  # fmt: skip

    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, seconds, images],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seconds, images in (("0.02", "3"), ("0.03", "5"))
    ]  # fmt: skip
    try:
        for one in workers:
            assert one.stdout is not None
            one.stdout.readline()
        text = read()
        assert of(text, "nv_inference_request_success") == 2
        assert of(text, "nv_inference_request_duration_us") == pytest.approx(50_000)
        assert of(text, "nv_inference_count") == 8
        assert of(text, "sigcam_batch_images_bucket", le="4.0") == 1
        assert of(text, "sigcam_batch_images_bucket", le="+Inf") == 2
        assert of(text, "nv_inference_pending_request_count") == 2
        workers[0].kill()
        workers[0].wait()
        text = read(str(workers[0].pid), str(tmp_path))
        assert of(text, "nv_inference_request_success") == 2  # a counter never falls
        assert of(text, "nv_inference_pending_request_count") == 1  # nobody waits in it any more
    finally:
        for one in workers:
            one.kill()
            one.communicate()
