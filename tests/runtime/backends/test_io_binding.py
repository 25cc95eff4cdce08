"""I/O binding, with the CPU as the device and NumPy as the heatmap kernels."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigcam.core.errors import ArtifactError, BackendError, UsageError
from sigcam.images.preprocess import place
from sigcam.images.upsample import to_heatmap
from sigcam.kernels.reference import clamp_combine
from sigcam.runtime.backends.base import BackendOptions, HeatmapRequest
from sigcam.runtime.backends.onnxruntime.cpu import OrtBackend
from tests.support.device_doubles import CpuStream, bound_on_cpu

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), dtype=np.uint8)
IDS = np.array([[-1, 2], [0, -4], [3, 1]])
FEEDS = {"image": IMAGE, "class_ids": IDS}
SIZES = [(70, 90), (70, 90), (41, 56)]


@pytest.fixture
def stream(monkeypatch):
    return CpuStream(monkeypatch)


@pytest.fixture
def bound(stream, make_artifact):
    backend = bound_on_cpu(make_artifact(profile="split"), stream)
    yield backend
    backend.close()


def request_for(spec, clamp=True):
    return HeatmapRequest(tuple(place(spec.preprocessing, *size) for size in SIZES), clamp)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
def test_maps_are_those_of_the_cpu(stream, make_artifact, spec_of, per_position, clamp):
    spec = spec_of(profile="split", nwc=clamp)
    path = make_artifact(profile="split", nwc=clamp, per_position=per_position)
    plain = OrtBackend.open(path, BackendOptions(threads=1))
    backend = bound_on_cpu(path, stream)
    want = plain.infer(FEEDS)
    request = request_for(spec, clamp)
    got, made = backend.infer_heatmaps(FEEDS, ["logits", "class_ids_out"], request)
    assert list(got) == ["logits", "class_ids_out"]
    # What reads the ids may run on the CPU, which doesn't wait for our stream.
    assert list(stream._staged) == ["image"]
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
    cams = clamp_combine(want["features"], want["cam_weights"], clamp=spec.nwc)
    np.testing.assert_allclose(made.cams, cams, atol=1e-6)
    for row, placement in enumerate(request.placements):
        for rank in range(2):
            exact, valid = to_heatmap(cams[row, rank], placement)
            np.testing.assert_allclose(made.heatmaps[row][rank], exact, atol=2e-5)
            assert made.valid[row, rank] == valid
    backend.close()


def test_one_wait_and_in_this_order(stream, bound, spec_of):
    bound.infer_heatmaps(FEEDS, ["logits"], request_for(spec_of()))
    assert stream.done == ["enter", "stage", "heatmaps", "fetch", "synchronize", "leave"]
    stream.done.clear()
    bound.infer(FEEDS, ["logits"])
    assert stream.done == ["enter", "stage", "fetch", "synchronize", "leave"]


def test_every_output_is_bound_to_the_device_and_copied_by_us(stream, bound, spec_of):
    """ONNX Runtime's own copy would go to pageable memory, and hold the host up."""
    fetched = []
    original = stream.fetch

    def fetch(outputs):
        fetched.append({name: (one.dtype, one.shape) for name, one in outputs.items()})
        found = original(outputs)
        for view in found.values():  # nothing is there before the stream is synchronised
            assert (view.view(np.uint8) == 0xAB).all()
        return found

    stream.fetch = fetch
    got = bound.infer(FEEDS)
    [asked] = fetched
    assert set(asked) == set(got)
    assert asked["class_ids_out"] == (np.int64, (3, 2))
    assert asked["features"] == (np.float32, (3, 3, 7, 7))
    kept = {name: array.copy() for name, array in got.items()}
    bound.infer({**FEEDS, "image": 255 - IMAGE})
    for name, array in got.items():
        np.testing.assert_array_equal(array, kept[name])


def test_features_can_come_back_too(bound, spec_of):
    """For a head graph, which takes them."""
    got, made = bound.infer_heatmaps(FEEDS, ["features", "logits"], request_for(spec_of()))
    np.testing.assert_array_equal(got["features"], bound.infer(FEEDS, ["features"])["features"])
    assert made.cams.any()


def test_unsynchronised_runs_are_asked_for(bound):
    entry = "disable_synchronize_execution_providers"
    assert bound._run_options.get_run_config_entry(entry) == "1"


def test_a_run_that_fails_waits_for_what_is_under_way(stream, bound, spec_of):
    bad = {"image": IMAGE, "class_ids": np.array([[99], [0], [0]])}
    with pytest.raises(BackendError, match="failed while running") as caught:
        bound.infer(bad)
    assert caught.value.__cause__ is not None
    assert stream.done == ["enter", "stage", "synchronize", "leave"]
    with pytest.raises(ArtifactError, match="don't belong together"):
        short = HeatmapRequest(request_for(spec_of()).placements[:2], clamp=True)
        bound._infer_heatmaps(FEEDS, ["logits"], short)
    assert stream.done[-2:] == ["synchronize", "leave"]
    assert bound.infer(FEEDS)["logits"].shape == (3, 4)


def test_placements_must_be_those_of_the_images(bound, spec_of):
    short = HeatmapRequest(request_for(spec_of()).placements[:2], clamp=True)
    with pytest.raises(UsageError, match="each of 3 images, got 2"):
        bound.infer_heatmaps(FEEDS, ["logits"], short)


def test_a_plain_backend_makes_no_heatmaps(make_artifact, spec_of):
    backend = OrtBackend.open(make_artifact(profile="split"), BackendOptions(threads=1))
    with pytest.raises(BackendError, match="'ort' makes no heatmaps"):
        backend.infer_heatmaps(FEEDS, ["logits"], request_for(spec_of()))


def test_callers_take_turns(stream, bound, spec_of):
    inside = []
    stage = stream.stage

    def watched(feeds):
        inside.append(threading.get_ident())
        assert len(inside) == 1
        return stage(feeds)

    synchronize = stream.synchronize

    def leaves():
        synchronize()
        inside.clear()

    stream.stage, stream.synchronize = watched, leaves
    alone = bound.infer_heatmaps(FEEDS, ["logits"], request_for(spec_of()))[1]

    def one(_):
        return bound.infer_heatmaps(FEEDS, ["logits"], request_for(spec_of()))[1]

    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(one, range(20)):
            np.testing.assert_array_equal(made.cams, alone.cams)
            np.testing.assert_array_equal(made.heatmaps[2], alone.heatmaps[2])


def test_closing_frees_the_session_before_the_stream(stream, bound):
    bound.close()
    assert stream.done == ["close"]
    bound.close()
    assert stream.done == ["close"]
    with pytest.raises(BackendError, match="closed"):
        bound.infer(FEEDS)
