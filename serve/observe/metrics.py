"""Prometheus metrics: Triton's names where it has one, histograms of the stages beside them.

The values live in the process, or, where several processes serve one port, in files of the folder
that `PROMETHEUS_MULTIPROC_DIR` names. Then every process writes its own file, and whichever of them
is asked gives the sum of all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from sigcam.serve.observe.stages import stages_of
from sigcam.serve.records import Record

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Prometheus' client reads this variable when it is first imported: set it before that."""

_REASONS = {429: "REJECTED", 503: "REJECTED", 499: "CANCELED", 504: "CANCELED"}
REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Why a request failed, in Triton's words: refused at a full queue or while draining, its client
has gone or its deadline has passed, the network failed, and everything else."""

_LABELS = ("model", "version")
_SECONDS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)

_COUNTERS = {
    "nv_inference_request_success": "Inference requests that were answered, one each.",
    "nv_inference_count": "Images that the network ran for.",
    "nv_inference_exec_count": "Runs of the network, of a batch each.",
    "nv_inference_request_duration_us": "Microseconds of answered requests from end to end.",
    "nv_inference_queue_duration_us": "Microseconds that answered requests waited for a batch.",
    "nv_inference_compute_input_duration_us": "Microseconds of reading and preparing images.",
    "nv_inference_compute_infer_duration_us": "Microseconds from first run to end of the last.",
    "nv_inference_compute_output_duration_us": "Microseconds of maps and of encoding answers.",
}
_FAILURES = "nv_inference_request_failure"
_TRITON = {  # which stages Triton counts together
    "nv_inference_queue_duration_us": ("queue",),
    "nv_inference_compute_input_duration_us": ("decode",),
    "nv_inference_compute_infer_duration_us": ("backend",),
    "nv_inference_compute_output_duration_us": ("map", "encode"),
}
_HISTOGRAMS = {
    "decode": "Seconds in which a request's images were read and prepared.",
    "queue": "Seconds that a request waited for a batch.",
    "backend": "Seconds from a request's first run to the end of its last one.",
    "map": "Seconds in which a request's heatmaps, boxes and overlays were made.",
    "encode": "Seconds in which a request's images were encoded and its answer put together.",
}


@dataclass(frozen=True)
class _OfModel:
    """The metrics of a version of a model."""

    counters: Mapping[str, Counter]
    failures: Mapping[str, Counter]
    pending: Gauge
    stages: Mapping[str, Histogram]
    request: Histogram
    batch: Histogram
    run: Histogram


@dataclass(frozen=True)
class _Families:
    """The metrics of a process."""

    counters: Mapping[str, Counter]
    failures: Counter
    pending: Gauge
    stages: Mapping[str, Histogram]
    request: Histogram
    batch: Histogram
    run: Histogram

    def of(self, model: str, version: str) -> _OfModel:
        """Returns those of a version of a model, which are shown from now on."""
        return _OfModel(
            {name: one.labels(model, version) for name, one in self.counters.items()},
            {reason: self.failures.labels(model, version, reason) for reason in REASONS},
            self.pending.labels(model, version),
            {stage: one.labels(model, version) for stage, one in self.stages.items()},
            self.request.labels(model, version),
            self.batch.labels(model, version),
            self.run.labels(model, version),
        )


class Metrics:
    """Counts what the requests of a process did.

    Models are named by what is served, never by what a client wrote: a label of any text that
    comes would let clients fill the memory.

    Example:
        >>> metrics = Metrics()
        >>> metrics.add_model("cat", "1")
        >>> metrics.batch_ran("cat", "1", images=3, seconds=0.01)
        >>> metrics.request_done(Record("cat", "1", arrived=1.0, done=1.25))
        >>> text = metrics.text().decode()
        >>> 'nv_inference_request_success{model="cat",version="1"} 1.0' in text
        True
        >>> 'nv_inference_request_duration_us{model="cat",version="1"} 250000.0' in text
        True
    """

    def __init__(self) -> None:
        """Makes the metrics; in a process of several, after PROMETHEUS_MULTIPROC_DIR is set."""
        self._registry = CollectorRegistry()
        self._families = _families(self._registry)
        self._models: dict[tuple[str, str], _OfModel] = {}

    def add_model(self, model: str, version: str) -> None:
        """Shows a model's metrics from now on, as 0 until something is counted."""
        self._of(model, version)

    def request_waits(self, model: str, version: str, change: int) -> None:
        """Counts requests that wait for their run: 1 more, or with -1 one less."""
        self._of(model, version).pending.inc(change)

    def batch_ran(self, model: str, version: str, images: int, seconds: float) -> None:
        """Counts a run of the network.

        Args:
            model: the model's name.
            version: its version.
            images: in the batch.
            seconds: that the run took.
        """
        found = self._of(model, version)
        found.counters["nv_inference_exec_count"].inc()
        found.counters["nv_inference_count"].inc(images)
        found.batch.observe(images)
        found.run.observe(seconds)

    def request_done(self, record: Record) -> None:
        """Counts a request that is over, where it was for a model that is served."""
        if not record.model:
            return
        found = self._of(record.model, record.version)
        if record.status >= 400:
            found.failures[reason_of(record.status)].inc()
            return
        found.counters["nv_inference_request_success"].inc()
        found.counters["nv_inference_request_duration_us"].inc(1e6 * record.seconds)
        found.request.observe(record.seconds)
        stages = {name: seconds for name, (_, seconds) in stages_of(record).items()}
        for name, parts in _TRITON.items():
            found.counters[name].inc(1e6 * sum(stages.get(part, 0.0) for part in parts))
        for stage, seconds in stages.items():
            found.stages[stage].observe(seconds)

    def _of(self, model: str, version: str) -> _OfModel:
        """Returns a model's metrics, which are looked up once: that takes most of the time."""
        found = self._models.get((model, version))
        if found is None:
            found = self._models[model, version] = self._families.of(model, version)
        return found

    def text(self) -> bytes:
        """Returns all metrics in Prometheus' text format, of all processes where several serve."""
        source: CollectorRegistry | MultiProcessCollector = self._registry
        folder = os.environ.get(FOLDER)
        if folder:
            source = MultiProcessCollector(None, folder)  # type: ignore[no-untyped-call]
        shown = CollectorRegistry()
        shown.register(_Shown(source))
        # The client can write "counter" only for names that end in "_total".
        return re.sub(
            rb"^(# TYPE nv_\w+) untyped$", rb"\1 counter", generate_latest(shown), flags=re.M
        )


def reason_of(status: int) -> str:
    """Returns Triton's word for why a request failed.

    Args:
        status: of its answer, as of HTTP.

    Example:
        >>> [reason_of(status) for status in (429, 499, 500, 400)]
        ['REJECTED', 'CANCELED', 'BACKEND', 'OTHER']
    """
    return _REASONS.get(status, "BACKEND" if status >= 500 else "OTHER")


def forget_process(pid: int, folder: str | Path) -> None:
    """Takes a process that has ended out of what counts living ones; its counts stay.

    Args:
        pid: of the process.
        folder: the one that PROMETHEUS_MULTIPROC_DIR names.

    Example:
        >>> forget_process(1, "no/such/folder")
    """
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


class _Shown:
    """Gives Triton's counters without the "_total" that the client puts behind every counter."""

    def __init__(self, source: CollectorRegistry | MultiProcessCollector) -> None:
        self._source = source

    def collect(self) -> Iterator[Metric]:
        found: Iterable[Metric] = self._source.collect()
        for metric in sorted(found, key=lambda one: one.name):
            kind = "unknown" if metric.name.startswith("nv_") else metric.type
            kind = metric.type if metric.type != "counter" else kind
            shown = Metric(metric.name, metric.documentation, kind)
            # When a counter began is of no use here, and each would be a metric of its own.
            shown.samples = [
                sample._replace(name=sample.name.removesuffix("_total"))
                for sample in metric.samples
                if not sample.name.endswith("_created")
            ]
            yield shown


def _families(registry: CollectorRegistry) -> _Families:
    pending = "Requests that wait for their run."
    failures = "Inference requests that failed, by Triton's words for why."
    return _Families(
        counters={
            name: Counter(name, text, _LABELS, registry=registry)
            for name, text in _COUNTERS.items()
        },
        failures=Counter(_FAILURES, failures, (*_LABELS, "reason"), registry=registry),
        pending=Gauge(
            "nv_inference_pending_request_count",
            pending,
            _LABELS,
            registry=registry,
            multiprocess_mode="livesum",
        ),
        stages={
            stage: Histogram(
                f"sigcam_{stage}_seconds", text, _LABELS, registry=registry, buckets=_SECONDS
            )
            for stage, text in _HISTOGRAMS.items()
        },
        request=Histogram(
            "sigcam_request_seconds",
            "Seconds of answered requests from end to end.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS,
        ),
        run=Histogram(
            "sigcam_run_seconds",
            "Seconds of a run of the network, of a batch each.",
            _LABELS,
            registry=registry,
            buckets=_SECONDS,
        ),
        batch=Histogram(
            "sigcam_batch_images",
            "Images in a run of the network.",
            _LABELS,
            registry=registry,
            buckets=_IMAGES,
        ),
    )
