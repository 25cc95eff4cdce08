"""Whatever a data set's files hold, it is read or refused with a DataError."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import DataError
from sigcam.data import open_dataset
from tests.support.tiny_datasets import image_writer

NAMES = ("a.png", "b.png", "m.png", "", " ", "c\0", "../a.png")
CELLS = (*NAMES, "0", "1", "-1", "39", "40", "1e9", "nan", "inf", "9" * 30, '"', "'", "é")
rows = st.lists(st.lists(st.sampled_from(CELLS), min_size=1, max_size=6).map(",".join), max_size=6)
leaves = st.none() | st.booleans() | st.sampled_from((0, 1, -1, 7, 2.5, 1e300, *NAMES))
values = st.recursive(leaves, lambda inside: st.lists(inside, max_size=5), max_leaves=8)


def entries(*keys):
    return st.lists(
        st.fixed_dictionaries({}, optional=dict.fromkeys(keys, values)) | leaves, max_size=3
    )


def read_or_refuse(files):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in NAMES[:3]:
            image_writer(root)(name)
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        check(root, skip_bad=False)
        check(root, skip_bad=True)


def check(root, skip_bad):
    try:
        data = open_dataset(root, skip_bad=skip_bad)
    except DataError as exc:
        assert str(root) in str(exc) or "no usable images" in str(exc)
    else:
        assert len(data) > 0
        assert skip_bad or not data.problems
        assert all(sample.size == (40, 30) for sample in data.samples)


def encoded(lines):
    return "\n".join(lines).encode()


@given(*[rows] * 5)
@settings(max_examples=40, deadline=None)
def test_wsol(ids, labels, sizes, boxes, masks):
    names = ["a.png", *ids]
    files = {"image_ids": names, "class_labels": labels, "image_sizes": sizes,
             "localization": boxes, "masks": masks}  # fmt: skip
    read_or_refuse({f"metadata/{k}.txt": encoded(v) for k, v in files.items()})


@given(st.lists(st.sampled_from(("image", "class_id", "label", "x", "")), max_size=4), rows)
@settings(max_examples=40, deadline=None)
def test_csv(head, lines):
    read_or_refuse({"list.csv": encoded([",".join(head), *lines])})


@given(
    entries("id", "file_name", "width", "height"),
    entries("image_id", "category_id", "bbox", "segmentation", "iscrowd"),
    entries("id", "name"),
)
@settings(max_examples=40, deadline=None)
def test_coco(images, annotations, categories):
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}, *images]
    annotations = [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}, *annotations]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "x"}, *categories],
    }
    read_or_refuse({"list.json": json.dumps(content).encode()})


@given(st.dictionaries(st.sampled_from(("list.csv", "list.json", "metadata/image_ids.txt")),
                       st.binary(max_size=60), min_size=1, max_size=1))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_bytes(files):
    read_or_refuse(files)


TAGS = ("<annotation>", "</annotation>", "<object>", "</object>", "<name>dog</name>", "<bndbox>",
        "</bndbox>", "<xmin>1</xmin>", "<ymin>2</ymin>", "<xmax>9</xmax>", "<ymax>8</ymax>",
        "<size>", "</size>", "<width>x</width>", "&a;", "&amp;", "<!-- x -->", "<?x?>")  # fmt: skip


@given(st.lists(st.sampled_from(TAGS), max_size=14), st.booleans())
@settings(max_examples=40, deadline=None)
def test_voc(tags, wrapped):
    tags = ["<annotation>", *tags, "</annotation>"] if wrapped else tags
    read_or_refuse({"Annotations/a.xml": encoded(tags), "JPEGImages/a.txt": b""})
