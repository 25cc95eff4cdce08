"""How runs share the processors: by what was asked for, and by what computes."""

from __future__ import annotations

import os
import threading

import pytest

from sigcam.runtime.backends.base import BackendOptions
from sigcam.serve import served
from sigcam.serve.options import ServeOptions
from sigcam.serve.priority import in_background, yield_to_others
from sigcam.serve.runs import Runs, runs_by_backend, runs_by_callers
from sigcam.serve.served import BackendChoice

on_linux = pytest.mark.skipif(os.uname().sysname != "Linux", reason="priorities of threads")


@pytest.mark.parametrize(
    ("cpus", "threads", "options", "wanted"),
    [
        (1, None, {}, Runs(1, 1, None)),
        (2, None, {}, Runs(2, 1, 1)),
        (3, None, {}, Runs(2, 8, 2)),
        (4, None, {}, Runs(2, 8, 3)),
        (12, None, {}, Runs(3, 8, 10)),
        (64, None, {}, Runs(16, 8, 49)),
        (2, 2, {}, Runs(1, 8, 2)),
        (8, 1, {}, Runs(1, 1, 1)),
        (8, 1, {"parallel_runs": 8}, Runs(8, 1, 1)),
        (2, None, {"batch_size": 4}, Runs(2, 4, 1)),
        (2, None, {"parallel_runs": 3}, Runs(3, 1, 1)),
        (8, None, {"parallel_runs": 1}, Runs(1, 8, None)),
    ],
)
def test_threads_that_call(cpus, threads, options, wanted):
    found = runs_by_callers(ServeOptions(**options), threads, cpus)
    assert found == wanted
    if threads is None and cpus >= found.parallel > 1:
        assert found.threads is not None
        assert found.threads - 1 + found.parallel == cpus  # all processors work, none twice


def test_others():
    assert runs_by_backend(ServeOptions()) == Runs(1, 8)
    assert runs_by_backend(ServeOptions(batch_size=3, parallel_runs=2)) == Runs(2, 3)


@pytest.mark.parametrize(
    ("backend", "asked", "threads"),
    [("ort", None, 1), ("ort", 3, 3), ("auto", None, 1), ("openvino", None, None)],
)
def test_a_backend_is_told_its_threads(artifact, monkeypatch, backend, asked, threads):
    if backend == "openvino":
        pytest.importorskip("openvino")
    told = []
    opens = served.ExportedModel.open

    def opened(source, name, options, **more):
        told.append(options.threads)
        return opens(source, name, options, **more)

    monkeypatch.setattr(served.ExportedModel, "open", opened)
    monkeypatch.setattr("sigcam.serve.runs.thread_limit", lambda: 2)
    model, runs = BackendChoice(backend, BackendOptions(threads=asked)).open(
        str(artifact), ServeOptions()
    )
    model.close()
    assert told == [threads]
    assert runs.parallel == (2 if threads == 1 else 1)


@on_linux
def test_threads_that_run_models_are_nice(serve, artifact):
    client = serve(f"tiny={artifact}", options=ServeOptions(niceness=7, parallel_runs=2))
    model = client.service.models.get("tiny")
    model._lane("one pass")
    found = [one for one in threading.enumerate() if one.name.startswith("sigcam-tiny-one-pass")]
    assert len(found) == 2
    for one in found:
        assert os.getpriority(os.PRIO_PROCESS, one.native_id) == 7
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == 0


@on_linux
def test_a_thread_never_gets_a_higher_priority():
    def twice():
        yield_to_others(5)
        yield_to_others(2)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    assert in_background(twice, niceness=1) == 5


def test_what_is_raised_in_the_background_is_raised():
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0, niceness=1)
