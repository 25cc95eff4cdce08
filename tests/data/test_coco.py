"""COCO's JSON: boxes, classes, polygons and run lengths, and every mistake by its entry."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sigcam.core.errors import DataError
from sigcam.data import open_dataset, read_masks
from sigcam.data.dataset import Polygons
from sigcam.data.segmentation import draw, read_segmentation
from tests.support.tiny_datasets import image_writer

SQUARE = [[2, 3, 8, 3, 8, 9, 2, 9]]


def compressed(lengths):
    """The string of the COCO tools for run lengths."""
    text = ""
    for index, length in enumerate(lengths):
        value = length - lengths[index - 2] if index > 2 else length
        more = True
        while more:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def run_lengths(mask):
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    lengths = np.diff([0, *edges, flat.size]).tolist()
    return [0, *lengths] if flat[0] else lengths


def thing(image, category, box, **more):
    return {"image_id": image, "category_id": category, "bbox": box} | more


@pytest.fixture
def coco(tmp_path):
    image = image_writer(tmp_path)

    def write(annotations, file="annotations/instances_val.json", **changed):
        for name in ("1.png", "2.png"):
            image(f"val/{name}")
        content = {
            "images": [
                {"id": 11, "file_name": "1.png", "width": 40, "height": 30},
                {"id": 5, "file_name": "2.png", "width": 40, "height": 30},
            ],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        } | changed
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return tmp_path

    return write


def test_label_boxes_and_masks(coco):
    crowd = np.zeros((30, 40), bool)
    crowd[4:6, 7:9] = crowd[20:, 20:] = True
    root = coco(
        [
            thing(11, 3, [0.5, 0, 4, 30], segmentation=SQUARE),
            thing(11, 90, [2, 3, 6, 20.5], segmentation=SQUARE),
            thing(11, 90, [39, 29, 0.5, 1], segmentation=[[39, 29, 40, 29, 40, 30, 39, 30]]),
            thing(
                11, 90, [0, 0, 40, 30], iscrowd=1,
                segmentation={"size": [30, 40], "counts": compressed(run_lengths(crowd))},
            ),
        ]
    )  # fmt: skip
    data = open_dataset(root)
    assert (data.format, data.name, data.classes) == (
        "coco",
        "instances_val",
        ("car", "toothbrush"),
    )
    assert data.notes == (
        "images left out, without an object that counts: 1",
        "images of several classes, that of the largest box taken: 1",
    )
    [sample] = data.samples
    assert (sample.name, sample.label) == ("1.png", 1)
    assert sample.boxes.tolist() == [[2, 3, 7, 22.5], [39, 29, 39, 29]]
    inside, ignored = read_masks(sample, None)
    expected = np.zeros((30, 40), bool)
    expected[3:9, 2:8] = expected[29, 39] = True
    assert (inside == expected).all()
    assert (ignored == crowd & ~expected).all()


def test_no_masks_where_one_is_missing(coco):
    root = coco([thing(11, 3, [1, 1, 5, 5], segmentation=SQUARE), thing(11, 3, [9, 9, 5, 5])])
    assert open_dataset(root).samples[0].masks is None


def test_files_and_splits(coco, tmp_path):
    one = [thing(5, 3, [1, 1, 5, 5])]
    root = coco(one)
    coco(one, "annotations/captions_val.json")
    coco(one, "annotations/instances_minival.json")
    with pytest.raises(DataError, match=r"several JSON files .* give the path of one, or a split"):
        open_dataset(root)
    assert open_dataset(root, split="val").name == "instances_val"
    assert open_dataset(root, split="mini").name == "instances_minival"
    file = tmp_path / "annotations" / "instances_val.json"
    assert open_dataset(file).samples[0].path == root / "val" / "2.png"
    assert open_dataset(file, root=root / "val").samples[0].path.is_file()


GOOD = thing(5, 3, [1, 1, 5, 5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (thing(7, 3, [1, 1, 5, 5]), "there is no image with the id 7"),
        (thing([], 3, [1, 1, 5, 5]), r"there is no image with the id \[\]"),
        (thing(11, 1, [1, 1, 5, 5]), "a label without a class: there is no category with the id 1"),
        (thing(11, 3, [1, 1, 5]), "bbox must be four numbers"),
        (thing(11, 3, [1, 1, 5, float("nan")]), "bbox must be four numbers"),
        (thing(11, 3, [1, 1, 5, 10**400]), "bbox must be four numbers"),
        (thing(11, 3, [1, 1, -5, 5]), "bbox must have a width and a height above 0"),
        (thing(11, 3, [1, 1, 45, 5]), r"the box \[1, 1, 45, 5\] .* is outside its image of 40"),
        (thing(11, 3, [1, 1, 5, 5], segmentation=[[1, 2, 3]]), "segmentation: a polygon is a list"),
        (thing(11, 3, [1, 1, 5, 5], segmentation=["x"]), "segmentation: a polygon is a list of nu"),
        (thing(11, 3, [1, 1, 5, 5], segmentation=5), "segmentation: polygons or run lengths want"),
        (
            thing(11, 3, [1, 1, 5, 5], segmentation={"size": [40, 30], "counts": [1200]}),
            r"segmentation: size must be the image's \[height, width\], \[30, 40\], got",
        ),
        (
            thing(11, 3, [1, 1, 5, 5], segmentation={"size": [30, 40], "counts": [1100]}),
            "segmentation: counts must add up to the image's 1200 pixels",
        ),
        (
            thing(11, 3, [1, 1, 5, 5], segmentation={"size": [30, 40], "counts": "P~"}),
            "segmentation: counts (holds|ends)",
        ),
    ],
)
def test_a_mistake_is_named_with_file_and_entry(coco, wrong, message):
    root = coco([GOOD, wrong])
    with pytest.raises(DataError, match=rf"instances_val\.json: annotations\[1\]: {message}"):
        open_dataset(root)
    assert [s.name for s in open_dataset(root, skip_bad=True).samples] == ["2.png"]


def test_mistakes_in_other_lists(coco):
    images = [{"id": 5, "file_name": "2.png"}, {"id": 5, "file_name": "1.png"}, {"id": "x"}, 3]
    images += [{"id": 7, "file_name": "n" * 5000, "width": 10**30, "height": 1}]
    images += [{"id": 6, "file_name": "2.png"}, {"id": 8, "file_name": "9.png"}]
    categories = [{"id": 3, "name": "car"}, {"id": 4, "name": "car"}, {"id": 5}]
    things = [GOOD, thing(7, 3, [1, 1, 5, 5]), thing(8, 3, [1, 1, 5, 5])]
    root = coco(things, images=images, categories=categories)
    with pytest.raises(DataError, match="8 problems") as caught:
        open_dataset(root)
    for message in (
        "images[1]: id 5 is that of images[0] too",
        "images[2]: a whole number as id and a file_name wanted",
        "images[3]: a whole number as id",
        "images[4]: the image",
        "nnn can't be read",
        "images[5]: 2.png stands in images[0] already",
        "images[6]: the image",
        "categories[1]: car stands in categories[0] already",
        "categories[2]: a whole number as id and a name wanted",
    ):
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n\n'", r"instances_val\.json, line 3: not JSON"),
        ("[]", "COCO instances have the lists images, annotations, categories"),
        ('{"images": [], "annotations": {}, "categories": []}', "COCO instances have the lists"),
        ('{"images": [], "annotations": [], "categories": []}', "has no usable images"),
        ("[" * 200_000, "nested too deep"),
        ("9" * 5000, "not COCO"),
    ],
)
def test_no_coco(coco, content, message):
    root = coco([])
    (root / "annotations" / "instances_val.json").write_text(content)
    with pytest.raises(DataError, match=message):
        open_dataset(root)


masks = arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


@given(masks)
@settings(max_examples=60, deadline=None)
def test_run_lengths(mask):
    size = mask.shape[::-1]
    lengths = run_lengths(mask)
    for counts in (lengths, compressed(lengths)):
        [read] = read_segmentation({"size": list(mask.shape), "counts": counts}, size)
        assert (draw(read, size) == mask).all()


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None)
def test_long_run_lengths(lengths):
    size = (sum(lengths) or 1, 1)
    lengths = lengths if sum(lengths) else [1]
    [read] = read_segmentation({"size": [1, size[0]], "counts": compressed(lengths)}, size)
    assert read.counts.tolist() == lengths


corners = st.lists(
    st.tuples(st.integers(-8, 48), st.integers(-8, 48)).map(lambda p: (p[0] / 4, p[1] / 4)),
    min_size=3,
    max_size=7,
)


@given(corners)
@settings(max_examples=60, deadline=None)
def test_polygons_against_winding_of_every_centre(ring):
    drawn = draw(Polygons((np.array(ring, float),)), (11, 10))
    for y in range(10):
        for x in range(11):
            crossings = 0
            for (xa, ya), (xb, yb) in zip(ring, ring[1:] + ring[:1], strict=True):
                if (ya <= y + 0.5) != (yb <= y + 0.5):
                    at = xa + (y + 0.5 - ya) * ((xb - xa) / (yb - ya))
                    if abs(at - (x + 0.5)) < 1e-9:
                        break  # on the outline
                    crossings += at < x + 0.5
            else:
                assert drawn[y, x] == crossings % 2
