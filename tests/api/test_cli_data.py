"""`sigcam train` on a data set of any form: its options, and what it says of bad images."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from tests.support.tiny_datasets import text_writer

pytestmark = pytest.mark.slow

NAMES = [f"{kind}/{index}.png" for kind in ("green", "red") for index in range(4)]


@pytest.fixture
def train(toy, cli, tmp_path):
    def run(data, *options):
        return cli(
            "train", "--arch", toy.arch, "--num-classes", 2, "--data", data,
            "--cache-dir", tmp_path / "cache", "--size", 32, "--views", 2, "--epochs", 1,
            "--out", tmp_path / "branch.safetensors", *options,
        )  # fmt: skip

    return run


@pytest.fixture
def images(toy, tmp_path):
    """A copy of the images in class folders that a test may change."""
    shutil.copytree(toy.data, tmp_path / "images")
    return tmp_path / "images"


def test_text_files_of_their_own_with_a_split_and_a_root(train, images, tmp_path):
    text = text_writer(tmp_path)
    text("lists/one/image_ids.txt", *NAMES)
    text("lists/one/class_labels.txt", *(f"{name},{int(name[0] == 'r')}" for name in NAMES))
    text("lists/two/image_ids.txt", "red/0.png")
    done = train(tmp_path / "lists", "--split", "one", "--data-root", images)
    assert done.exit_code == 0, done.stderr
    assert "8 images, 2 views of each" in done.stderr
    metadata = train(images, "--metadata", tmp_path / "lists", "--split", "one")
    assert metadata.exit_code == 0, metadata.stderr
    lost = train(tmp_path / "lists", "--split", "two", "--data-root", images)
    assert lost.exit_code == 1
    assert "every image needs a class, 1 of 1 have none; no classes: class_labels.txt is mi" in (
        lost.stderr
    )
    assert "loading the model" not in lost.stderr


def test_coco_and_a_format_that_is_named(train, images):
    things = [
        {"image_id": i, "category_id": int(name[0] == "r"), "bbox": [2, 2, 20, 20]}
        for i, name in enumerate(NAMES)
    ]
    things.append({"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1]})
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(NAMES)],
        "annotations": things,
        "categories": [{"id": 0, "name": "green"}, {"id": 1, "name": "red"}],
    }
    (images / "instances.json").write_text(json.dumps(content))
    done = train(images)
    assert done.exit_code == 0, done.stderr
    assert "images of several classes, that of the largest box taken: 1" in done.stderr
    named = train(images, "--format", "folders")
    assert named.exit_code == 0, named.stderr
    assert "left out, no image by its name: 1" in named.stderr
    assert "instances.json" in named.stderr
    refused = train(images, "--format", "folders", "--first-pixel", 0)
    assert refused.exit_code == 2
    assert "is read as folders, which has no first_pixel" in refused.stderr


def test_voc(train, tmp_path):
    text = text_writer(tmp_path / "voc")
    rng = np.random.default_rng(0)
    (tmp_path / "voc" / "JPEGImages").mkdir(parents=True)
    for index, kind in enumerate(("cat", "dog") * 3):
        pixels = rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / "voc" / "JPEGImages" / f"{index}.png"), pixels)
        sides = "<xmin>0</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        thing = f"<object><name>{kind}</name><bndbox>{sides}</bndbox></object>"
        text(f"Annotations/{index}.xml", f"<annotation>{thing}</annotation>")
    refused = train(tmp_path / "voc")
    assert refused.exit_code == 1
    assert "6 problems" in refused.stderr
    assert "0.xml, line 1: pixels count from 1" in refused.stderr
    done = train(tmp_path / "voc", "--first-pixel", 0)
    assert done.exit_code == 0, done.stderr
    assert "6 images, 2 views of each" in done.stderr


def test_bad_images_are_refused_or_left_out_and_said(train, images):
    damaged, truncated = images / "green" / "0.png", images / "red" / "0.png"
    damaged.write_bytes(b"no image")
    truncated.write_bytes(truncated.read_bytes()[:60])  # its header is good
    refused = train(images)
    assert refused.exit_code == 1
    assert "1 problem in the data set; correct them, or leave out" in refused.stderr
    assert (
        f"{images / 'green'}: the image {damaged} is damaged, or no image of a kind that is read"
        in refused.stderr
    )
    assert "loading the model" not in refused.stderr
    done = train(images, "--skip-bad")
    assert done.exit_code == 0, done.stderr
    assert f"left out: {images / 'green'}: the image {damaged} is damaged" in done.stderr
    assert f"left out: {images / 'red'}: red/0.png can't be read" in done.stderr
    assert "6 images, 2 views of each" in done.stderr
    strict = train(images, "--skip-bad", "--strict")
    assert strict.exit_code == 1
    assert f"1 of 7 images of {images} can't be used" in strict.stderr


def test_classes_that_the_model_lacks(train, images):
    shutil.copytree(images / "red", images / "blue")
    done = train(images)
    assert done.exit_code == 1
    assert "has 3 classes (blue, green, red), the model has 2 and no names" in done.stderr
    assert "sigcam train --new-classes" in done.stderr
