"""KServe's first protocol: the session's own answers for each instance, and refusals."""

from __future__ import annotations

import base64

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")


import sigcam
from tests.serve.requests import reason

PREDICT, EXPLAIN = "/v1/models/tiny:predict", "/v1/models/tiny:explain"


@pytest.fixture
def client(serve_all, artifact):
    return serve_all(f"tiny={artifact}")


@pytest.fixture(scope="module")
def wide():
    """Another image of another size, as a PNG."""
    made = np.random.default_rng(2).integers(0, 255, (64, 150, 3), dtype=np.uint8)
    return cv2.imencode(".png", made)[1].tobytes()


def b64(data):
    return {"b64": base64.b64encode(data).decode()}


def test_predictions_come_one_list_an_instance(client, artifact, png, wide):
    instances = [b64(png), {"image": b64(wide)}]
    asked = {"instances": instances, "parameters": {"top_k": 2}}
    found = client.post(PREDICT, json=asked).json()["predictions"]
    with sigcam.load(artifact, "ort") as session:
        wanted = session.explain([png, wide], top_k=2)
    for mine, theirs in zip(found, wanted, strict=True):
        assert [one["label"] for one in mine] == [one.label for one in theirs]
        for one, other in zip(mine, theirs, strict=True):
            assert set(one) == {"class_id", "label", "probability", "evidence"}
            assert one["probability"] == pytest.approx(other.probability, abs=1e-6)
            assert one["evidence"] == pytest.approx(other.evidence, abs=1e-6)


def test_explanations_have_boxes_and_the_heatmap(client, artifact, png, wide):
    asked = {"instances": [b64(png), b64(wide)], "parameters": {"classes": ["red", "blue"]}}
    found = client.post(EXPLAIN, json=asked).json()["explanations"]
    with sigcam.load(artifact, "ort") as session:
        wanted = session.explain([png, wide], classes=["red", "blue"])
    for mine, theirs in zip(found, wanted, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert one["boxes"] == [list(box) for box in other.boxes()]
            data = base64.b64decode(one["heatmap_png"]["b64"])
            heatmap = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.abs(heatmap - np.rint(255 * other.heatmap)).max() <= 1


def test_arrays_are_the_networks_own_input(client, artifact):
    arrays = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)
    found = client.post(PREDICT, json={"instances": arrays.tolist()}).json()["predictions"]
    named = [{"image": one} for one in arrays.tolist()]
    assert client.post(PREDICT, json={"instances": named}).json()["predictions"] == found
    with sigcam.load(artifact, "ort") as session:
        logits = session._model.run(arrays).logits
    assert [one[0]["class_id"] for one in found] == logits.argmax(1).tolist()


def test_models_are_listed_and_described(client):
    assert client.get("/v1/models").json() == {"models": ["tiny"]}
    told = client.get("/v1/models/tiny").json()
    assert told == {
        "name": "tiny", "ready": True, "version": "1", "takes_classes": True, "most_classes": 4,
    }  # fmt: skip
    assert "not found" in reason(client.get("/v1/models/nope"), 404)
    assert "not found" in reason(client.post("/v1/models/nope:predict", json={}), 404)


def wrong(png):
    whole = np.zeros((56, 56, 3), int).tolist()
    return {
        "no instances": ({}, 'Expected "instances" to be a list'),
        "empty": ({"instances": []}, 'Expected "instances"'),
        "other": ({"instances": [1], "signature_name": "serving"}, "signature_name"),
        "base64": ({"instances": [{"b64": "?"}]}, "instance 0 isn't base64"),
        "key": ({"instances": [b64(png), {"file": "/etc/passwd"}]}, "instance 1 can't be read"),
        "both": ({"instances": [b64(png), whole]}, "all files of images, or all arrays"),
        "ragged": ({"instances": [[[1, 2], [3]]]}, "make no array"),
        "float": ({"instances": [[[[0.5] * 3] * 56] * 56]}, "of the type uint8, got float64"),
        "range": ({"instances": [[[[300] * 3] * 56] * 56]}, "doesn't hold: from 300 to 300"),
        "shape": ({"instances": [[1, 2, 3]]}, "Expected [-1,56,56,3], got [1,3]"),
        "text": ({"instances": ["hello"]}, "must be numbers"),
        "huge": ({"instances": [[10**30]]}, "must be numbers"),
        "parameters": ({"instances": [b64(png)], "parameters": [1]}, "must be an object"),
        "value": ({"instances": [b64(png)], "parameters": {"top_k": None}}, "'top_k' must be"),
        "unknown": ({"instances": [b64(png)], "parameters": {"topk": 1}}, "unknown parameter"),
        "image": ({"instances": [b64(png[:50])]}, "image 0"),
    }


@pytest.mark.parametrize("case", wrong(b""))
def test_what_is_wrong_is_said(client, png, case):
    asked, sentence = wrong(png)[case]
    for address in (PREDICT, EXPLAIN):
        assert sentence in reason(client.post(address, json=asked))
