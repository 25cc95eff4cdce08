"""The damage: it changes something, keeps the form where it should, and follows from its seed."""

import io
import json
import random
import struct
import zipfile
from xml.parsers import expat

import cv2
import numpy as np
import pytest

from sigcam.images.decode import read_image
from tests.robustness import structured
from tests.robustness.mutators import BYTES, mutate_bytes

WHOLE = bytes(range(256)) * 20
TREE = json.dumps({"a": [1, 2, {"b": None}], "c": "text", "d": {"e": 1.5}})
IMAGE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def _is_read(reader, data):
    try:
        reader(data)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_damaged(name):
    changed = sum(
        bytes(BYTES[name](bytearray(WHOLE), random.Random(seed), b"other" * 9)) != WHOLE
        for seed in range(50)
    )
    assert changed > 40


def test_damage_is_another_file_whatever_the_seed():
    made = [mutate_bytes(WHOLE, random.Random(seed), b"other")[0] for seed in range(300)]
    assert all(one != WHOLE for one in made)
    assert made == [mutate_bytes(WHOLE, random.Random(seed), b"other")[0] for seed in range(300)]
    for data in (b"", b"a"):
        mutate_bytes(data, random.Random(0), b"")


def test_json_stays_json_in_most_cases():
    texts = [structured.mutate_json(TREE, random.Random(seed))[0] for seed in range(400)]
    assert sum(text != TREE for text in texts) > 350  # now and then a value is replaced by its like
    whole = sum(_is_read(json.loads, text) for text in texts)
    assert 200 < whole < 390  # the others are too deep, or have too many digits


def test_values_are_now_and_then_very_long():
    lengths = [len(str(structured.strange_value(random.Random(seed)))) for seed in range(1500)]
    assert max(lengths) == structured.LONG_TEXT
    assert sum(length == structured.LONG_TEXT for length in lengths) < 20


def test_xml_is_taken_apart_by_its_elements():
    text = "<a><b>1</b><c>two</c></a>"
    made = [structured.mutate_xml(text, random.Random(seed)) for seed in range(70)]
    assert all(one != text for one, _ in made)
    read = [
        _is_read(lambda text: expat.ParserCreate().Parse(text.encode(), True), one)
        for one, _ in made
    ]
    assert sum(read) > 20


def test_the_header_of_safetensors_has_the_right_length():
    header = TREE.encode()
    data = struct.pack("<Q", len(header)) + header + b"tensors"
    for seed in range(100):
        made, _ = structured.mutate_safetensors(data, random.Random(seed))
        (size,) = struct.unpack_from("<Q", made)
        assert made[8 + size :] == b"tensors"


def test_protobuf_is_read_and_written_alike():
    import onnx

    from tests.support.tiny import artifact_graph, tiny_spec

    model = onnx.helper.make_model(artifact_graph(onnx, tiny_spec()))
    data = model.SerializeToString()
    assert structured._joined(structured._fields(data)) == data
    made = [structured.mutate_protobuf(data, random.Random(seed))[0] for seed in range(100)]
    assert all(one != data for one in made)
    assert sum(_is_read(onnx.load_from_string, one) for one in made) > 60


@pytest.mark.parametrize("form", ["PNG", "WebP", "JPEG", "AVIF"])
def test_images_are_taken_apart_and_put_together(form):
    suffix = {"PNG": ".png", "WebP": ".webp", "JPEG": ".jpg", "AVIF": ".avif"}[form]
    try:
        data = cv2.imencode(suffix, IMAGE)[1].tobytes()
    except cv2.error:
        pytest.skip(f"this OpenCV writes no {form}")
    apart, together = structured._FORMS[form]
    assert together(apart(data)) == data
    assert len(apart(data)) > 1 or form == "WebP"


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".gif", ".bmp", ".tif"])
def test_a_huge_size_is_read_as_one(suffix):
    form = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF", ".bmp": "BMP", ".tif": "TIFF"}[suffix]
    data = cv2.imencode(suffix, IMAGE)[1].tobytes()
    read_image(data)
    made = [structured.huge_size(data, random.Random(seed), form) for seed in range(20)]
    assert all(done == "huge size" and one != data for one, done in made)


def test_an_archive_is_one_again():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in "abc":
            archive.writestr(name, b"content of " + name.encode())
    for seed in range(9):
        made, _ = structured.mutate_zip(file.getvalue(), random.Random(seed))
        with zipfile.ZipFile(io.BytesIO(made)) as archive:
            assert archive.testzip() is None
