"""What is answered is what `Session.explain` gives, whichever way it is asked for."""

from __future__ import annotations

import base64
import json

import cv2
import numpy as np
import pytest

from sigcam.runtime.session import load
from tests.serve.requests import INFER, binary, body, elements, encoded, reason, tensors
from tests.support.tiny import NAMES


@pytest.fixture(scope="module")
def session(artifact):
    with load(artifact, "ort") as opened:
        yield opened


def test_every_output_of_an_encoded_image(client, session, png):
    (best, second) = session.explain(png, top_k=2)
    names = [
        "logits", "probabilities", "class_ids_out", "labels", "evidence", "evidence_logits", "cams",
        "heatmap", "heatmap_uint8", "heatmap_png", "overlay_png", "overlay_jpeg", "boxes",
        "explanations",
    ]  # fmt: skip
    asked = binary(
        {"encoded_image": ("BYTES", [1], elements([png]))}, names, parameters={"top_k": 2}, id="42"
    )
    response = client.post(INFER, **asked)
    found = tensors(response)
    assert list(found) == names
    assert found["class_ids_out"].tolist() == [[best.class_id, second.class_id]]
    assert found["labels"] == [best.label.encode(), second.label.encode()]
    assert found["probabilities"][0, best.class_id] == np.float32(best.probability)
    assert found["evidence"].tolist() == [[np.float32(best.evidence), np.float32(second.evidence)]]
    assert np.allclose(1 / (1 + np.exp(-found["evidence_logits"])), found["evidence"], atol=1e-6)
    assert np.array_equal(found["cams"][0], [best.cam, second.cam])
    assert np.array_equal(found["heatmap"][0], [best.heatmap, second.heatmap])
    levels = np.empty(best.heatmap.shape, np.uint8)
    best.write_heatmap(levels)
    assert np.array_equal(found["heatmap_uint8"][0, 0], levels)
    assert np.array_equal(_decoded(found["heatmap_png"][0], cv2.IMREAD_UNCHANGED), levels)
    assert np.array_equal(_decoded(found["overlay_png"][1])[:, :, ::-1], second.overlay())
    assert found["overlay_jpeg"][0].startswith(b"\xff\xd8\xff")
    assert json.loads(found["boxes"][0]) == [list(box) for box in best.boxes()]
    told = json.loads(found["explanations"][1])
    wanted = second.to_dict()
    del wanted["source"]
    assert told == wanted
    head = json.loads(response.content[: int(response.headers["inference-header-content-length"])])
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", "tiny", "1")


def test_the_networks_own_input(client, session):
    image = np.random.default_rng(0).integers(0, 255, (2, 56, 56, 3), dtype=np.uint8)
    asked = {"image": ("UINT8", image.shape, image.tobytes())}
    names = ["logits", "cams", "heatmap", "overlay_png"]
    found = tensors(client.post(INFER, **binary(asked, names)))
    outputs = session._model.run(image)
    assert np.array_equal(found["logits"], outputs.logits)
    assert np.array_equal(found["cams"], outputs.cams)
    assert found["heatmap"].shape == (2, 1, 56, 56)
    assert found["heatmap"].max() == pytest.approx(1)
    assert _decoded(found["overlay_png"][1]).shape == (56, 56, 3)


def test_json_gives_the_same_as_binary_data(client):
    image = np.random.default_rng(0).integers(0, 255, (1, 56, 56, 3), dtype=np.uint8)
    nested = {"name": "image", "datatype": "UINT8", "shape": image.shape, "data": image.tolist()}
    flat = {**nested, "data": image.ravel().tolist()}
    names = ["logits", "cams", "class_ids_out", "probabilities", "heatmap"]
    asked = binary({"image": ("UINT8", image.shape, image.tobytes())}, names)
    wanted = tensors(client.post(INFER, **asked))
    for one in (nested, flat):
        found = tensors(client.post(INFER, json=body(one, outputs=names)))
        assert all(np.array_equal(found[name], wanted[name]) for name in names)


def test_without_outputs_the_models_own_come(client, png):
    asked = binary({"encoded_image": ("BYTES", [1], elements([png]))})
    assert list(tensors(client.post(INFER, **asked))) == [
        "logits", "class_ids_out", "evidence_logits", "cams",
    ]  # fmt: skip
    asked = binary(
        {"image": ("BYTES", [1, 1], elements([png]))}, parameters={"binary_data_output": True}
    )
    response = client.post(INFER, **asked)
    assert "inference-header-content-length" in response.headers
    assert set(tensors(response)) == {"logits", "class_ids_out", "evidence_logits", "cams"}


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"classes": "blue"}, ["blue"]),
        ({"classes": 1}, ["green"]),
        ({"classes": '["Warm", 0, -1]'}, ["Warm", "red", "red"]),
        ({"classes": ["blue", 3]}, ["blue", "Warm"]),
        ({"classes": "2"}, ["blue"]),
        ({"top_k": 3}, ["red", "blue", "green"]),
        ({"min_probability": 0.25}, ["red", "blue"]),
        ({"min_probability": 0.99}, []),
    ],
)
def test_classes(client, png, parameters, wanted):
    asked = body(encoded(png), outputs=["labels", "cams", "boxes"], parameters=parameters)
    found = tensors(client.post(INFER, json=asked))
    assert found["labels"] == wanted
    assert found["cams"].shape == (1, len(wanted), 7, 7)
    assert len(found["boxes"]) == len(wanted)


def test_class_ids_as_a_tensor_differ_from_image_to_image(client, png):
    ids = {"name": "class_ids", "datatype": "INT64", "shape": [2, 2], "data": [0, 3, -1, 2]}
    found = tensors(client.post(INFER, json=body(encoded(png, png), ids, outputs=["labels"])))
    assert found["labels"] == ["red", "Warm", "red", "blue"]


def test_threshold(client, session, png):
    asked = body(encoded(png), outputs=["boxes"], parameters={"threshold": 0.8})
    (text,) = tensors(client.post(INFER, json=asked))["boxes"]
    assert json.loads(text) == [list(box) for box in session.explain(png)[0].boxes(0.8)]


def test_methods_of_several_passes(serve, make_artifact, png):
    path = make_artifact(emit=("features",))
    client = serve(f"tiny={path}")
    with load(path, "ort") as session:
        for method in ("scorecam", "eigencam"):
            asked = body(encoded(png), outputs=["cams"], parameters={"method": method})
            found = tensors(client.post(INFER, json=asked))["cams"]
            assert np.allclose(found[0, 0], session.explain(png, method=method)[0].cam, atol=1e-6)
        asked = body(encoded(png), parameters={"method": "rise", "masks": 20, "cells": 3})
        found = tensors(client.post(INFER, json=asked))["cams"][0, 0]
        options = {"masks": 20, "cells": 3}
        (wanted,) = session.explain(png, method="rise", method_options=options)
        assert np.allclose(found, wanted.cam, atol=1e-6)
        asked = body(encoded(png), parameters={"method": "rise"})
        assert "4001 runs" in reason(client.post(INFER, json=asked))


@pytest.mark.parametrize("method", ["eigencam", "scorecam"])
def test_artifacts_whose_own_method_is_outside_the_graph(serve, make_artifact, png, method):
    path = make_artifact(method=method, profile="features", head_input="features")
    client = serve(f"tiny={path}")
    found = tensors(client.post(INFER, json=body(encoded(png), outputs=["labels", "cams"])))
    with load(path, "ort") as session:
        (wanted,) = session.explain(png)
    assert wanted.method == method
    assert found["labels"] == [wanted.label]
    assert np.allclose(found["cams"][0, 0], wanted.cam, atol=1e-6)


def test_images_of_several_sizes(client, png):
    other = cv2.imencode(".png", np.full((70, 60, 3), 200, np.uint8))[1].tobytes()
    found = tensors(client.post(INFER, json=body(encoded(png, other), outputs=["boxes", "cams"])))
    assert len(found["boxes"]) == 2
    asked = body(encoded(png, other), outputs=["heatmap"])
    assert "120 x 90" in reason(client.post(INFER, json=asked))


def test_a_photograph_is_turned_upright(client, image):
    """What viewers show is what maps are of."""
    pillow = pytest.importorskip("PIL.Image")
    import io

    turned = io.BytesIO()
    exif = pillow.Exif()
    exif[0x0112] = 6  # stored lying: turn clockwise
    pillow.fromarray(np.ascontiguousarray(np.rot90(image))).save(turned, "PNG", exif=exif)
    asked = body(encoded(turned.getvalue()), outputs=["explanations"])
    told = json.loads(tensors(client.post(INFER, json=asked))["explanations"][0])
    assert (told["width"], told["height"]) == (120, 90)
    assert told["label"] == "red"


def test_a_raw_request_is_a_file_and_nothing_else(client, png):
    headers = {"Inference-Header-Content-Length": "0"}
    response = client.post(INFER, content=png, headers=headers)
    found = tensors(response)
    wanted = tensors(client.post(INFER, json=body(encoded(png))))
    assert list(found) == ["logits", "class_ids_out", "evidence_logits", "cams"]
    assert all(np.array_equal(found[name], wanted[name]) for name in found)
    assert "something else" in reason(client.post(INFER, content=b"{}", headers=headers))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("size", [(2100, 1400), (700, 500), (56, 56), (3, 200)])
def test_files_of_all_sizes_give_what_a_session_gives(client, session, image, suffix, size):
    """Also where a JPEG is decoded smaller, and where the image is decoded again for an overlay."""
    file = cv2.imencode(suffix, cv2.resize(image[:, :, ::-1], size))[1].tobytes()
    (wanted,) = session.explain(file)
    names = ["heatmap", "boxes", "overlay_png", "labels", "probabilities"]
    asked = binary({"encoded_image": ("BYTES", [1], elements([file]))}, names)
    found = tensors(client.post(INFER, **asked))
    assert np.array_equal(found["heatmap"][0, 0], wanted.heatmap)
    assert json.loads(found["boxes"][0]) == [list(box) for box in wanted.boxes()]
    assert np.array_equal(_decoded(found["overlay_png"][0])[:, :, ::-1], wanted.overlay())
    assert found["labels"] == [wanted.label.encode()]
    assert found["probabilities"][0, wanted.class_id] == np.float32(wanted.probability)


@pytest.mark.parametrize("rule", ["stretch", "letterbox"])
@pytest.mark.parametrize("profile", ["fused", "split"])
def test_other_kinds_of_models(serve, make_artifact, png, rule, profile):
    from sigcam.core.spec import ClassSelection, Preprocessing

    preprocessing = Preprocessing(height=56, width=56, rule=rule)
    selection = ClassSelection("topk", 3)
    path = make_artifact(preprocessing=preprocessing, profile=profile, classes=selection)
    with load(path, "ort") as session:
        wanted = session.explain(png, top_k=2)
    asked = binary({"encoded_image": ("BYTES", [1], elements([png]))},
                   ["heatmap", "cams", "class_ids_out"], parameters={"top_k": 2})  # fmt: skip
    found = tensors(serve(f"tiny={path}").post(INFER, **asked))
    assert np.array_equal(found["heatmap"][0], [one.heatmap for one in wanted])
    assert np.array_equal(found["cams"][0], [one.cam for one in wanted])
    assert found["class_ids_out"].tolist() == [[one.class_id for one in wanted]]


def test_bytes_as_base64(client, png):
    output = {"name": "heatmap_png", "parameters": {"content_type": "base64"}}
    (text,) = tensors(client.post(INFER, json=body(encoded(png), outputs=[output])))["heatmap_png"]
    assert _decoded(base64.b64decode(text)).shape[:2] == (90, 120)


def test_a_normalised_input(serve, make_artifact, png):
    path = make_artifact(preprocessing=_normalised())
    client = serve(f"tiny={path}")
    array = np.random.default_rng(0).random((1, 3, 56, 56), np.float32)
    asked = {"image": ("FP32", array.shape, array.tobytes())}
    assert tensors(client.post(INFER, **binary(asked, ["heatmap"])))["heatmap"].shape[2:] == (
        56,
        56,
    )
    assert "drawn" in reason(client.post(INFER, **binary(asked, ["overlay_png"])))
    for bad in (np.nan, np.inf):
        array[0, 1, 2, 3] = bad
        asked = {"image": ("FP32", array.shape, array.tobytes())}
        assert "finite" in reason(client.post(INFER, **binary(asked)))
    array[:] = 3e38  # finite, and beyond what the network can add up
    asked = {"image": ("FP32", array.shape, array.tobytes())}
    assert "finite" in reason(client.post(INFER, **binary(asked)))
    assert tensors(client.post(INFER, json=body(encoded(png), outputs=["labels"])))


def test_configuration(client):
    found = client.get("/v2/models/tiny/config").json()
    assert (found["name"], found["max_batch_size"]) == ("tiny", 16)
    dims = {one["name"]: (one["data_type"], one["dims"]) for one in found["input"]}
    assert dims["image"] == ("TYPE_UINT8", [56, 56, 3])
    assert dims["encoded_image"] == ("TYPE_STRING", [1])


def test_names_of_classes(client):
    assert client.get("/v2/models/tiny").json()["outputs"][0]["shape"] == [-1, len(NAMES)]


def _normalised():
    from sigcam.core.spec import Preprocessing

    return Preprocessing(height=56, width=56, resize=64, layout="float32_nchw")


def _decoded(data, flags=cv2.IMREAD_COLOR):
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
