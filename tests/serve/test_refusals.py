"""A client's fault is told with its reason, never with a 500, and costs nobody else an answer."""

from __future__ import annotations

import gzip
import json
import struct
import zlib

import cv2
import numpy as np
import pytest

from sigcam.serve.options import ServeOptions
from tests.serve.requests import INFER, binary, body, elements, encoded, reason, tensors

SHAPE = (1, 56, 56, 3)


def tensor(**changes):
    data = np.zeros(SHAPE, np.uint8).ravel().tolist()
    return {"name": "image", "datatype": "UINT8", "shape": SHAPE, "data": data, **changes}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": "picture"}, "unexpected inference input 'picture' for model 'tiny'"),
        ({"datatype": "INT8"}, "data-type is 'INT8', but model 'tiny' expects 'UINT8'"),
        ({"shape": [1, 56, 168]}, "Expected [-1,56,56,3], got [1,56,168]"),
        ({"shape": [1, 3, 56, 56]}, "Expected [-1,56,56,3], got [1,3,56,56]"),
        ({"shape": [56, 56, 3]}, "batch-size must be from 1 to 16"),
        ({"shape": [0, 56, 56, 3], "data": []}, "batch-size must be from 1 to 16"),
        ({"shape": [], "data": [1]}, "has no shape"),
    ],
)
def test_the_networks_own_input(client, changes, wanted):
    assert wanted in reason(client.post(INFER, json=body(tensor(**changes))))


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ({"topk": 1}, "unknown parameter 'topk'"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": 1.5}, "top_k must be a whole number"),
        ({"top_k": "2"}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number"),
        ({"top_k": 5}, "top_k must be at most 4"),
        ({"top_k": 10**4000}, "classes are asked for"),
        ({"top_k": 100_000}, "at most 100"),
        ({"classes": [0] * 100_000}, "100000 classes are asked for"),
        ({"classes": 4}, "class 4 doesn't exist"),
        ({"classes": -5}, "class -5 doesn't exist"),
        ({"classes": "purple"}, "no class is named 'purple'"),
        ({"classes": ""}, "no class is named ''"),
        ({"classes": 1.0}, "a class is an id or a name"),
        ({"classes": True}, "a class is an id or a name"),
        ({"classes": "[1"}, "isn't one"),
        ({"classes": "[]"}, "at least one class"),
        ({"classes": []}, "at least one class"),
        ({"classes": "[[1]]"}, "a class is an id or a name"),
        ({"classes": "[" * 100_000}, "isn't one"),
        ({"classes": "red", "top_k": 2}, "classes or top_k"),
        ({"min_probability": 2}, "min_probability must be from 0 to 1"),
        ({"min_probability": 0.1, "classes": "red"}, "neither classes nor top_k"),
        ({"threshold": 0}, "threshold must be"),
        ({"threshold": 1e999}, "threshold must be"),
        ({"method": "gradcam"}, "method may be one of"),
        ({"method": 3}, "method must be a text"),
        ({"method": "scorecam"}, "needs the artifact's features"),
        ({"masks": 10}, "no option of the artifact's own method"),
        ({"method": "rise", "masks": 0}, "masks"),
        ({"method": "rise", "masks": 1e999}, "masks"),
        ({"method": "rise", "masks": 10, "keep": 1e999}, "keep"),
        ({"method": "rise", "masks": "10"}, "masks must be a number"),
        ({"method": "rise", "masks": 10**400}, "masks"),
        ({"timeout": -1}, "timeout must be"),
        ({"timeout": 1 << 80}, "timeout must be"),
        ({"priority": 1}, "priority must be 0"),
        ({"sequence_id": 7}, "unknown parameter 'sequence_id'"),
    ],
)
def test_parameters(client, png, parameters, wanted):
    asked = body(encoded(png), outputs=["labels"], parameters=parameters)
    told = reason(client.post(INFER, content=json.dumps(asked).replace("Infinity", "1e999")))
    assert wanted in told
    assert len(told) <= 3000


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ({"datatype": "INT32"}, "expects 'INT64'"),
        ({"shape": [2]}, "Expected [-1,-1], got [2]"),
        ({"shape": [2, 1], "data": [0, 1]}, "batch size does not match"),
        ({"shape": [1, 0], "data": []}, "from 1 to 100 classes"),
        ({"shape": [1, 101], "data": [0] * 101}, "from 1 to 100 classes"),
        ({"data": [0, 4]}, "class 4 doesn't exist"),
        ({"data": [0, -(1 << 63)]}, "doesn't exist"),
    ],
)
def test_class_ids(client, png, ids, wanted):
    given = {"name": "class_ids", "datatype": "INT64", "shape": [1, 2], "data": [0, 1], **ids}
    assert wanted in reason(client.post(INFER, json=body(encoded(png), given)))


def test_class_ids_beside_parameters_or_without_an_input_for_them(
    client, serve, make_artifact, png
):
    ids = {"name": "class_ids", "datatype": "INT64", "shape": [1, 1], "data": [0]}
    asked = body(encoded(png), ids, parameters={"top_k": 2})
    assert "not by both" in reason(client.post(INFER, json=asked))
    from sigcam.core.spec import ClassSelection

    other = serve(f"tiny={make_artifact(classes=ClassSelection('top1'))}")
    told = reason(other.post(INFER, json=body(encoded(png), ids)))
    assert "unexpected inference input 'class_ids'" in told
    asked = body(encoded(png), parameters={"classes": "red"})
    assert "chooses its classes itself" in reason(other.post(INFER, json=asked))


@pytest.mark.parametrize(
    ("outputs", "wanted"),
    [
        (["cam"], "unexpected inference output 'cam' for model 'tiny'"),
        (["heatmap_png"], "JSON can't hold"),
        (["overlay_jpeg"], "JSON can't hold"),
        ([{"name": "logits", "parameters": {"content_type": "base64"}}], "base64 is for BYTES"),
    ],
)
def test_outputs(client, png, outputs, wanted):
    assert wanted in reason(client.post(INFER, json=body(encoded(png), outputs=outputs)))


def test_neither_or_both_images(client, png):
    ids = {"name": "class_ids", "datatype": "INT64", "shape": [1, 1], "data": [0]}
    assert "got neither" in reason(client.post(INFER, json=body(ids)))
    assert "got both" in reason(client.post(INFER, json=body(encoded(png), tensor())))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side):
    """A PNG that says it has side x side pixels, in some hundred bytes."""
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def damaged(png):
    yield "empty", b"", "0 bytes of something else"
    yield "text", b"hello", "5 bytes of something else"
    yield "cut", png[: len(png) // 2], "truncated"
    yield "head only", png[:20], "image 0"
    yield "a byte changed", png[:60] + bytes([png[60] ^ 255]) + png[61:], "image 0"
    yield "bomb", bomb(60_000), "60000 x 60000 pixels, more than"
    yield "bitmap", cv2.imencode(".bmp", np.zeros((4, 4, 3), np.uint8))[1].tobytes(), "got a BMP"
    yield "tiff", cv2.imencode(".tiff", np.zeros((4, 4, 3), np.uint8))[1].tobytes(), "got a TIFF"
    yield "jpeg head", b"\xff\xd8\xff\xe0" + b"\0" * 100, "image 0"
    yield "webp head", b"RIFF\x05\0\0\0WEBPVP8 ", "image 0"


def test_damaged_images(client, png):
    for what, data, wanted in damaged(png):
        response = client.post(INFER, **binary({"encoded_image": ("BYTES", [1], elements([data]))}))
        assert wanted in reason(response), what
    good = body(encoded(png), outputs=["labels"])
    assert tensors(client.post(INFER, json=good))["labels"] == ["red"]


@pytest.mark.parametrize("suffix", [".webp", ".png", ".gif"])
def test_animations(serve, artifact, suffix, tmp_path):
    """A session warns that it reads the first image; a client would never hear of that."""
    frames = [np.full((20, 30, 3), value, np.uint8) for value in (0, 100, 200)]
    animation = cv2.Animation()
    animation.frames, animation.durations = frames, [100] * 3
    path = tmp_path / f"moving{suffix}"
    assert cv2.imwriteanimation(str(path), animation)
    client = serve(f"tiny={artifact}", options=ServeOptions(image_formats=("PNG", "WebP", "GIF")))
    told = reason(client.post(INFER, json=body(encoded(path.read_bytes()))))
    assert "of 3 images; send the one that is meant" in told


def test_one_bad_image_of_several_is_named(client, png):
    told = reason(client.post(INFER, json=body(encoded(png, b"bad", png))))
    assert told.startswith("image 1 of input 'encoded_image'")


@pytest.mark.parametrize("shape", [[], [1, 1, 1], [1, 2], [2]])
def test_shapes_of_encoded_images(client, png, shape):
    given = encoded(png, shape=shape)
    assert reason(client.post(INFER, json=body(given)))


def test_limits(serve, artifact, png):
    options = ServeOptions(
        request_images=2, request_bytes=100_000, max_pixels=10_000, response_bytes=100_000
    )
    client = serve(f"tiny={artifact}", options=options)
    small = cv2.imencode(".png", np.zeros((90, 100, 3), np.uint8))[1].tobytes()
    assert tensors(client.post(INFER, json=body(encoded(small, small), outputs=["labels"])))
    assert "from 1 to 2" in reason(client.post(INFER, json=body(encoded(small, small, small))))
    assert "120 x 90 pixels, more than" in reason(client.post(INFER, json=body(encoded(png))))
    told = reason(client.post(INFER, content=b" " * 100_001), 413)
    assert "100000 bytes" in told

    def chunks():
        for _ in range(11):
            yield b" " * 10_000

    assert "100000 bytes" in reason(client.post(INFER, content=chunks()), 413)
    asked = binary({"encoded_image": ("BYTES", [1], elements([small]))}, ["heatmap"],
                   parameters={"top_k": 3})  # fmt: skip
    assert "108000 bytes" in reason(client.post(INFER, **asked))
    asked = binary({"encoded_image": ("BYTES", [1], elements([small]))}, ["heatmap"],
                   parameters={"min_probability": 0.0})  # fmt: skip
    assert "bytes before they are compressed" in reason(client.post(INFER, **asked))


@pytest.mark.parametrize("method", [{}, {"method": "rise", "masks": 4}])
def test_no_more_maps_than_the_limit_by_a_least_probability(serve, artifact, png, method):
    """How many classes have it shows only when the network has run."""
    client = serve(f"tiny={artifact}", options=ServeOptions(max_classes=2))
    asked = body(encoded(png), outputs=["labels"], parameters={"min_probability": 0.0, **method})
    told = reason(client.post(INFER, json=asked))
    assert "4 classes have a probability of at least 0" in told
    assert "maps of at most 2 for an image" in told
    asked["parameters"]["min_probability"] = 0.99
    assert tensors(client.post(INFER, json=asked))["labels"] == []


def test_many_maps_of_a_large_photograph_do_not_fill_the_memory(client):
    """Each of its heatmaps takes 36 MB as numbers, and none outlives the output it was made for."""
    import tracemalloc

    large = cv2.imencode(".png", np.zeros((3000, 3000, 3), np.uint8))[1].tobytes()
    asked = body(encoded(large), outputs=["boxes", "explanations"], parameters={"classes": [0] * 9})
    tracemalloc.start()
    try:
        assert len(tensors(client.post(INFER, json=asked))["boxes"]) == 9
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    asked["parameters"] = {"classes": [0] * 90}
    assert "bytes before they are compressed" in reason(client.post(INFER, json=asked))


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "", "9" * 30, "٣"])
def test_lengths_of_the_json(client, length):
    headers = {"Inference-Header-Content-Length": length.encode()}
    reason(client.post(INFER, content=b"{}", headers=headers))


def test_compressed_bodies(client, png):
    content = json.dumps(body(encoded(png), outputs=["labels"])).encode()
    for name, packed in (("gzip", gzip.compress(content)), ("Deflate", zlib.compress(content))):
        headers = {"Content-Encoding": name}
        found = tensors(client.post(INFER, content=packed, headers=headers))
        assert found["labels"] == ["red"]
        for damaged in (packed[:-9], packed + b"x", packed + packed, b"", content):
            told = reason(client.post(INFER, content=damaged, headers=headers))
            assert told.startswith("the body isn't")
    bomb = zlib.compress(b" " * (100 << 20), 9)
    assert len(bomb) < 1 << 20
    headers = {"Content-Encoding": "deflate"}
    assert "longer than" in reason(client.post(INFER, content=bomb, headers=headers), 413)
    headers = {"Content-Encoding": "br"}
    assert "compressed by 'br'" in reason(client.post(INFER, content=b"", headers=headers), 415)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/none/infer", 404),
        ("/v2/models/tiny/versions/2/infer", 404),
        ("/v2/models/tiny/versions/x/infer", 404),
        ("/v2/models/../tiny/infer", 404),
        ("/v2/models/%2e%2e%2fetc/infer", 404),
        ("/v2/models/%2fetc%2fpasswd/infer", 404),
        ("/v2/models/tiny%00/infer", 404),
        ("/v2/models/" + "a" * 5000 + "/infer", 404),
        ("/v2/models/tiny/versions/..%2f1/infer", 404),
        ("/nothing", 404),
    ],
)
def test_paths(client, path, status):
    assert reason(client.post(path, json=body(tensor())), status)


def test_methods(client):
    assert "Not Allowed" in reason(client.get(INFER), 405)
    assert "Not Allowed" in reason(client.post("/v2/health/live"), 405)


def test_a_broken_backend_is_the_servers_fault_and_told_in_a_sentence(client, png, monkeypatch):
    served = client.service.models.get("tiny")
    monkeypatch.setattr(served.model, "run", lambda *_, **__: 1 / 0)
    told = reason(client.post(INFER, json=body(encoded(png))), 500)
    assert told == "the server failed; its log says why"
    monkeypatch.undo()
    assert client.post(INFER, json=body(encoded(png))).status_code == 200
