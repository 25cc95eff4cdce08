"""Pascal VOC XML: which boxes and class count, and every mistake by file and line."""

from __future__ import annotations

import pytest

from sigcam.core.errors import DataError
from sigcam.data import open_dataset
from tests.support.tiny_datasets import image_writer, text_writer


def box(name, x0, y0, x1, y1, difficult=0):
    return (
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>",
        f"<xmax>{x1}</xmax><xmin>{x0}</xmin><ymin>{y0}</ymin><ymax>{y1}</ymax></bndbox>",
        "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>",
    )


@pytest.fixture
def voc(tmp_path):
    """Writes one annotation for each keyword, a list of lines, and an image."""
    image, text = image_writer(tmp_path), text_writer(tmp_path)

    def write(size=(40, 30), **annotations):
        width, height = size
        for name, lines in annotations.items():
            image(f"JPEGImages/{name}.png")
            text(
                f"Annotations/{name}.xml",
                "<annotation>",
                f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>",
                *lines,
                "</annotation>",
            )
        return tmp_path

    return write


def test_label_and_boxes(voc):
    root = voc(
        one=box("dog", 1, 1, 40, 30),
        several=[
            *box("cat", 1, 1, 10, 10),
            *box("dog", 2, 3, 20, 22.5),
            *box("dog", 30, 25, 30, 25),
            *box("cow", 1, 1, 40, 30, difficult=1),
        ],
        none=(),
        hard=box("cow", 1, 1, 9, 9, difficult=1),
    )
    data = open_dataset(root)
    assert (data.format, data.classes, data.ids_given) == ("voc", ("cat", "cow", "dog"), False)
    assert [(s.name, s.label) for s in data.samples] == [("one.png", 2), ("several.png", 2)]
    one, several = data.samples
    assert one.boxes.tolist() == [[0, 0, 39, 29]]  # counted from 0
    assert several.boxes.tolist() == [[1, 2, 19, 21.5], [29, 24, 29, 24]]
    assert [place.line for place in several.box_places] == [6, 9]
    assert data.notes == (
        "images left out, without an object that counts: 2",
        "images of several classes, that of the largest box taken: 1",
    )


def test_coordinates_from_zero(voc):
    root = voc(a=box("dog", 0, 1, 39, 29))
    with pytest.raises(DataError, match=r"a\.xml, line 3: pixels count from 1 .*first_pixel=0"):
        open_dataset(root)
    assert open_dataset(root, first_pixel=0).samples[0].boxes.tolist() == [[0, 1, 39, 29]]


def test_splits(voc, tmp_path):
    text = text_writer(tmp_path)
    root = voc(a=box("dog", 1, 1, 9, 9), b=box("cat", 1, 1, 9, 9))
    text("ImageSets/Main/val.txt", "b", "a  -1")
    text("ImageSets/Main/one.txt", "a")
    text("ImageSets/Main/wrong.txt", "a", "c", "a")
    assert [s.name for s in open_dataset(root, split="val").samples] == ["b.png", "a.png"]
    [sample] = open_dataset(root, split="one").samples
    assert (sample.name, sample.label) == ("a.png", 1)  # ids don't depend on the split
    with pytest.raises(
        DataError, match=r"(?s)wrong\.txt, line 3: a stands in line 1.*line 2: c ha"
    ):
        open_dataset(root, split="wrong")
    with pytest.raises(DataError, match=r"test\.txt is missing; .* has one, val, wrong"):
        open_dataset(root, split="test")


def test_images_without_an_annotation_are_counted(voc, tmp_path):
    root = voc(a=box("dog", 1, 1, 9, 9), b=box("cat", 1, 1, 9, 9))
    image_writer(tmp_path)("JPEGImages/c.png")
    text_writer(tmp_path)("ImageSets/Main/one.txt", "a")
    assert open_dataset(root).notes == ("images left out, without an annotation: 1",)
    assert open_dataset(root, split="one").notes == ()  # the others aren't asked for


def test_given_classes(voc, tmp_path):
    text_writer(tmp_path)("classes.txt", "dog", "cat")
    data = open_dataset(voc(a=box("dog", 1, 1, 9, 9)))
    assert (data.classes, data.ids_given, data.samples[0].label) == (("dog", "cat"), True, 0)
    root = voc(b=box("cow", 1, 1, 9, 9))
    with pytest.raises(DataError, match=r"b\.xml, line 3: 'cow' is none of the 2 classes"):
        open_dataset(root)


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;">]>\n<x>&b;</x>'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["<object>"], "bad.xml, line 4: not XML: mismatched tag"),
        (["", "<object><bndbox/></object>"], "bad.xml, line 4: <object> has no <name>"),
        (["<object><name>dog</name></object>"], "bad.xml, line 3: <bndbox> with numbers"),
        (box("dog", 1, "x", 3, 4), "bad.xml, line 3: <bndbox> with numbers"),
        (box("dog", 9, 1, 3, 4), r"bad.xml, line 3: the box \[8, 0, 2, 3\] .* is inverted"),
        (box("dog", 1, 1, 3, 40), "bad.xml, line 3: .* is outside its image of 40 x 30"),
        (["<a>"] * 99 + ["</a>"] * 99, "bad.xml, line 66: elements are nested deeper than 64"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(voc, lines, message):
    root = voc(bad=lines, good=box("dog", 1, 1, 9, 9))
    with pytest.raises(DataError, match=message):
        open_dataset(root)
    left = open_dataset(root, skip_bad=True)
    assert [s.name for s in left.samples] == ["good.png"]
    assert [one.file.name for one in left.problems] == ["bad.xml"]


def test_other_files(voc, tmp_path):
    text = text_writer(tmp_path)
    root = voc(a=box("dog", 1, 1, 9, 9))
    text("Annotations/bomb.xml", BOMB)
    text("Annotations/other.xml", "<x/>")
    text("Annotations/empty.xml")
    text("Annotations/lost.xml", "<annotation>", *box("dog", 1, 1, 9, 9), "</annotation>")
    text("Annotations/foreign.xml", '<?xml version="1.0" encoding="nowhere"?><annotation/>')
    with pytest.raises(DataError, match="5 problems") as caught:
        open_dataset(root)
    for message in (
        "bomb.xml, line 1: it has a DOCTYPE",
        "other.xml, line 1: <annotation> wanted, got <x>",
        "empty.xml, line 1: not XML: no element found",
        "lost.jpg is missing",
        "foreign.xml, line 1: its encoding isn't known",
    ):
        assert message in str(caught.value)


def test_a_stated_size_that_is_not_the_images(voc):
    root = voc(size=(30, 40), a=box("dog", 1, 1, 9, 9))
    with pytest.raises(DataError, match=r"a\.xml: .* is 40 x 30 pixels \(upright\), 30 x 40 are"):
        open_dataset(root)
    assert len(open_dataset(voc(size=(0, 0), a=box("dog", 1, 1, 9, 9)))) == 1  # not stated
