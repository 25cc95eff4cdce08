"""A machine with a GPU and TensorRT, as far as the runtime can see."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.cuda import heatmaps as device_heatmaps
from sigcam.runtime.backends.tensorrt import backend as backend_module
from sigcam.runtime.backends.tensorrt import executor as executor
from sigcam.runtime.backends.tensorrt import pool
from tests.support.device_doubles import Buffer
from tests.support.fake_tensorrt import SHAPES, FakeCuda, FakeKernel, fake_module, write_engine


def install_machine(monkeypatch, package):
    """Puts a fake GPU and a fake package of TensorRT in place of the real ones."""
    cuda = FakeCuda()
    for module in (executor, pool, device_heatmaps, backend_module):
        monkeypatch.setattr(module, "driver", cuda)
    monkeypatch.setattr("sigcam.kernels.clamp_combine.ClampCombine", lambda: FakeKernel(cuda))
    found = SimpleNamespace(cuda=cuda)

    def install(package):
        found.module = fake_module(cuda, SHAPES, is_rtx=package == "tensorrt_rtx")
        monkeypatch.setitem(sys.modules, package, found.module)

    found.install = install
    install(package)
    return found


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A fake GPU with TensorRT; `open()` loads the tiny engine. Nothing may stay allocated."""
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path / "user"))
    found = install_machine(monkeypatch, "tensorrt")
    cuda = found.cuda
    found.folder, found.opened = tmp_path, []

    def opened(path=None, **options):
        path = write_engine(tmp_path) if path is None else path
        backend = backend_module.TensorRtBackend.open(path, BackendOptions(**options))
        found.opened.append(backend)
        return backend

    def uninstall(package):
        monkeypatch.setitem(sys.modules, package, None)

    found.uninstall, found.open = uninstall, opened
    before = Buffer.alive
    yield found
    for backend in found.opened:
        backend.close()
    assert Buffer.alive == before
    assert not cuda.streams
    assert cuda.contexts == 0


@pytest.fixture
def feeds():
    """feeds(batch, classes, seed): inputs of the tiny artifact."""

    def make(batch=2, classes=2, seed=0):
        random = np.random.default_rng(seed)
        image = random.integers(0, 256, (batch, 56, 56, 3), dtype=np.uint8)
        ids = np.tile(-1 - np.arange(classes), (batch, 1)).astype(np.int64)
        return {"image": image, "class_ids": ids}

    return make
