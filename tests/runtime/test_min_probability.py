"""Classes by their probability, on tiny artifacts."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.runtime.classes import ClassRequest, request_for
from sigcam.runtime.model import evidence_of, probabilities_of
from sigcam.runtime.session import load
from tests.support.tiny import WEIGHTS, tiny_spec

STEEP = 40 * WEIGHTS - np.array([[12.0], [16.0], [26.0], [0.0]], np.float32)
RNG = np.random.default_rng(3)
IMAGES = [RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8) for _ in range(5)]
TASKS = ("single-label", "multi-label")


def test_sigmoids_are_exact_and_never_zero():
    logits = np.array([2.97, -2.97, 0.0, 800.0, -600.0])
    found = evidence_of(logits)
    assert found[:3] == pytest.approx([0.95120, 0.04880, 0.5], abs=1e-5)
    assert found[3] == 1.0
    assert found[4] > 0
    assert probabilities_of(logits, "multi-label") == pytest.approx(found)
    assert probabilities_of(logits, "single-label").sum() == pytest.approx(1)


@pytest.mark.parametrize("wrong", [-0.1, 1.5, float("nan")])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(UsageError, match="from 0 to 1"):
        request_for(None, 1, tiny_spec(), wrong)


@pytest.mark.parametrize(("classes", "top_k"), [("red", 1), (None, 2)])
def test_a_probability_goes_alone(classes, top_k):
    with pytest.raises(UsageError, match="neither classes nor top_k"):
        request_for(classes, top_k, tiny_spec(), 0.5)


def test_the_request_runs_what_the_artifact_gives():
    assert request_for(None, 1, tiny_spec(), 0.5) == ClassRequest((-1,), 1, 0.5)
    spec = tiny_spec(classes=ClassSelection("topk", 3))
    assert request_for(None, 1, spec, 0.5) == ClassRequest(None, 3, 0.5)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("least", [0.0, 0.02, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    "form",
    [
        {},
        {"profile": "split"},
        {"head_input": "features"},
        {"classes": ClassSelection("top1"), "head_input": "features"},
        {"classes": ClassSelection("topk", 4)},
    ],
)
def test_the_same_as_naming_the_classes(make_artifact, task, least, form):
    named = make_artifact(weights=STEEP, task=task)
    path = make_artifact(weights=STEEP, task=task, **form)
    with load(named, "ort") as asked, load(path, "ort", batch_size=2) as session:
        for image, found in zip(
            IMAGES, session.explain(IMAGES, min_probability=least), strict=True
        ):
            every = asked.explain(image, top_k=4)
            want = [one for one in every if one.probability >= least]
            assert [one.class_id for one in found] == [one.class_id for one in want]
            for a, b in zip(found, want, strict=True):
                assert a.probability == pytest.approx(b.probability, rel=1e-5)
                assert a.evidence == pytest.approx(b.evidence, rel=1e-5)
                np.testing.assert_allclose(a.cam, b.cam, atol=1e-5)


@pytest.mark.parametrize("method", ["eigencam", "ablationcam", "scorecam", "rise"])
def test_methods_of_several_passes_give_every_class(make_artifact, method):
    path = make_artifact(
        weights=STEEP, task="multi-label", head_input="features", emit=("features",)
    )
    how = {"method": method, "method_options": {"masks": 9} if method == "rise" else {}}
    with load(path, "ort") as session:
        found = session.explain(IMAGES[0], min_probability=0.0, **how)
        want = session.explain(IMAGES[0], classes=[e.class_id for e in found], **how)
        assert len(found) == 4
        for a, b in zip(found, want, strict=True):
            assert (a.class_id, a.method) == (b.class_id, method)
            np.testing.assert_allclose(a.cam, b.cam, atol=1e-5)


def test_rise_sums_the_probabilities_of_the_task(make_artifact):
    path = make_artifact(weights=STEEP, task="multi-label")
    with load(path, "ort") as session:
        # With one mask the map is the probability of what it shows, times the mask.
        found = session.explain(
            IMAGES[0], top_k=4, method="rise", method_options={"masks": 1, "keep": 0.9}
        )
    peaks = [float(one.cam.max()) for one in found]
    assert sum(peaks) > 1.2  # of a softmax they would add up to 1 / 0.9 at most


def test_an_artifact_with_too_few_maps_says_so(make_artifact):
    path = make_artifact(weights=STEEP, task="multi-label", classes=ClassSelection("top1"))
    with load(path, "ort") as session, pytest.raises(UsageError, match="--head-graph"):
        session.explain(IMAGES[0], min_probability=0.0)
