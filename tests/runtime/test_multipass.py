"""Methods of several passes against their definitions, on any artifact that can serve them."""

import numpy as np
import pytest

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    ImageError,
    UsageError,
)
from sigcam.core.spec import ClassSelection, Preprocessing
from sigcam.runtime.multipass import MULTIPASS
from sigcam.runtime.multipass.eigencam import _projection
from sigcam.runtime.session import load
from tests.support import oracle as reference
from tests.support.tiny import GRID, WEIGHTS, features_of, logits_of

RNG = np.random.default_rng(3)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
BYTES = Preprocessing(56, 56, "stretch", mean=MEAN, std=STD)
FLOATS = Preprocessing(56, 56, "stretch", mean=(0, 0, 0), std=(1, 1, 1), layout="float32_nchw")
# Blocks of colour, so that masks and features differ from channel to channel.
BLOCKS = RNG.integers(0, 256, (7, 7, 3)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
IMAGES = [BLOCKS, RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8), BLOCKS[::-1, :, ::-1]]
IDS = [2, 0, 3]
# rise makes nothing of features; test_rise.py is about it.
OF_FEATURES = [name for name in MULTIPASS if name != "rise"]


def planes(image):
    """[3, 56, 56] in 0..1: what the tiny networks see."""
    return image.transpose(2, 0, 1) / 255


def truth(method, image, preprocessing, head, branch, ids, nwc=True):
    """CAMs [K, h, w] by the definitions."""
    x = planes(image)
    F = features_of(x)

    def score(features):
        return logits_of(features, head, branch)[ids]

    if method == "eigencam":
        return np.stack([reference.eigencam(F)] * len(ids))
    if method == "ablationcam":
        w = reference.ablation_weights(F, score)
    elif preprocessing.layout == "float32_nchw":
        w = reference.scorecam_weights(x, F, lambda one: score(features_of(one)))
    else:
        mean = np.array(MEAN)[:, None, None]
        w = reference.scorecam_weights(
            x, F, lambda one: score(features_of(np.floor(255 * one + 0.5) / 255)), mean
        )
    return reference.cams(F[None], w[None], nwc)[0]


def check(explanation, cam, tolerance=2e-5):
    atol = tolerance * np.abs(cam).max() + 1e-7
    np.testing.assert_allclose(explanation.cam, cam, atol=atol)


@pytest.mark.parametrize("method", OF_FEATURES)
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("preprocessing", [BYTES, FLOATS], ids=["bytes", "floats"])
@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
def test_equals_the_definition(make_artifact, method, head, preprocessing, branch):
    path = make_artifact(
        head=head,
        preprocessing=preprocessing,
        branch=branch,
        profile="split",
        head_input="features",
    )
    # A masked pixel that lies within float32 of a half may be rounded to the next byte.
    tolerance = 2e-4 if (method, preprocessing) == ("scorecam", BYTES) else 2e-5
    with load(path, threads=1, batch_size=2) as session:
        for image in IMAGES:
            results = session.explain(image, classes=IDS, method=method)
            cams = truth(method, image, preprocessing, head, branch, IDS)
            assert cams.max() > 0
            for class_id, result, cam in zip(IDS, results, cams, strict=True):
                check(result, cam, tolerance)
                assert (result.class_id, result.method) == (class_id, method)
                assert result.probability == pytest.approx(
                    _softmax(image, head)[class_id], rel=1e-5
                )
                wanted = logits_of(features_of(planes(image)), head, "sigmoid")[class_id]
                assert result.evidence == pytest.approx(reference.sigmoid(wanted), rel=1e-4)


def _softmax(image, head):
    powers = np.exp(logits_of(features_of(planes(image)), head, "softmax"))
    return powers / powers.sum()


@pytest.mark.parametrize("method", OF_FEATURES)
@pytest.mark.parametrize(
    "selection", [ClassSelection("top1"), ClassSelection("topk", 3), ClassSelection("input")]
)
def test_the_graphs_own_choice_of_classes(make_artifact, method, selection):
    path = make_artifact(
        head="mlp",
        preprocessing=FLOATS,
        classes=selection,
        emit={"features", "sigmoid_logits"},
        head_input="features",
    )
    count = {"top1": 1, "topk": 2, "input": 4}[selection.mode]
    with load(path, threads=1) as session:
        results = session.explain(IMAGES[1], top_k=count, method=method)
        order = np.argsort(-_softmax(IMAGES[1], "mlp"))[:count]
        assert [one.class_id for one in results] == list(order)
        for result, cam in zip(
            results, truth(method, IMAGES[1], FLOATS, "mlp", "sigmoid", order), strict=True
        ):
            check(result, cam)


@pytest.mark.parametrize("nwc", [True, False])
def test_clamping_is_the_artifacts(make_artifact, nwc):
    path = make_artifact(head="mlp", preprocessing=FLOATS, nwc=nwc, head_input="features")
    with load(path, threads=1) as session:
        results = session.explain(IMAGES[0], classes=IDS, method="ablationcam")
    clamped, plain = (
        truth("ablationcam", IMAGES[0], FLOATS, "mlp", "sigmoid", IDS, nwc=value)
        for value in (True, False)
    )
    assert np.abs(clamped - plain).max() > 0.01
    for result, cam in zip(results, clamped if nwc else plain, strict=True):
        check(result, cam)


def test_negative_scores_keep_the_meaning_of_the_sign(make_artifact):
    path = make_artifact(weights=-np.eye(4, 3, dtype=np.float32), head_input="features")
    with load(path, threads=1) as session:
        results = session.explain(BLOCKS, classes=[0, 3], method="ablationcam")
    assert not results[0].valid  # without red, red's score of -mean(red) rises
    assert not results[1].valid  # a score of 0 whatever is left out


def test_batches_and_the_number_of_passes(make_artifact):
    path = make_artifact(head="mlp", preprocessing=FLOATS, head_input="features")
    grey = np.full((56, 56, 3), 99, np.uint8)
    half = BLOCKS.copy()
    half[:, :, 1] = 0
    for size in (1, 2, 3, 8):
        with load(path, threads=1, batch_size=size) as session:
            assert [session.passes(one) for one in (None, "cam", *OF_FEATURES)] == [1, 1, 4, 5, 1]
            assert session.explain(BLOCKS)[0].passes == 1
            for image, score, ablation in ((BLOCKS, 4, 5), (half, 3, 4), (grey, 1, 5)):
                [one] = session.explain(image, method="scorecam", classes=1)
                assert one.passes == score
                assert one.valid == (score > 1)
                [two] = session.explain(image, method="ablationcam", classes=1)
                assert two.passes == ablation
                assert session.explain(image, method="eigencam")[0].passes == 1
            check(
                session.explain(half, method="scorecam", classes=1)[0],
                truth("scorecam", half, FLOATS, "mlp", "sigmoid", [1])[0],
            )


@pytest.mark.parametrize("method", OF_FEATURES)
def test_black_images(make_artifact, method):
    path = make_artifact(preprocessing=FLOATS, head_input="features")
    with load(path) as session:
        [got] = session.explain(np.zeros((40, 30, 3), np.uint8), method=method)
    assert not got.valid
    assert not got.heatmap.any()


@pytest.mark.parametrize("method", OF_FEATURES)
def test_many_images(make_artifact, method):
    path = make_artifact(head="mlp", preprocessing=BYTES, head_input="features")
    with load(path, threads=1, batch_size=2) as session:
        alone = [session.explain(one, top_k=2, method=method) for one in IMAGES]
        for together in (
            session.explain(IMAGES, top_k=2, method=method),
            list(session.stream(IMAGES, top_k=2, method=method)),
        ):
            for wanted, got in zip(alone, together, strict=True):
                for a, b in zip(wanted, got, strict=True):
                    assert a.class_id == b.class_id
                    np.testing.assert_allclose(a.cam, b.cam, atol=1e-6)
        sources = [IMAGES[0], b"junk", IMAGES[1]]
        slots = list(session.stream(sources, on_error="return", method=method))
    assert [type(one) for one in slots] == [list, ImageError, list]


def test_progress(make_artifact, capfd):
    path = make_artifact(preprocessing=FLOATS, head_input="features")
    calls = []

    def note(done, total):
        calls.append((done, total))

    with load(path, threads=1, batch_size=2) as session:
        session.explain(BLOCKS, method="scorecam", progress=note)
        assert calls == [(1, 4), (3, 4), (4, 4)]
        calls.clear()
        session.explain(np.full((9, 9, 3), 7, np.uint8), method="scorecam", progress=note)
        assert calls == [(1, 4), (4, 4)]
        calls.clear()
        session.explain(IMAGES[:2], method="ablationcam", progress=note)
        assert calls == [(1, 5), (5, 5)] * 2
        calls.clear()
        session.explain(IMAGES, method="eigencam", progress=note)
        session.explain(IMAGES, progress=note)
        assert calls == [(1, 1)] * 6
        assert capfd.readouterr().err == ""
        session.explain(IMAGES, method="scorecam", progress=True)
        shown = capfd.readouterr().err
        assert "scorecam" in shown
        assert "/4" in shown
        session.explain(IMAGES, method="eigencam", progress=True)
        assert capfd.readouterr().err == ""


def test_what_an_artifact_cannot_give(make_artifact, spec_of):
    def refused(path, method, says):
        with load(path) as session:
            for call in (session.explain, session.passes):
                arguments = (BLOCKS,) if call == session.explain else ()
                with pytest.raises(UsageError, match=says):
                    call(*arguments, method=method)

    plain = make_artifact()
    refused(plain, "scorecam", "scorecam needs the artifact's features.*--features")
    refused(plain, "eigencam", "eigencam needs the artifact's features.*--features")
    refused(plain, "gradcam", "has the method cam; beside it.*scorecam, ablationcam, eigencam")
    split = make_artifact(profile="split", classes=ClassSelection("top1"))
    refused(split, "scorecam", "--classes input` or `--sigmoid-logits")
    refused(split, "ablationcam", "needs the head graph.*--head")
    other = make_artifact(head_input="head_input", emit={"features"})
    refused(other, "ablationcam", "takes more than the features")
    several = make_artifact(
        emit={"features"}, target_layers=("a", "b"), feature_shapes=((3, GRID, GRID),) * 2
    )
    refused(several, "eigencam", "one target layer, this artifact has 2")


def test_the_own_method_by_its_name(make_artifact):
    with load(make_artifact()) as session:
        [a], [b] = session.explain(BLOCKS), session.explain(BLOCKS, method="cam")
        assert a.method == b.method == "cam"
        np.testing.assert_array_equal(a.cam, b.cam)


def test_scores_that_are_not_finite(make_artifact, monkeypatch):
    # Red and blue together overflow as soon as green is left out.
    weights = np.array([[3e38, -3e38, 3e38]] * 4, np.float32)
    path = make_artifact(weights=weights, preprocessing=FLOATS, head_input="features")
    white = np.full((56, 56, 3), 250, np.uint8)
    with load(path) as session, pytest.raises(BackendError, match="ablationcam met a score"):
        session.explain(white, method="ablationcam")
    path = make_artifact(preprocessing=FLOATS, emit={"features"})
    with load(path) as session:
        real = session._model.backend._infer

        def broken(feeds, wanted):
            answer = real(feeds, wanted)
            return answer if len(wanted) > 1 else {wanted[0]: answer[wanted[0]] * np.inf}

        monkeypatch.setattr(session._model.backend, "_infer", broken)
        with pytest.raises(BackendError, match="scorecam met a score"):
            session.explain(BLOCKS, method="scorecam")


def test_methods_are_named_as_registered(make_artifact):
    with load(make_artifact(preprocessing=FLOATS, head_input="features")) as session:
        for name in OF_FEATURES:
            assert session.explain(BLOCKS, method=name)[0].to_dict()["method"] == name


@pytest.mark.parametrize(
    "shape",
    [(5, 3, 4), (12, 3, 4), (40, 3, 4), (90, 7, 7), (150, 9, 11), (70, 20, 9), (210, 14, 14),
     (1, 2, 2)],
)  # fmt: skip
@pytest.mark.parametrize("signed", [True, False])
def test_the_projection_equals_the_singular_value_decomposition(shape, signed):
    F = np.random.default_rng(sum(shape)).standard_normal(shape) + (0 if signed else 5)
    got = np.maximum(_projection(F.reshape(len(F), -1)), 0).reshape(shape[1:])
    wanted = reference.eigencam(F)
    np.testing.assert_allclose(got, wanted, atol=1e-9 * wanted.max())
    assert got.any()


def test_the_projection_of_features_of_low_rank():
    for count, positions in ((5, 9), (9, 5), (80, 90), (90, 80)):
        one = np.outer(np.arange(1.0, count + 1), np.ones(positions))
        np.testing.assert_allclose(
            _projection(one), np.full(positions, np.linalg.norm(one[:, 0])), rtol=1e-9
        )
        np.testing.assert_array_equal(_projection(np.zeros((count, positions))), 0)
        # Two first vectors of one length: any of their plane is right.
        two = np.zeros((count, positions))
        two[0, 0] = two[1, 1] = 3
        assert np.linalg.norm(_projection(two)) == pytest.approx(3)


def test_layercam_weights_for_each_position(make_artifact):
    """A split artifact with CAM weights [B, K, N, h, w], which nothing clamps on top."""
    path = make_artifact(
        profile="split", method="layercam", nwc=False, preprocessing=FLOATS, per_position=True
    )
    with load(path, threads=1) as session:
        results = session.explain(IMAGES[1], classes=IDS)
    F = features_of(planes(IMAGES[1]))
    for class_id, result in zip(IDS, results, strict=True):
        cam = np.maximum((WEIGHTS[class_id][:, None, None] * F * F).sum(0), 0)
        check(result, cam)
        assert result.method == "layercam"


def test_outputs_that_do_not_belong_together(fake_split_session):
    session = fake_split_session(np.zeros((1, 3, 7, 7), np.float32), np.zeros((1, 1, 4), "f4"))
    with pytest.raises(ArtifactError, match=r"\[1, K, 3\].*export the model again"):
        session.explain(BLOCKS)


def test_the_head_runs_in_batches_of_a_limited_size(make_artifact, monkeypatch):
    path = make_artifact(head="mlp", preprocessing=FLOATS, head_input="features")
    wanted = truth("ablationcam", BLOCKS, FLOATS, "mlp", "sigmoid", IDS)
    calls = []

    def note(*at):
        calls.append(at)

    with load(path, threads=1) as session:
        for rows in (1, 2, 3, 9):
            monkeypatch.setattr(
                "sigcam.runtime.multipass.ablationcam._BATCH_VALUES", rows * 3 * GRID * GRID
            )
            calls.clear()
            results = session.explain(BLOCKS, classes=IDS, method="ablationcam", progress=note)
            for result, cam in zip(results, wanted, strict=True):
                check(result, cam)
            assert len(calls) == 1 + -(-4 // rows)


def test_a_long_method_gives_each_result_when_it_is_there(make_artifact):
    taken = []

    def images():
        for image in IMAGES:
            taken.append(image)
            yield image

    with load(make_artifact(preprocessing=FLOATS, head_input="features"), batch_size=2) as session:
        for method, count in (("scorecam", 1), ("ablationcam", 1), ("eigencam", 2)):
            taken.clear()
            next(session.stream(images(), method=method))
            assert len(taken) == count


@pytest.mark.parametrize("method", [None, *OF_FEATURES])
def test_cams_are_the_results_own(make_artifact, method):
    path = make_artifact(preprocessing=FLOATS, head_input="features")
    with load(path) as session:
        first, second = session.explain(BLOCKS, classes=[0, 1], method=method)
        for one in (first, second):
            assert one.cam.base is None
            assert one.cam.dtype == np.float32
            assert not one.cam.flags.writeable
