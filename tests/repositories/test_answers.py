"""Answers to requests that another server has put together: as a session gives them."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

import sigcam
from sigcam.repositories.answers import Answers
from sigcam.runtime.model import ExportedModel
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import InferRequest, InputTensor, RequestedOutput


@pytest.fixture(scope="module")
def model(make_artifact):
    path = make_artifact()
    with ExportedModel.open(path, "ort") as opened, sigcam.load(path, "ort") as session:
        yield opened, session


def file(seed, height=60, width=80):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".png", noise)[1].tobytes()


def request(*files, outputs=("boxes", "labels"), by_binary=True, **parameters):
    tensor = InputTensor("encoded_image", "BYTES", (len(files), 1), list(files))
    wanted = tuple(RequestedOutput(name, by_binary) for name in outputs)
    return InferRequest((tensor,), wanted, "7", parameters, by_binary)


def outputs_of(answer):
    assert not isinstance(answer, RequestError), answer
    return {one.name: one.data for one in answer.outputs}


def test_requests_that_ask_for_different_things(model) -> None:
    """One, two and three images; classes by rank and by name; a threshold; a method of passes."""
    opened, session = model
    asked = [
        (request(file(1)), {}, 0.2),
        (request(file(2), file(3, 40, 90), top_k=2), {"top_k": 2}, 0.2),
        (request(file(4), file(5), file(6), classes='["blue"]'), {"classes": ["blue"]}, 0.2),
        (request(file(7), threshold=0.8), {}, 0.8),
        (request(file(8), method="rise", masks=12, seed=5),
         {"method": "rise", "method_options": {"masks": 12, "seed": 5}}, 0.2),
        (request(file(9), min_probability=0.0), {"min_probability": 0.0}, 0.2),
    ]  # fmt: skip
    answers = Answers(opened, "tiny", ServeOptions(batch_size=4), by_json=False)
    found = answers.to([one for one, _, _ in asked])
    for answer, (one, arguments, threshold) in zip(found, asked, strict=True):
        assert answer.id == "7"
        got = outputs_of(answer)
        files = one.inputs[0].data
        wanted = [item for each in files for item in session.explain(each, **arguments)]
        assert [label.decode() for label in got["labels"]] == [item.label for item in wanted]
        assert [json.loads(boxes) for boxes in got["boxes"]] == [
            [list(box) for box in item.boxes(threshold)] for item in wanted
        ]


def test_a_wrong_request_costs_the_others_nothing(model) -> None:
    opened, session = model
    good = request(file(1))
    wrong = {
        "truncated": request(file(2)[:200]),
        "no image": request(b"no image at all"),
        "unknown parameter": request(file(3), colour="red"),
        "unknown class": request(file(4), classes='["purple"]'),
        "unknown output": request(file(5), outputs=("nothing",)),
        "two sizes": request(file(6), file(7, 30, 30), outputs=("heatmap",)),
        "too many images": request(*[file(8)] * 17),
        "no input": InferRequest((), None, None),
    }
    answers = Answers(opened, "tiny", ServeOptions(), by_json=False)
    mixed = [good, *wrong.values(), good]
    found = answers.to(mixed)
    expected = [one.label for one in session.explain(file(1))]
    for one in (found[0], found[-1]):
        assert [label.decode() for label in outputs_of(one)["labels"]] == expected
    for name, one in zip(wrong, found[1:-1], strict=True):
        assert isinstance(one, RequestError), name
        assert one.status == 400, name
        assert len(str(one).split()) > 4, name


def test_no_more_maps_than_the_limit(model) -> None:
    """How many classes have a probability shows only when the network has run."""
    opened, _ = model
    answers = Answers(opened, "tiny", ServeOptions(max_classes=2), by_json=False)
    for passes in ({}, {"method": "rise", "masks": 4}):
        many, few = answers.to(
            [request(file(1), min_probability=least, **passes) for least in (0.0, 0.99)]
        )
        assert isinstance(many, RequestError)
        assert "maps of at most 2 for an image" in str(many)
        assert outputs_of(few)["labels"] == []


def test_what_fails_inside_is_told_without_the_inside(model, monkeypatch) -> None:
    opened, _ = model

    def broken(*_, **__):
        raise KeyError("a secret of the machine")

    monkeypatch.setattr(opened, "run", broken)
    (found,) = Answers(opened, "tiny", ServeOptions(), by_json=False).to([request(file(1))])
    assert isinstance(found, RequestError)
    assert found.status == 500
    assert "secret" not in str(found)


def test_files_in_json(model) -> None:
    opened, _ = model
    answers = Answers(opened, "tiny", ServeOptions(), by_json=True)
    (found,) = answers.to([request(file(1), outputs=("heatmap_png",), by_binary=False)])
    assert isinstance(found, RequestError)
    assert "binary_data" in str(found)
