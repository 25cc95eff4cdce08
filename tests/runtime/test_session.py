import gc
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest

from sigcam.core.errors import (
    BackendError,
    ImageError,
    StorageError,
    UnknownClassError,
    UsageError,
)
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.runtime.session import load

RNG = np.random.default_rng(0)
WEIGHTS = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, -1]])
IMAGES = [RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(5)]
EXACT = Preprocessing(56, 56, "stretch")  # an image of 56 x 56 is the input itself


def truth(image, class_id=None, rank=0):
    """Class, probability, evidence and CAM of the tiny network, from its definition."""
    features = image.reshape(7, 8, 7, 8, 3).mean((1, 3)) / 255
    logits = features.mean((0, 1)) @ WEIGHTS.T
    if class_id is None:
        class_id = int(np.argsort(-logits)[rank])
    powers = np.exp(logits)
    probability = powers[class_id] / powers.sum()
    evidence = 1 / (1 + np.exp(-logits[class_id]))
    return class_id, probability, evidence, features @ np.maximum(WEIGHTS[class_id], 0)


def check(explanation, image, **choice):
    class_id, probability, evidence, cam = truth(image, **choice)
    assert explanation.class_id == class_id
    assert explanation.label == ("red", "green", "blue", "Warm")[class_id]
    assert explanation.probability == pytest.approx(probability, rel=1e-5)
    assert explanation.evidence == pytest.approx(evidence, rel=1e-5)
    np.testing.assert_allclose(explanation.cam, cam, atol=1e-5)


@pytest.fixture(scope="module")
def session(make_artifact):
    with load(make_artifact(preprocessing=EXACT), batch_size=2, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("layout", ["uint8_nhwc", "float32_nchw"])
@pytest.mark.parametrize(
    "selection", [ClassSelection("top1"), ClassSelection("topk", 3), ClassSelection("input")]
)
def test_every_kind_of_artifact(make_artifact, profile, layout, selection):
    preprocessing = Preprocessing(56, 56, "stretch", mean=(0, 0, 0), std=(1, 1, 1), layout=layout)
    path = make_artifact(profile=profile, classes=selection, preprocessing=preprocessing)
    count = {"top1": 1, "topk": 3, "input": 4}[selection.mode]
    with load(path, threads=1) as opened:
        assert opened.spec.profile == profile
        results = opened.explain(IMAGES[0], top_k=count)
        assert len(results) == count
        for rank, explanation in enumerate(results):
            check(explanation, IMAGES[0], rank=rank)
        [first] = opened.explain(IMAGES[0])
        check(first, IMAGES[0])


def test_without_clamping(make_artifact):
    path = make_artifact(profile="split", nwc=False, preprocessing=EXACT)
    with load(path) as opened:
        [got] = opened.explain(IMAGES[0], classes=3)
    features = IMAGES[0].reshape(7, 8, 7, 8, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(got.cam, np.maximum(features @ WEIGHTS[3], 0), atol=1e-5)
    assert np.abs(got.cam - truth(IMAGES[0], class_id=3)[3]).max() > 0.1


def test_named_classes_in_their_order(session):
    results = session.explain(IMAGES[0], classes=["blue", 0, "warm", 0])
    for explanation, class_id in zip(results, (2, 0, 3, 0), strict=True):
        check(explanation, IMAGES[0], class_id=class_id)
    check(session.explain(IMAGES[0], classes="green")[0], IMAGES[0], class_id=1)
    with pytest.raises(UnknownClassError, match="near names: 'green'"):
        session.explain(IMAGES[0], classes="gren")
    with pytest.raises(UsageError, match="not both"):
        session.explain(IMAGES[0], classes="green", top_k=2)


@pytest.mark.parametrize("mode", ["top1", "topk"])
def test_what_an_artifact_cannot_give(make_artifact, mode):
    selection = ClassSelection(mode, 2 if mode == "topk" else 1)
    with load(make_artifact(classes=selection)) as opened:
        for arguments in ({"classes": 0}, {"top_k": 3}):
            with pytest.raises(UsageError, match="sigcam export --classes input"):
                opened.explain(IMAGES[0], **arguments)
        with pytest.raises(UsageError, match="at least 1"):
            opened.explain(IMAGES[0], top_k=0)


def test_more_classes_than_can_be_ranked(session, monkeypatch):
    with pytest.raises(UsageError, match="top_k must be at most 4"):
        session.explain(IMAGES[0], top_k=5)
    monkeypatch.setattr("sigcam.runtime.classes.MAX_RANKS", 2)
    assert len(session.explain(IMAGES[0], top_k=2)) == 2
    with pytest.raises(UsageError, match="top_k must be at most 2"):
        session.explain(IMAGES[0], top_k=3)


def test_one_and_many(session):
    many = session.explain(IMAGES)
    assert [len(one) for one in many] == [1] * 5
    for image, [explanation] in zip(IMAGES, many, strict=True):
        check(explanation, image)
    assert session.explain(()) == []


def test_paths_bytes_and_arrays(session, tmp_path):
    data = cv2.imencode(".png", IMAGES[0][:, :, ::-1])[1].tobytes()
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for given, source in ((path, str(path)), (str(path), str(path)), (data, None)):
        [got] = session.explain(given)
        check(got, IMAGES[0])
        assert got.source == source
    [got] = session.explain(IMAGES[0])
    assert got.source is None
    assert got.image is IMAGES[0]


def test_results_do_not_depend_on_the_batch(make_artifact):
    images = [RNG.integers(0, 256, (40 + i, 90 - i, 3), dtype=np.uint8) for i in range(9)]
    with load(make_artifact(), batch_size=4) as opened:
        alone = [opened.explain(one, top_k=2) for one in images]
        for order in (range(9), reversed(range(9))):
            order = list(order)
            together = opened.explain([images[i] for i in order], top_k=2)
            for i, results in zip(order, together, strict=True):
                for a, b in zip(alone[i], results, strict=True):
                    assert a.class_id == b.class_id
                    assert a.probability == pytest.approx(b.probability, rel=1e-6)
                    np.testing.assert_allclose(a.heatmap, b.heatmap, atol=1e-5)


def bright(image):
    return np.array([image.mean(), 0, 0, 0]), np.arange(49.0).reshape(1, 7, 7)


def test_stream_runs_batches_in_order(fake_session):
    session = fake_session(bright, batch_size=3)
    taken = []

    def images():
        for value in range(8):
            taken.append(value)
            yield np.full((10, 10, 3), value, np.uint8)

    results = session.stream(images())
    assert taken == []
    [first] = next(results)
    assert taken == [0, 1, 2]
    assert first.image[0, 0, 0] == 0
    assert [one[0].image[0, 0, 0] for one in results] == [1, 2, 3, 4, 5, 6, 7]
    assert session._model.backend.batches == [3, 3, 2]


def test_stream_holds_no_more_than_a_batch(fake_session):
    session = fake_session(bright, batch_size=3)
    references = []
    counts = []
    gc.collect()
    gc.freeze()  # what other tests left behind takes a second to look through each time

    class Watched(np.ndarray):
        pass

    def count():
        gc.collect()
        counts.append(sum(reference() is not None for reference in references))

    def images():
        for _ in range(12):
            image = Watched((10, 10, 3), np.uint8)  # owns its memory, so views of it count
            image[:] = 0
            references.append(weakref.ref(image))
            count()
            yield image
            del image

    for results in session.stream(images()):
        count()
        del results
    gc.unfreeze()
    assert len(counts) == 24
    # While the second batch is read, the last result of the first is the caller's.
    assert max(counts) == 3


def test_a_bad_image_among_good_ones(fake_session, tmp_path):
    good = IMAGES[0]
    sources = [good, tmp_path / "missing.jpg", good, b"junk", b"", good]
    for size in (1, 2, 8):
        session = fake_session(bright, batch_size=size)
        got = list(session.stream(sources, on_error="return"))
        assert [type(one) for one in got] == [list, ImageError, list, ImageError, ImageError, list]
        assert "missing.jpg" in str(got[1])
        done = session.stream(sources)
        assert next(done)[0].image is good
        with pytest.raises(ImageError, match=r"missing\.jpg"):
            next(done)
        with pytest.raises(ImageError, match=r"missing\.jpg"):
            session.explain(sources)


def test_wrong_calls_fail_before_the_first_image(fake_session):
    session = fake_session(bright)
    with pytest.raises(UsageError, match="on_error"):
        session.stream([], on_error="ignore")
    with pytest.raises(UsageError, match="pass one to explain"):
        session.stream("image.jpg")
    with pytest.raises(UsageError, match="export"):
        session.stream([], classes=1)
    with pytest.raises(UsageError, match=r"as a list, or use Session\.stream"):
        session.explain(one for one in IMAGES)
    assert list(session.stream([])) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite(fake_session, value):
    session = fake_session(lambda image: (np.array([value, 0, 0, 0]), np.zeros((1, 7, 7))))
    with pytest.raises(BackendError, match="weights are not finite"):
        session.explain(IMAGES[0])


def test_weights_that_are_not_numbers(make_artifact):
    with (
        load(make_artifact(weights=np.full((4, 3), np.nan, np.float32))) as opened,
        pytest.raises(BackendError, match="weights are not finite"),
    ):
        opened.explain(IMAGES[0])


def test_huge_logits_give_probabilities(fake_session):
    session = fake_session(lambda image: (np.array([3e38, -3e38, 0, 3e38]), np.zeros((1, 7, 7))))
    assert session.explain(IMAGES[0])[0].probability == 0.5


def test_a_cam_that_is_not_finite_is_not_valid(fake_session):
    cam = np.full((1, 7, 7), np.nan)
    session = fake_session(lambda image: (np.array([1, 0, 0, 0]), cam))
    [got] = session.explain(IMAGES[0])
    assert not got.valid
    assert not got.heatmap.any()
    assert got.boxes() == []


def test_black_images(session):
    for size in ((56, 56, 3), (1, 1, 3), (3, 900, 3)):
        [got] = session.explain(np.zeros(size, np.uint8))
        assert not got.valid
        assert got.heatmap.shape == size[:2]
        assert not got.heatmap.any()
        assert got.probability == pytest.approx(0.25)


def test_max_pixels_is_passed_on(make_artifact):
    data = cv2.imencode(".png", IMAGES[0])[1].tobytes()
    with (
        load(make_artifact(), max_pixels=56 * 56 - 1) as opened,
        pytest.raises(ImageError, match="raise max_pixels"),
    ):
        opened.explain(data)


def test_closing(fake_session):
    with fake_session(bright) as session:
        [kept] = session.explain(IMAGES[0])
    assert session._model.backend.closed
    with pytest.raises(UsageError, match="closed"):
        session.explain(IMAGES[0])
    assert kept.valid  # results outlive their session


def test_closing_lets_errors_through(fake_session):
    with pytest.raises(KeyError), fake_session(bright):
        raise KeyError


def test_saving_to_a_file_as_folder_leaves_nothing(session, tmp_path):
    [got] = session.explain(IMAGES[0])
    blocked = tmp_path / "file"
    blocked.write_text("x")
    for suffix in (".png", ".npz", ".json"):
        with pytest.raises(StorageError):
            got.save(blocked / f"out{suffix}")
    assert [p.name for p in Path(tmp_path).iterdir()] == ["file"]
