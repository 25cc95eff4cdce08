"""Several classes an image in every format, and images with two classes where one is wanted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sigcam.core.errors import DataError
from sigcam.data import labelled, match_classes, open_dataset, open_images
from sigcam.data.open import FORMATS
from tests.support.tiny_datasets import image_writer, text_writer


@pytest.fixture
def text(tmp_path):
    return text_writer(tmp_path)


@pytest.fixture
def table(text, tmp_path):
    image = image_writer(tmp_path)

    def write(*lines):
        for name in ("1.png", "2.png", "3.png"):
            image(name)
        text("list.csv", *lines)
        return tmp_path

    return write


ANIMALS = ("cat", "dog", "owl")


@pytest.mark.parametrize(
    "lines",
    [
        ("image,label", "1.png,cat|dog", "2.png,owl", "3.png,"),
        ("image,labels", "1.png,dog;cat", "2.png,owl", "3.png,"),
        ("image,tags", '1.png,"cat, dog"', "2.png, owl ", "3.png,"),
        ("Image Index,Finding Labels,Age", "1.png,cat|dog,58", "2.png,owl,3", "3.png,,77"),
        ("image,label", "1.png,cat", "2.png,owl", "3.png,", "1.png,dog"),
        ("image,label", "1.png,cat", "./1.png,dog", "1.png,cat", "2.png,owl", "3.png,"),
        ("image,label,label", "1.png,cat,dog", "2.png,owl,", "3.png,,"),
        ("image,label1,label2,label_3", "1.png,,dog,cat", "2.png,,owl,", "3.png,,,"),
        ("filename,cat,dog,owl", "1.png,1,1,0", "2.png,0,0,1", "3.png,0,0,0"),
        ("image,cat,dog,age,owl", "1.png,1.0,1.0,58,0.0", "2.png,0.0,0.0,3,1.0", "3.png,0,0,7,0"),
        ("image,cat,dog,owl", "1.png,1,1,", "2.png,0,,1", "3.png,,,"),
    ],
)
def test_every_way_to_write_several_classes_in_a_csv(table, lines):
    data = open_dataset(table(*lines), multi_label=True)
    assert data.classes == ANIMALS
    assert data.label_sets == [(0, 1), (2,), ()]
    assert [one.name for one in data.samples] == ["1.png", "2.png", "3.png"]
    assert (data.multi_label, data.num_classes) == (True, 3)
    assert "images of none of the classes: 1" in data.notes
    assert labelled(data) is data


@pytest.mark.parametrize(
    "lines",
    [
        ("image,class_index", "1.png,0|4", "2.png,2"),
        ("image,label", "1.png,4;0", "2.png,2"),
        ("image,class_id", "1.png,4", "2.png,2", "1.png,0"),
        ("image,class_id_1,class_id_2", "1.png,0,4", "2.png,2,"),
    ],
)
def test_several_ids_in_a_csv(table, lines):
    data = open_dataset(table(*lines), multi_label=True)
    assert data.label_sets == [(0, 4), (2,)]
    assert data.ids_given
    assert data.num_classes == 5


def test_ids_beside_their_names(table):
    lines = ("image,class_id,label", "1.png,1|0,dog|cat", "2.png,0,cat")
    data = open_dataset(table(*lines), multi_label=True)
    assert (data.classes, data.label_sets) == (("cat", "dog"), [(0, 1), (0,)])


def test_what_was_passed_over_is_said(table):
    lines = ("image,age,cat,dog", "1.png,5,1,", "2.png,6,0,1")
    data = open_dataset(table(*lines), multi_label=True)
    assert data.notes == (
        "empty cells taken for 0: 1",
        "columns passed over, not of 0 and 1: age",
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("image,cat,dog", "1.png,1,-1", "2.png,0,1"), r"line 2: 0 or 1 wanted for dog, got -1"),
        (("image,cat,dog", ",1,0", "2.png,0,1"), r"line 2: an image wanted"),
        (("image,class_id", "1.png,0|x", "2.png,1"), r"line 2: a class id is .* got 'x'"),
        (("image,age", "1.png,58"), r"line 1: the header needs .* or a column of 0 and 1"),
        (("image,image,label", "1.png,2.png,a"), r"line 1: image stands there twice"),
    ],
)
def test_a_mistake_in_a_csv_of_several_classes(table, lines, message):
    with pytest.raises(DataError, match=message):
        open_dataset(table(*lines), multi_label=True)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (("image,label", "1.png,cat", "2.png,owl", "1.png,dog"), r"line 4: 1\.png .* line 2"),
        (("image,label", "1.png,cat", "./1.png,dog"), r"line 3: \./1\.png .* line 2"),
        (("image,class_id", "2.png,0", "1.png,3", "x/../1.png,1"), r"line 4: .* line 3"),
        (("image,label", "1.png,cat|dog", "2.png,owl"), r"line 2: several classes in cat\|dog"),
        (("image,label", "1.png,cat;dog"), r"line 2: several classes .* task multi-label"),
        (("image,cat,dog", "1.png,1,1", "2.png,1,0"), r"line 2: 1\.png has 2 classes"),
        (("image,cat,dog", "1.png,0,1", "2.png,0,0"), r"line 3: 2\.png has 0 classes"),
        (("image,label,label", "1.png,cat,dog"), r"line 1: label stands there twice"),
    ],
)
def test_an_image_with_two_classes_where_one_is_wanted(table, lines, message):
    with pytest.raises(DataError, match=message):
        open_dataset(table(*lines))


def test_a_contradiction_leaves_the_image_out_not_the_data_set(table):
    lines = ("image,class_id", "1.png,0", "2.png,1", "1.png,1")
    data = open_dataset(table(*lines), skip_bad=True)
    assert [one.name for one in data.samples] == ["2.png"]


def test_a_repeated_row_counts_once_and_is_said(table):
    lines = ("image,class_id", "1.png,0", "2.png,1", "./1.png,00", "1.png,0")
    data = open_dataset(table(*lines))
    assert (data.label_sets, data.labels.tolist()) == ([(0,), (1,)], [0, 1])
    assert data.notes == ("rows that repeat an image with the same class, not counted again: 2",)


def test_marked_columns_of_one_class_an_image(table):
    lines = ("image,MEL,NV,age", "1.png,0.0,1.0,4", "2.png,1.0,0.0,5")
    data = open_dataset(table(*lines))
    assert (data.classes, data.labels.tolist()) == (("MEL", "NV"), [1, 0])


def test_several_classes_have_no_single_labels(table):
    data = open_dataset(table("image,label", "1.png,cat|dog", "2.png,owl"), multi_label=True)
    with pytest.raises(DataError, match=r"1 of 2 have several:\n.*list\.csv, line 2: 1\.png has 2"):
        _ = data.labels


def test_classes_are_matched_one_by_one(table):
    lines = ("image,label", "1.png,cat|dog", "2.png,owl|No Finding", "3.png,No Finding")
    data = open_dataset(table(*lines), multi_label=True)
    matched = match_classes(data, 4, ("owl", "dog", "cow", "cat"))
    assert [set(one) for one in matched.label_sets] == [{3, 1}, {0}, set()]
    assert matched.num_classes == 4
    named = match_classes(data, 4, ("owl", "dog", "no finding", "cat"))
    assert [set(one) for one in named.label_sets] == [{3, 1}, {0, 2}, {2}]
    with pytest.raises(DataError, match=r"line 2: the model has no class 'dog'"):
        match_classes(data, 3, ("owl", "cow", "cat"))
    left = match_classes(data, 3, ("owl", "cow", "cat"), skip_bad=True)
    assert [set(one) for one in left.label_sets] == [{0}, set()]


def test_no_class_at_all_is_refused(table):
    data = open_dataset(table("image,cat,dog", "1.png,0,0", "2.png,0,0"), multi_label=True)
    with pytest.raises(DataError, match="at least one image needs a class, 2 of 2 have none"):
        labelled(data)


def coco(tmp_path, annotations):
    image = image_writer(tmp_path)
    for name in ("1.png", "2.png"):
        image(f"val/{name}")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (1, 2)],
        "annotations": [
            {"image_id": 1, "category_id": c, "bbox": box, "segmentation": [ring], "iscrowd": crowd}
            for c, box, ring, crowd in annotations
        ],
        "categories": [{"id": 90, "name": "owl"}, {"id": 3, "name": "dog"}, {"id": 5, "name": "x"}],
    }
    text_writer(tmp_path)("annotations/instances_val.json", json.dumps(content))
    return tmp_path


def test_coco_has_every_class_with_its_own_boxes_and_masks(tmp_path):
    ring = [1, 1, 5, 1, 5, 5, 1, 5]
    root = coco(
        tmp_path,
        [
            (90, [0, 0, 30, 20], ring, 0),
            (3, [2, 3, 4, 5], ring, 0),
            (3, [7, 7, 2, 2], ring, 0),
        ],
    )
    data = open_dataset(root, "coco", multi_label=True)
    assert data.classes == ("dog", "x", "owl")
    assert data.label_sets == [(0, 2), ()]
    dog, owl = data.samples[0].by_class
    assert dog.boxes.tolist() == [[2, 3, 5, 7], [7, 7, 8, 8]]
    assert owl.boxes.tolist() == [[0, 0, 29, 19]]
    assert (len(dog.masks), len(owl.masks)) == (2, 1)
    assert dog.size == owl.size == (40, 30)
    assert data.notes == ("images of none of the classes: 1",)
    one = open_dataset(root, "coco")
    assert one.labels.tolist() == [2]


def test_a_class_of_crowds_alone_is_there_without_boxes(tmp_path):
    ring = [1, 1, 5, 1, 5, 5, 1, 5]
    root = coco(tmp_path, [(90, [0, 0, 30, 20], ring, 1), (3, [2, 3, 4, 5], ring, 0)])
    dog, owl = open_dataset(root, "coco", multi_label=True).samples[0].by_class
    assert (dog.label, owl.label) == (0, 2)
    assert dog.boxes is not None
    assert owl.boxes is None
    assert owl.masks is None


def test_a_box_of_any_class_is_checked(tmp_path):
    ring = [1, 1, 5, 1, 5, 5, 1, 5]
    root = coco(tmp_path, [(3, [2, 3, 4, 5], ring, 0), (90, [0, 0, 300, 20], ring, 0)])
    with pytest.raises(DataError, match=r"annotations\[1\]: the box .* outside its image"):
        open_dataset(root, "coco", multi_label=True)


def test_voc_has_every_class_with_its_own_boxes(tmp_path):
    image, text = image_writer(tmp_path), text_writer(tmp_path)

    def thing(name, x0, difficult=0):
        return (
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>{x0}"
            "</xmin><ymin>1</ymin><xmax>20</xmax><ymax>9</ymax></bndbox></object>"
        )

    for name, objects in {
        "1": [thing("dog", 1), thing("cat", 4), thing("cow", 2, 1)],
        "2": [],
    }.items():
        image(f"JPEGImages/{name}.png")
        text(
            f"Annotations/{name}.xml",
            "<annotation><size><width>40</width><height>30</height></size>",
            *objects,
            "</annotation>",
        )
    data = open_dataset(tmp_path, "voc", multi_label=True)
    assert data.classes == ("cat", "cow", "dog")
    assert data.label_sets == [(0, 1, 2), ()]
    cat, cow, dog = data.samples[0].by_class
    assert (cat.boxes.tolist(), dog.boxes.tolist()) == ([[3, 0, 19, 8]], [[0, 0, 19, 8]])
    assert cow.boxes is None


@pytest.fixture
def wsol(tmp_path):
    image, text = image_writer(tmp_path), text_writer(tmp_path)
    for name in ("1.png", "2.png", "3.png"):
        image(name)

    def write(*labels):
        text("image_ids.txt", "1.png", "2.png", "3.png")
        text("class_labels.txt", *labels)
        text("localization.txt", *(f"{i}.png,0,0,9,9" for i in (1, 2, 3)))
        return tmp_path

    return write


def test_the_text_metadata_takes_several_lines(wsol):
    root = wsol("1.png,4", "2.png,1", "1.png,0")
    data = open_dataset(root, "wsol", multi_label=True)
    assert data.label_sets == [(0, 4), (1,), ()]
    assert [one.boxes is None for one in data.samples] == [True, False, False]
    assert "images of several classes whose boxes and masks aren't used: 1" in data.notes
    with pytest.raises(DataError, match=r"line 3: 1\.png has class 0 here and 4 in line 1"):
        open_dataset(root, "wsol")


def test_the_same_line_twice_is_one_class(wsol):
    data = open_dataset(wsol("1.png,4", "1.png,4", "2.png,1", "3.png,0"), "wsol")
    assert data.labels.tolist() == [4, 1, 0]


def test_class_folders_have_one_class_each(tmp_path):
    image = image_writer(tmp_path)
    for name in ("dog/1.png", "cat/2.png"):
        image(name)
    data = open_dataset(tmp_path, multi_label=True)
    assert (data.label_sets, data.multi_label) == ([(0,), (1,)], True)
    assert np.array_equal(data.labels, [0, 1])


def test_every_format_takes_the_word(tmp_path):
    assert set(FORMATS) == {"wsol", "voc", "coco", "csv", "folders"}  # each is tried above


def test_images_whose_classes_do_not_matter_may_have_several(table):
    data = open_images(table("image,label", "1.png,cat", "1.png,dog", "2.png,owl|cat"))
    assert len(data) == 2
