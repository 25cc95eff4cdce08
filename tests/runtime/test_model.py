"""An opened exported model: what a run gives, what it refuses, on fused and split graphs."""

import dataclasses

import numpy as np
import onnx
import pytest

from sigcam.core.errors import ArtifactError, BackendError, UsageError
from sigcam.core.spec import ClassSelection, Spec
from sigcam.images.preprocess import place, prepare
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.model import ExportedModel, evidence_of, probabilities_of
from sigcam.runtime.session import load
from tests.support.tiny import seal_to

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 70, 90, 3), dtype=np.uint8)


def batch_of(model):
    return np.stack([prepare(image, model.spec.preprocessing)[0] for image in IMAGES])


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("mode", ["top1", "topk", "input"])
def test_a_run_gives_what_a_session_says(make_artifact, profile, mode):
    count = 1 if mode == "top1" else 2
    classes = ClassSelection(mode, count) if mode == "topk" else ClassSelection(mode)
    path = make_artifact(profile=profile, classes=classes)
    with ExportedModel.open(path, "ort") as model, load(path, "ort") as session:
        ids = np.tile(np.array([-1, -2]), (3, 1)) if mode == "input" else None
        outputs = model.run(batch_of(model), ids)
        wanted = session.explain(list(IMAGES), top_k=count)
    assert outputs.class_ids.shape == (3, count)
    assert outputs.cams.dtype == np.float32
    for row, results in enumerate(wanted):
        probabilities = probabilities_of(outputs.logits[row], "single-label")
        evidence = evidence_of(outputs.evidence_logits[row])
        for rank, one in enumerate(results):
            assert one.class_id == outputs.class_ids[row, rank]
            assert one.probability == pytest.approx(probabilities[one.class_id])
            assert one.evidence == pytest.approx(evidence[rank])
            np.testing.assert_array_equal(one.cam, outputs.cams[row, rank])


def test_only_what_is_wanted_comes(make_artifact):
    with ExportedModel.open(make_artifact(profile="split"), "ort") as model:
        batch = batch_of(model)
        logits = model.run(batch, wanted="logits")
        features = model.run(batch, wanted="features")
    assert logits.cams is None
    assert logits.features is None
    assert features.cams is None
    assert features.features.shape[:2] == (3, model.spec.feature_shapes[0][0])
    np.testing.assert_array_equal(logits.logits, features.logits)


def test_images_of_another_size_than_the_graph_takes_are_refused_at_once(make_artifact):
    """They are prepared by the spec, which may ask for billions of pixels."""
    path = make_artifact()
    model = onnx.load(path)
    (entry,) = (entry for entry in model.metadata_props if entry.key == "sigcam")
    spec = Spec.from_json(entry.value)
    wide = dataclasses.replace(spec.preprocessing, width=2**31, resize=None)
    entry.value = dataclasses.replace(spec, preprocessing=wide).to_json()
    seal_to(model, path)
    with pytest.raises(ArtifactError, match=r"its images are uint8 \[.*the spec says uint8_nhwc"):
        load(path, "ort")


def test_without_ids_it_is_the_most_probable_class(make_artifact):
    with ExportedModel.open(make_artifact(classes=ClassSelection("input")), "ort") as model:
        outputs = model.run(batch_of(model))
    np.testing.assert_array_equal(outputs.class_ids[:, 0], outputs.logits.argmax(1))


def test_classes_for_a_model_that_chooses_them(make_artifact):
    with (
        ExportedModel.open(make_artifact(classes=ClassSelection("top1")), "ort") as model,
        pytest.raises(UsageError, match=r"chooses its classes itself \(top1\)"),
    ):
        model.run(batch_of(model), np.zeros((3, 1), np.int64))


def test_a_cpu_makes_no_heatmaps(make_artifact):
    with ExportedModel.open(make_artifact(profile="split"), "ort") as model:
        places = [place(model.spec.preprocessing, *IMAGES[0].shape[:2])] * 3
        assert model.run(batch_of(model), placements=places).heatmaps is None


def test_the_head_graph_is_found_named_or_left_alone(make_artifact):
    path = make_artifact(head_input="features")
    with ExportedModel.open(path, "ort") as model:
        assert model.head_graph.head_input == "features"
        assert model.run(batch_of(model)).head_input.shape[0] == 3
    with ExportedModel.open(path, "ort", with_head=False) as model:
        assert model.head_graph is None
        assert model.run(batch_of(model)).head_input is None
    with pytest.raises(ArtifactError, match="is a head graph; give the artifact"):
        ExportedModel.open(path.with_name("model.head.onnx"), "ort")


def test_a_graph_that_does_not_fit_its_spec(make_artifact):
    path = make_artifact()
    opened = ExportedModel.open(path, "ort")
    other = dataclasses.replace(opened.spec, profile="split")
    with pytest.raises(ArtifactError, match=r"doesn't fit its spec.*export the model again"):
        ExportedModel(other, opened.backend)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_cams_that_are_not_finite(fake_split_session, value):
    features = np.ones((1, 3, 7, 7), np.float32)
    features[0, 1, 2, 2] = value
    session = fake_split_session(features, np.ones((1, 1, 3), np.float32))
    outputs = session._model.run(np.zeros((1, 56, 56, 3), np.uint8))
    with pytest.raises(BackendError, match=r"CAMs are not finite.*export it again"):
        outputs.finite_cams()


def test_scores_are_of_the_branch_that_cams_come_from(make_artifact):
    path = make_artifact(classes=ClassSelection("input"))
    ids = np.array([2, 0])
    with ExportedModel.open(path, "ort", BackendOptions(threads=1)) as model:
        batch = batch_of(model)
        wanted = model.run(batch, np.tile(ids, (3, 1))).evidence_logits
        np.testing.assert_array_equal(model.scores(batch, ids), wanted)
    with ExportedModel.open(make_artifact(branch="softmax"), "ort") as model:
        batch = batch_of(model)
        np.testing.assert_array_equal(model.scores(batch, ids), model.run(batch).logits[:, ids])


def test_scores_of_the_centred_branch_are_centred_logits(make_artifact):
    ids = np.array([0, 2])
    with ExportedModel.open(make_artifact(branch="centred"), "ort") as model:
        batch = batch_of(model)
        logits = model.run(batch).logits
        assert model.scores_output == "logits"
        want = logits[:, ids] - logits.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(model.scores(batch, ids), want, rtol=1e-6)


def test_scores_that_a_graph_does_not_give(make_artifact):
    with ExportedModel.open(make_artifact(classes=ClassSelection("top1")), "ort") as model:
        assert model.scores_output is None
        with pytest.raises(UsageError, match=r"no scores of one class in every run.*--classes"):
            model.scores(batch_of(model), np.array([0]))
