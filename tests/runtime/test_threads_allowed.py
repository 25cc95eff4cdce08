"""Backends, OpenCV and torch get as many threads as this process may use."""

import cv2
import pytest

from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.session import load


@pytest.fixture
def limited(monkeypatch):
    """limited(n): as under a quota of n processors."""
    threads = cv2.getNumThreads()

    def limit(number):
        monkeypatch.setattr("sigcam.runtime.backends.base.thread_limit", lambda: number)
        monkeypatch.setattr("sigcam.images.decode.thread_limit", lambda: number)

    yield limit
    cv2.setNumThreads(threads)


def test_onnx_runtime(make_artifact, limited):
    pytest.importorskip("onnxruntime")
    for limit, given, wanted in ((1, None, 1), (3, None, 3), (1, 2, 2), (None, None, 0)):
        limited(limit)
        with load(make_artifact(), "ort", threads=given) as session:
            options = session._model.backend._session.get_session_options()
            assert options.intra_op_num_threads == wanted


def test_openvino(make_artifact, limited):
    pytest.importorskip("openvino")
    limited(1)
    for given, wanted in ((None, 1), (2, 2)):
        with load(make_artifact(), "openvino", threads=given) as session:
            compiled = session._model.backend._requests._compiled
            assert compiled.get_property("INFERENCE_NUM_THREADS") == wanted


def test_opencv_is_lowered_and_never_raised(make_artifact, limited):
    cv2.setNumThreads(2)
    for limit, wanted in ((4, 2), (None, 2), (1, 1), (4, 1)):
        limited(limit)
        load(make_artifact()).close()
        assert cv2.getNumThreads() == wanted


def test_torch_while_training(monkeypatch):
    torch = pytest.importorskip("torch")
    from sigcam.train import branch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setattr(branch, "usable_cpus", lambda: 4)
        branch._limit_torch()
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(branch, "usable_cpus", lambda: 1)
        branch._limit_torch()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_what_is_asked_for_comes_first(limited):
    limited(1)
    assert BackendOptions(threads=4).allowed_threads == 4
    assert BackendOptions().allowed_threads == 1
