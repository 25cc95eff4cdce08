"""A Session whose backend makes the maps: the same answers as from the CPU's."""

import copy

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.runtime.backends.base import HeatmapOptions
from sigcam.runtime.session import Session, load
from sigcam.runtime.several import stack_heatmaps
from tests.support.device_doubles import CpuStream, bound_on_cpu

IMAGES = [
    np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
    for i, size in enumerate([(70, 90, 3), (70, 90, 3), (41, 56, 3), (300, 200, 3), (5, 9, 3)])
]


@pytest.fixture
def stream(monkeypatch):
    return CpuStream(monkeypatch)


@pytest.fixture
def both(stream, make_artifact):
    """both(**spec changes) -> a session with made maps, and a plain one."""
    opened = []

    def make(emit=(), heatmaps=None, profile="split", **changes):
        from sigcam.core.artifact import read_spec
        from sigcam.core.model_file import ModelFile
        from sigcam.runtime.backends import open_backend
        from sigcam.runtime.backends.base import BackendOptions
        from sigcam.runtime.head_graph import HeadGraph, find_head_graph
        from sigcam.runtime.model import ExportedModel

        path = make_artifact(profile=profile, emit=emit, **changes)
        spec = read_spec(path)
        file = find_head_graph(ModelFile(path))
        head = file and HeadGraph(
            spec.head_input, file, lambda f: open_backend(f, "ort", BackendOptions())
        )
        model = ExportedModel(spec, bound_on_cpu(path, stream), head, heatmaps)
        pair = (Session(model), load(path, "ort"))
        opened.extend(pair)
        return pair

    yield make
    for session in opened:
        session.close()


def same(got, want):
    assert got._made is not None
    assert want._made is None
    for name in ("class_id", "label", "probability", "evidence", "method", "passes", "valid"):
        assert getattr(got, name) == getattr(want, name)
    np.testing.assert_allclose(got.cam, want.cam, atol=1e-6)
    assert got.heatmap.dtype == np.float32
    np.testing.assert_allclose(got.heatmap, want.heatmap, atol=3e-5)
    for array in (got.heatmap, got.cam):
        assert not array.flags.writeable
    np.testing.assert_allclose(got.boxes(0.5), want.boxes(0.5), atol=1)


@pytest.fixture(params=["split", "fused"])
def profile(request):
    """Heatmaps are made of features and CAM weights, or of CAMs that the graph made."""
    return request.param


@pytest.mark.parametrize("request_", [{}, {"top_k": 3}, {"classes": ["blue", 0, 3]}])
def test_the_same_answers(both, stream, request_, profile):
    session, plain = both(profile=profile)
    made, want = session.explain(IMAGES, **request_), plain.explain(IMAGES, **request_)
    for got, exact in zip(made, want, strict=True):
        for one, other in zip(got, exact, strict=True):
            same(one, other)
    assert "heatmaps" in stream.done


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000])
def test_numbers_of_classes(both, stream, profile, count):
    session, plain = both(profile=profile)
    images = [IMAGES[4], IMAGES[2][:20, :30]]
    classes = [(7 * n) % 4 if n % 3 else -1 - n % 4 for n in range(count)]
    made, want = session.explain(images, classes=classes), plain.explain(images, classes=classes)
    for got, exact in zip(made, want, strict=True):
        assert len(got) == count
        for one, other in zip(got, exact, strict=True):
            assert (one.class_id, one.valid) == (other.class_id, other.valid)
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=3e-5)
    assert len(stream.kernel.launches) == 1


@pytest.mark.parametrize("signed", [False, True])
def test_cams_of_a_graph_are_taken_as_they_are(both, signed):
    """Clamped or not, with their signs or not: the graph did all of that."""
    session, plain = both(profile="fused", nwc=False, signed=signed)
    for got, want in zip(session.explain(IMAGES, 3), plain.explain(IMAGES, 3), strict=True):
        same(got[0], want[0])


def test_heatmaps_of_bytes(both, profile):
    """A quarter of the memory; `heatmap` stays float32, at 256 levels."""
    session, plain = both(heatmaps=HeatmapOptions("uint8"), profile=profile)
    made, want = session.explain(IMAGES, top_k=2), plain.explain(IMAGES, top_k=2)
    for got, exact in zip(made, want, strict=True):
        for one, other in zip(got, exact, strict=True):
            assert one._made[0].dtype == np.uint8
            assert one.heatmap.dtype == np.float32
            assert not one.heatmap.flags.writeable
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=0.51 / 255)
            assert one.heatmap.max() == (1.0 if one.valid else 0.0)
            assert one.valid == other.valid
            np.testing.assert_allclose(one.cam, other.cam, atol=1e-6)
            assert one.overlay().shape == other.overlay().shape
            for kind, scale in ((np.uint8, 255), (np.float32, 1)):
                out, exact = (np.zeros(one.heatmap.shape, kind) for _ in range(2))
                assert one.write_heatmap(out) == other.write_heatmap(exact)
                np.testing.assert_allclose(out / scale, exact / scale, atol=1.01 / 255)
    stacked = stack_heatmaps(made[0])
    np.testing.assert_array_equal(stacked, np.stack([one._made[0] for one in made[0]]))


def test_heatmaps_that_are_made_when_they_are_asked_for(both, stream, profile):
    session, plain = both(heatmaps=HeatmapOptions("lazy", limit=1), profile=profile)
    made, want = session.explain(IMAGES, top_k=3), plain.explain(IMAGES, top_k=3)
    # Features become CAMs on the device, in one launch for images of four sizes; a graph's own
    # CAMs are there already.
    assert len(stream.kernel.launches) == (profile == "split")
    for got, exact in zip(made, want, strict=True):
        for one, other in zip(got, exact, strict=True):
            assert one._made is None
            np.testing.assert_allclose(one.cam, other.cam, atol=1e-6)
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=3e-5)


def test_images_larger_than_the_limit(both, profile):
    """The session works on afterwards, with what the message advises too."""
    session, plain = both(heatmaps=HeatmapOptions(limit=4 * 2 * 70 * 90), profile=profile)
    with pytest.raises(UsageError, match=r"1 images and 2 classes take 0\.00048 GB, more than"):
        session.explain(IMAGES[3], top_k=2)
    same(session.explain(IMAGES[0], top_k=2)[1], plain.explain(IMAGES[0], top_k=2)[1])
    same(session.explain(IMAGES[3][:60], top_k=1)[0], plain.explain(IMAGES[3][:60], top_k=1)[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"heatmaps": "float16"}, "one of float32, uint8, lazy, got 'float16'"),
     ({"heatmap_limit": 0}, "at least 1 byte, got 0")],
)  # fmt: skip
def test_options_that_are_none(make_artifact, options, said):
    with pytest.raises(UsageError, match=said):
        load(make_artifact(), "ort", **options)


def test_without_clamping(both):
    session, plain = both(nwc=False)
    same(session.explain(IMAGES[0], "Warm")[0], plain.explain(IMAGES[0], "Warm")[0])


def test_fewer_classes_than_the_artifact_gives(both, profile):
    session, plain = both(classes=ClassSelection("topk", 3), profile=profile)
    got, want = session.explain(IMAGES[0], top_k=2), plain.explain(IMAGES[0], top_k=2)
    assert len(got) == 2
    for one, other in zip(got, want, strict=True):
        same(one, other)


def outputs_asked_for(session):
    """The outputs that a call has the backend return beside the heatmaps."""
    backend, seen = session._model.backend, set()
    made = backend.infer_heatmaps

    def spy(feeds, wanted, request):
        seen.update(wanted)
        return made(feeds, wanted, request)

    backend.infer_heatmaps = spy
    session.explain(IMAGES[0])
    backend.infer_heatmaps = made
    return seen


def test_features_and_weights_stay_on_the_device(both, stream, profile):
    session, _ = both(profile=profile)
    assert outputs_asked_for(session) >= {"logits", "class_ids_out"}
    assert not {"features", "cam_weights", "cams"} & outputs_asked_for(session)


def test_a_map_that_is_none(both, profile):
    session, plain = both(profile=profile)
    grey = np.full((40, 50, 3), 128, np.uint8)
    [got], [want] = session.explain(grey), plain.explain(grey)
    same(got, want)
    assert not got.valid
    assert not got.heatmap.any()


@pytest.mark.parametrize("head_input", ["features", "head_input"])
def test_further_classes_are_made_of_their_own_cams(both, head_input, profile):
    session, plain = both(head_input=head_input, profile=profile)
    asked = outputs_asked_for(session)
    assert head_input in asked
    assert "cam_weights" not in asked
    first, other = session.explain(IMAGES[0])[0], plain.explain(IMAGES[0])[0]
    same(first, other)
    for got, want in zip(first.for_classes([1, 2]), other.for_classes([1, 2]), strict=True):
        assert got._made is None
        np.testing.assert_allclose(got.heatmap, want.heatmap, atol=1e-5)


def test_methods_of_several_passes_make_their_own(both, stream, profile):
    session, plain = both(profile=profile, emit=("features",))
    got = session.explain(IMAGES[0], method="scorecam")[0]
    want = plain.explain(IMAGES[0], method="scorecam")[0]
    assert got._made is None
    assert "heatmaps" not in stream.done
    np.testing.assert_allclose(got.heatmap, want.heatmap, atol=1e-5)


def test_results_can_be_saved_and_copied(both, tmp_path):
    session, plain = both()
    got, want = session.explain(IMAGES[0])[0], plain.explain(IMAGES[0])[0]
    got.save(tmp_path / "got.npz")
    with np.load(tmp_path / "got.npz") as file:
        np.testing.assert_allclose(file["heatmap"], want.heatmap, atol=3e-5)
    for one in (copy.copy(got), copy.deepcopy(got)):
        np.testing.assert_array_equal(one.heatmap, got.heatmap)
    np.testing.assert_allclose(got.overlay(), want.overlay(), atol=2)


def test_one_image_does_not_keep_another_one_alive(both):
    session, _ = both()
    first, second = session.explain(IMAGES[:2], top_k=2)
    assert first[0].heatmap.base is first[1].heatmap.base is not second[0].heatmap.base
