"""NVTX ranges of the backends on a GPU, seen by a stand-in for the package nvtx."""

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.core.errors import BackendError
from sigcam.images.preprocess import place
from sigcam.runtime.backends.base import HeatmapRequest
from sigcam.runtime.backends.cuda import ranges
from tests.support.device_doubles import CpuStream, bound_on_cpu
from tests.support.tiny import tiny_spec

FEEDS = {"image": np.zeros((2, 56, 56, 3), np.uint8), "class_ids": np.array([[0], [1]])}
SPEC = tiny_spec(profile="split")
REQUEST = HeatmapRequest(tuple(place(SPEC.preprocessing, 40, 50) for _ in range(2)), SPEC.nwc)


@pytest.fixture
def seen(monkeypatch):
    """What was marked, as paths of names; nothing may stay open."""
    opened, found = [], []

    @contextmanager
    def annotate(message, domain):
        assert domain == "sigcam"
        opened.append(message)
        found.append("/".join(opened))
        try:
            yield
        finally:
            opened.pop()

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    ranges._nvtx.cache_clear()
    yield found
    ranges._nvtx.cache_clear()
    assert opened == []


def test_onnx_runtime(seen, monkeypatch, make_artifact):
    backend = bound_on_cpu(make_artifact(profile="split"), CpuStream(monkeypatch))
    backend.infer_heatmaps(FEEDS, ["logits"], REQUEST)
    parts = ("inputs", "network", "heatmaps", "wait", "results")
    assert seen == ["bound", *(f"bound/{part}" for part in parts)]
    with pytest.raises(BackendError):
        backend.infer({**FEEDS, "class_ids": np.array([[99], [0]])})
    backend.close()


def test_tensorrt(seen, machine, feeds):
    backend = machine.open()
    for turn in range(3):
        seen.clear()
        backend.infer_heatmaps(feeds(2), ["logits"], REQUEST)
        network = "network (graph)" if turn == 2 else "network"
        parts = ("inputs", network, "heatmaps", "wait", "results")
        assert seen == ["tensorrt", *(f"tensorrt/{part}" for part in parts)]
    machine.module.fails = True
    with pytest.raises(BackendError):
        backend.infer(feeds(3))


def test_without_the_package_there_are_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    ranges._nvtx.cache_clear()
    with ranges.named("inputs") as nothing:
        assert nothing is None
    ranges._nvtx.cache_clear()


def test_the_real_package():
    pytest.importorskip("nvtx")
    ranges._nvtx.cache_clear()
    with ranges.named("inputs"), ranges.named("inner"):
        pass
