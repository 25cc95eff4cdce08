"""I/O binding, with the CPU as the device and NumPy as the map kernels."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sigcam.core.errors import ArtifactError, BackendError, UsageError
from sigcam.images.preprocess import place
from sigcam.images.upsample import to_map
from sigcam.runtime.backends.base import BackendOptions, MapRequest
from sigcam.runtime.backends.onnxruntime.cpu import OrtBackend
from sigcam.runtime.model import own_grids
from tests.support.device_doubles import CpuLane, bound_on_cpu

IMAGE = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), dtype=np.uint8)
IDS = np.array([[-1, 2], [0, -4], [3, 1]])
FEEDS = {"image": IMAGE, "class_ids": IDS}
SIZES = [(70, 90), (70, 90), (41, 56)]


@pytest.fixture
def lane(monkeypatch):
    return CpuLane(monkeypatch)


@pytest.fixture
def bound(lane, make_artifact):
    backend = bound_on_cpu(make_artifact(profile="split"), lane)
    yield backend
    backend.close()


def request_for(spec, clamp=True):
    return MapRequest(tuple(place(spec.geometry, *size) for size in SIZES), clamp)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("clamp", [False, True])
def test_maps_are_those_of_the_cpu(lane, make_artifact, spec_of, per_position, clamp):
    spec = spec_of(profile="split", nwc=clamp)
    path = make_artifact(profile="split", nwc=clamp, per_position=per_position)
    plain = OrtBackend.open(path, BackendOptions(threads=1))
    backend = bound_on_cpu(path, lane)
    want = plain.infer(FEEDS)
    request = request_for(spec, clamp)
    got, made = backend.infer_maps(FEEDS, ["logits", "class_ids_out"], request)
    assert list(got) == ["logits", "class_ids_out"]
    # What reads the ids may run on the CPU, which doesn't wait for our stream.
    assert list(lane._staged) == ["image"]
    for name, array in got.items():
        np.testing.assert_array_equal(array, want[name])
    grids = own_grids(want, spec)
    np.testing.assert_allclose(made.grids, grids, atol=1e-6)
    for row, placement in enumerate(request.placements):
        for rank in range(2):
            exact, valid = to_map(grids[row, rank], placement)
            np.testing.assert_allclose(made.maps[row][rank], exact, atol=2e-5)
            assert made.valid[row, rank] == valid
    backend.close()


def test_one_wait_and_in_this_order(lane, bound, spec_of):
    bound.infer_maps(FEEDS, ["logits"], request_for(spec_of()))
    assert lane.done == ["enter", "stage", "maps", "synchronize", "leave"]
    lane.done.clear()
    bound.infer(FEEDS, ["logits"])
    assert lane.done == ["enter", "stage", "synchronize", "leave"]


def test_features_can_come_back_too(bound, spec_of):
    """For a head graph, which takes them."""
    got, made = bound.infer_maps(FEEDS, ["features", "logits"], request_for(spec_of()))
    np.testing.assert_array_equal(got["features"], bound.infer(FEEDS, ["features"])["features"])
    assert made.grids.any()


def test_unsynchronised_runs_are_asked_for(bound):
    entry = "disable_synchronize_execution_providers"
    assert bound._run_options.get_run_config_entry(entry) == "1"


def test_a_run_that_fails_waits_for_what_is_under_way(lane, bound, spec_of):
    bad = {"image": IMAGE, "class_ids": np.array([[99], [0], [0]])}
    with pytest.raises(BackendError, match="failed while running") as caught:
        bound.infer(bad)
    assert caught.value.__cause__ is not None
    assert lane.done == ["enter", "stage", "synchronize", "leave"]
    with pytest.raises(ArtifactError, match="don't belong together"):
        short = MapRequest(request_for(spec_of()).placements[:2], clamp=True)
        bound._infer_maps(FEEDS, ["logits"], short)
    assert lane.done[-2:] == ["synchronize", "leave"]
    assert bound.infer(FEEDS)["logits"].shape == (3, 4)


def test_placements_must_be_those_of_the_pictures(bound, spec_of):
    short = MapRequest(request_for(spec_of()).placements[:2], clamp=True)
    with pytest.raises(UsageError, match="each of 3 pictures, got 2"):
        bound.infer_maps(FEEDS, ["logits"], short)


def test_a_plain_engine_makes_no_maps(make_artifact, spec_of):
    backend = OrtBackend.open(make_artifact(profile="split"), BackendOptions(threads=1))
    with pytest.raises(BackendError, match="'ort' makes no maps"):
        backend.infer_maps(FEEDS, ["logits"], request_for(spec_of()))


def test_callers_take_turns(lane, bound, spec_of):
    inside = []
    stage = lane.stage

    def watched(feeds):
        inside.append(threading.get_ident())
        assert len(inside) == 1
        return stage(feeds)

    synchronize = lane.synchronize

    def leaves():
        synchronize()
        inside.clear()

    lane.stage, lane.synchronize = watched, leaves
    alone = bound.infer_maps(FEEDS, ["logits"], request_for(spec_of()))[1]

    def one(_):
        return bound.infer_maps(FEEDS, ["logits"], request_for(spec_of()))[1]

    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(one, range(20)):
            np.testing.assert_array_equal(made.grids, alone.grids)
            np.testing.assert_array_equal(made.maps[2], alone.maps[2])


def test_closing_frees_the_session_before_the_stream(lane, bound):
    bound.close()
    assert lane.done == ["close"]
    bound.close()
    assert lane.done == ["close"]
    with pytest.raises(BackendError, match="closed"):
        bound.infer(FEEDS)
