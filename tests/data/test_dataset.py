"""What training asks of a data set: labels, classes, a fingerprint; and what was left out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sigcam.core.errors import DataError
from sigcam.data import Dataset, Problem, labelled, left_out, open_dataset, unread
from tests.support.tiny_datasets import image_writer, text_writer


def write_wsol(root):
    text = text_writer(root)
    text("metadata/image_ids.txt", "images/a.png", "images/b.png")
    text("metadata/class_labels.txt", "images/b.png,0", "images/a.png,1")


def write_voc(root):
    for name, kind in (("a", "dog"), ("b", "cat")):
        shutil.copytree(root / "images", root / "JPEGImages", dirs_exist_ok=True)
        sides = "<xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax>"
        content = f"<object><name>{kind}</name><bndbox>{sides}</bndbox></object>"
        text_writer(root)(f"Annotations/{name}.xml", f"<annotation>{content}</annotation>")


def write_coco(root):
    things = [{"image_id": i, "category_id": 9 - i, "bbox": [1, 1, 5, 5]} for i in (1, 2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": things,
        "categories": [{"id": 8, "name": "dog"}, {"id": 7, "name": "cat"}],
    }
    text_writer(root)("instances.json", json.dumps(content))


def write_csv(root):
    text_writer(root)("list.csv", "image,class", "images/a.png,dog", "images/b.png,cat")


def write_folders(root):
    for name, kind in (("a", "dog"), ("b", "cat")):
        (root / kind).mkdir()
        shutil.move(root / "images" / f"{name}.png", root / kind)
    (root / "images").rmdir()


WRITERS = {
    "wsol": (write_wsol, [1, 0]),
    "voc": (write_voc, [1, 0]),
    "coco": (write_coco, [1, 0]),
    "csv": (write_csv, [1, 0]),
    "folders": (write_folders, [0, 1]),
}


@pytest.fixture
def two(tmp_path):
    """A folder with the images a.png and b.png."""
    image = image_writer(tmp_path / "set")
    image("images/a.png")
    image("images/b.png", level=50)
    return tmp_path / "set"


@pytest.fixture
def data(two):
    write_csv(two)
    return open_dataset(two)


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_has_what_training_needs(two, form):
    writer, labels = WRITERS[form]
    writer(two)
    data = labelled(open_dataset(two))
    assert data.format == form
    assert data.path.exists()
    assert (data.labels.dtype, data.labels.tolist()) == (np.int64, labels)
    assert data.num_classes == 2
    assert all(sample.path.is_file() for sample in data.samples)
    assert len(data.fingerprint()) == 64


def test_the_number_of_classes_is_that_of_the_names_or_the_largest_id(data):
    assert replace(data, classes=("a", "b", "c")).num_classes == 3
    assert replace(data, classes=None).num_classes == 2


def test_a_sample_without_a_class_is_named(data):
    first, second = data.samples
    without = replace(data, samples=[first, replace(second, label=None)])
    message = r"every image needs a class, 1 of 2 have none.*\n  .*list\.csv, line 3: images/b\.png"
    for use in (labelled, lambda one: one.labels):
        with pytest.raises(DataError, match=f"(?s){message} has no class"):
            use(without)
    with pytest.raises(DataError, match=r"'list' \(.*list\.csv\) has no images"):
        labelled(replace(data, samples=[]))


def test_text_files_without_classes_say_which_file_is_missing(two):
    write_wsol(two)
    (two / "metadata" / "class_labels.txt").unlink()
    data = open_dataset(two)
    with pytest.raises(DataError, match=r"2 of 2 have none; no classes: class_labels\.txt is miss"):
        labelled(data)


def test_the_fingerprint_sees_changed_and_missing_images(data):
    before = data.fingerprint()
    assert before == data.fingerprint()
    file = data.samples[1].path
    content = file.read_bytes()
    file.write_bytes(content + b"\0")  # another size
    assert data.fingerprint() != before
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))  # another time
    assert data.fingerprint() != before
    assert replace(data, samples=data.samples[::-1]).fingerprint() != data.fingerprint()
    file.unlink()
    message = r"1 of 2 images are missing: .*\(root\).*list\.csv, line 3: .*b\.png is missing"
    with pytest.raises(DataError, match=f"(?s){message}"):
        data.fingerprint()


def test_the_fingerprint_reads_no_image(data, monkeypatch):
    def never(*_, **__):
        raise AssertionError("opened")

    monkeypatch.setattr(Path, "open", never)
    monkeypatch.setattr("builtins.open", never)
    assert data.fingerprint()


def test_the_fingerprint_is_of_the_images_alone(data, tmp_path):
    other = [replace(one, label=0, boxes=np.zeros((1, 4))) for one in data.samples]
    assert replace(data, samples=other, name="x").fingerprint() == data.fingerprint()
    # A data set that is renamed, dates kept, stays the same.
    root = data.path.parent
    before = data.fingerprint()
    shutil.move(root, tmp_path / "moved")
    assert open_dataset(tmp_path / "moved").fingerprint() == before


@pytest.mark.skipif(sys.platform != "linux", reason="only here a name may be any bytes")
def test_names_that_are_not_utf8_count_too(two):
    write_folders(two)
    inside = os.fsencode(two / "dog") + b"/"
    shutil.copy(two / "dog" / "a.png", inside + b"\xff.png")
    before = open_dataset(two).fingerprint()
    shutil.move(inside + b"\xff.png", inside + b"\xfe.png")
    assert open_dataset(two).fingerprint() != before


def test_what_is_left_out_is_said_in_lines(data):
    problems = [Problem(Path("a.csv"), line, "wrong") for line in (1, 2, 2, 3)]
    assert left_out(problems, ("taken: 5",)) == [
        "left out: a.csv, line 1: wrong",
        "left out: a.csv, line 2: wrong",
        "left out: a.csv, line 3: wrong",
        "taken: 5",
    ]
    assert left_out(problems, ("taken: 5",), most=1) == [
        "left out: a.csv, line 1: wrong",
        "left out: 2 more",
        "taken: 5",
    ]
    assert left_out(()) == []
    found = unread(data.samples[0], "truncated")
    assert str(found) == f"{data.path}, line 2: images/a.png can't be read: truncated"


def test_problems_of_any_reader_reach_the_line(two):
    write_csv(two)
    (two / "images" / "b.png").unlink()
    data = open_dataset(two, skip_bad=True)
    assert isinstance(data, Dataset)
    [line] = left_out(data.problems, data.notes)
    assert line.startswith(f"left out: {two / 'list.csv'}, line 3: the image")
