"""POST /explain: the session's own answers, as JSON and as images, for forms and plain bodies."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

pytest.importorskip("starlette", reason="needs the extra serve")


import sigcam
from sigcam.core.spec import ClassSelection
from sigcam.serve.http.multipart import file_of
from sigcam.serve.protocol.errors import RequestError
from tests.serve.requests import reason


@pytest.fixture
def client(serve_all, artifact):
    return serve_all(f"tiny={artifact}")


def decoded(response):
    assert response.status_code == 200, response.text
    return cv2.imdecode(np.frombuffer(response.content, np.uint8), cv2.IMREAD_UNCHANGED)


def form(png):
    return {"files": {"image": ("cat.png", png, "image/png")}}


def test_json_is_what_the_session_says(client, artifact, png):
    words = "classes=red&classes=2&threshold=0.5"
    found = client.post(f"/explain?{words}", **form(png)).json()
    with sigcam.load(artifact, "ort") as session:
        wanted = [one.to_dict(0.5) for one in session.explain(png, classes=["red", 2])]
    for one in wanted:
        del one["source"]
    assert found == {"model": "tiny", "version": "1", "explanations": wanted}


@pytest.mark.parametrize("rank", [1, 3])
def test_images_show_the_map_of_the_class_that_was_asked_for(client, artifact, png, rank):
    with sigcam.load(artifact, "ort") as session:
        one = session.explain(png, classes=-rank)[0]
        overlay, levels = one.overlay(), np.rint(255 * one.heatmap)
    answer = client.post(f"/explain?format=png&rank={rank}", **form(png))
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(decoded(answer)[:, :, ::-1], overlay)
    heatmap = decoded(client.post(f"/explain?format=heatmap&rank={rank}", **form(png)))
    assert np.abs(heatmap - levels).max() <= 1
    named = client.post(f"/explain?format=png&classes={one.class_id}", **form(png))
    assert named.content == answer.content
    jpeg = client.post(f"/explain?format=jpeg&rank={rank}", **form(png))
    assert jpeg.headers["content-type"] == "image/jpeg"
    assert np.abs(decoded(jpeg)[:, :, ::-1].astype(int) - overlay).mean() < 12


def test_a_model_that_chooses_its_classes_itself_shows_each_of_them(serve_all, make_artifact, png):
    artifact = make_artifact(classes=ClassSelection("topk", 3))
    client = serve_all(f"three={artifact}")
    told = client.get("/v1/models/three").json()
    assert (told["most_classes"], told["takes_classes"]) == (3, False)
    with sigcam.load(artifact, "ort") as session:
        wanted = [one.overlay() for one in session.explain(png, top_k=3)]
    for rank, overlay in enumerate(wanted, 1):
        found = decoded(client.post(f"/explain?format=png&rank={rank}", **form(png)))
        assert np.array_equal(found[:, :, ::-1], overlay)
    assert "at most 3" in reason(client.post("/explain?format=png&rank=4", **form(png)))


def test_a_plain_body_is_the_same_as_a_form(client, png):
    by_form = client.post("/explain", **form(png))
    for kind in ("image/png", "application/octet-stream"):
        by_body = client.post("/explain", content=png, headers={"Content-Type": kind})
        assert by_body.content == by_form.content


def test_several_models_have_to_be_named(serve_all, artifact, png):
    client = serve_all(f"one={artifact}", f"two={artifact}")
    assert "?model= (one, two)" in reason(client.post("/explain", **form(png)))
    assert client.post("/explain?model=two", **form(png)).json()["model"] == "two"
    unknown = client.post("/explain?model=..%2F..%2Fetc", **form(png))
    assert "not found" in reason(unknown, 404)


WRONG = {
    "word": ("topk=3", "'topk' isn't known here; known are model"),
    "twice": ("top_k=1&top_k=2", "top_k must come once"),
    "number": ("top_k=many", "top_k must be a whole number, got 'many'"),
    "nan": ("threshold=nan", "threshold must be a number"),
    "format": ("format=gif", "format must be one of json, png, jpeg, heatmap"),
    "rank json": ("rank=2", "rank is for images"),
    "rank 0": ("format=png&rank=0", "rank must be at least 1"),
    "both": ("format=png&rank=1&classes=red", "not both"),
    "several": ("format=png&classes=red&classes=blue", "one class, got several"),
    "top_k png": ("format=png&top_k=2", "top_k is for json"),
    "class": ("classes=zebra", "no class is named 'zebra'"),
    "list": ("classes=[1,2]", "no class is named '[1,2]'"),
    "method": ("method=lime", "lime"),
    "timeout": ("timeout=-1", "timeout must be"),
    "encoding": ("classes=%FF", "can't be read"),
    "threshold": ("threshold=0", "threshold must be above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_refused_with_the_reason(client, png, case):
    words, sentence = WRONG[case]
    assert sentence in reason(client.post(f"/explain?{words}", **form(png)))


def test_wrong_bodies_are_refused_with_the_reason(client, png):
    post = client.post
    two = {"files": [("image", png), ("image", png)]}
    assert "got 'image', 'image'" in reason(post("/explain", **two))
    assert "got 'file'" in reason(post("/explain", files={"file": png}))
    extra = post("/explain", files={"image": png}, data={"top_k": "3"})
    assert "as ?top_k=3" in reason(extra)
    as_json = post("/explain", json={"image": "..."})
    assert "'application/json'" in reason(as_json, 415)
    assert "no Content-Type" in reason(post("/explain", content=png), 415)
    cut = "multipart/form-data; boundary=x"
    body = b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + png
    assert "it was cut" in reason(post("/explain", content=body, headers={"Content-Type": cut}))
    no_boundary = {"Content-Type": "multipart/form-data"}
    assert "no boundary" in reason(post("/explain", content=body, headers=no_boundary))
    damaged = post("/explain", files={"image": png[: len(png) // 2]})
    assert damaged.status_code == 400
    text = post("/explain", files={"image": b"hello"})
    assert "JPEG or PNG or WebP" in reason(text)


def test_a_file_that_holds_the_boundary_comes_whole():
    inner = b"\r\n--xy\r\n--\r\n\r\n--x not at the beginning of a line"
    body = b'--xx\r\nContent-Disposition: form-data; name=image; filename="a"\r\n'
    body += b"Content-Type: image/png\r\n\r\n" + inner + b"\r\n--xx--\r\n"
    assert file_of(body, 'multipart/form-data; boundary="xx"') == inner


@pytest.mark.parametrize("damage", range(40))
def test_no_damage_of_a_form_is_a_fault_of_the_server(damage):
    random = np.random.default_rng(damage)
    body = bytearray(
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nGIF89a\r\n--x--\r\n'
    )
    for place in random.integers(0, len(body), 4):
        body[place] = random.integers(0, 256)
    try:
        file_of(bytes(body[: random.integers(0, len(body) + 1)]), "multipart/form-data; boundary=x")
    except RequestError as exc:
        assert str(exc)


def test_explanations_count_and_carry_an_id(client, png):
    answer = client.post("/explain", **form(png), headers={"X-Request-Id": "a-7"})
    assert answer.headers["x-request-id"] == "a-7"
    client.post("/explain?classes=zebra", **form(png))
    text = client.get("/metrics").text
    assert 'nv_inference_request_success{model="tiny",version="1"} 1.0' in text
    assert 'request_failure{model="tiny",reason="OTHER",version="1"} 1.0' in text
    assert 'nv_inference_exec_count{model="tiny",version="1"} 1.0' in text
    assert 'sigcam_decode_seconds_count{model="tiny",version="1"} 1.0' in text


def test_answers_hold_nothing_of_the_clients_files(client, png):
    (found,) = client.post("/explain", **form(png)).json()["explanations"]
    assert "source" not in found
    json.dumps(found, allow_nan=False)
