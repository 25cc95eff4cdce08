"""The text files of wsolevaluation, and every mistake in them by file and line."""

from __future__ import annotations

import numpy as np
import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import open_dataset
from tests.support.tiny_datasets import image_writer, text_writer

NAMES = ("a/1.png", "a/2.png", "b/3.png")


@pytest.fixture
def image(tmp_path):
    return image_writer(tmp_path)


@pytest.fixture
def text(tmp_path):
    return text_writer(tmp_path)


@pytest.fixture
def files(text, image, tmp_path):
    """A data set of three images; keyword arguments replace lines of its files."""

    def write(folder="metadata", **changed):
        for name in NAMES:
            image(f"images/{name}")
            image(f"images/m/{name}", level=255)
        content = {
            "image_ids": NAMES,
            "class_labels": ("a/1.png,0", "a/2.png,0", "b/3.png,1"),
            "image_sizes": [f"{name},40,30" for name in NAMES],
            "localization": (
                "a/1.png,0,0,39,29",
                "a/2.png,3,4,10,12",
                "a/2.png,20,20,21,21",
                "b/3.png,5,5,5,5",
            ),
            "masks": ("a/1.png,m/a/1.png,m/b/3.png", "a/2.png,m/a/2.png,", "b/3.png,m/b/3.png"),
        } | changed
        for name, lines in content.items():
            if lines is not None:
                text(f"images/{folder}/{name}.txt", *lines)
        return tmp_path / "images"

    return write


def test_everything_is_read(files):
    data = open_dataset(files())
    assert (data.format, data.name, data.classes) == ("wsol", "images", None)
    first, second, third = data.samples
    assert [s.name for s in data.samples] == list(NAMES)
    assert [s.label for s in data.samples] == [0, 0, 1]
    assert second.boxes.dtype == np.float64
    assert second.boxes.tolist() == [[3, 4, 10, 12], [20, 20, 21, 21]]
    assert [place.line for place in second.box_places] == [2, 3]
    assert [path.name for path in (*first.masks, *first.ignore)] == ["1.png", "3.png"]
    assert second.ignore == third.ignore == ()
    assert (first.ignore_level, third.ignore_level) == (None, 128)
    assert all(s.size == (40, 30) and s.path.is_file() for s in data.samples)
    assert data.problems == ()
    assert data.notes == ("trimaps: 1; their level 128 is ignored",)


def test_only_the_list_of_images_must_be_there(files):
    data = open_dataset(files(class_labels=None, image_sizes=None, localization=None, masks=None))
    assert [(s.label, s.boxes, s.masks) for s in data.samples] == [(None, None, None)] * 3
    assert data.samples[0].size == (40, 30)
    assert "no classes" in data.notes[0]


def test_order_and_classes_from_the_folder_or_from_its_metadata(files, text, tmp_path):
    root = files(image_ids=NAMES[:0:-1], image_sizes=None, localization=None, masks=None)
    text("images/classes.txt", "red", "green", "blue")
    for path in (root, root / "metadata"):
        data = open_dataset(path)
        assert [s.name for s in data.samples] == ["b/3.png", "a/2.png"]
        assert data.labels.tolist() == [1, 0]  # class_labels.txt may say more
        assert (data.name, data.classes) == ("images", ("red", "green", "blue"))
        assert data.samples[0].path.is_file()
    moved = tmp_path / "elsewhere"
    (root / "metadata").rename(moved)
    assert open_dataset(moved, root=root).labels.tolist() == [1, 0]


def test_images_that_are_elsewhere(files):
    root = files(image_sizes=None, localization=None, masks=None)
    (root / "metadata").rename(root.parent / "metadata")
    (root / "a" / "1.png").unlink()
    message = r"1 of 3 images are missing: .*\(root\).*image_ids\.txt, line 1: .*1\.png is missing"
    with pytest.raises(DataError, match=f"(?s){message}"):
        open_dataset(root.parent / "metadata", root=root)


def test_a_list_of_classes_without_the_list_of_images(files):
    root = files()
    (root / "metadata" / "image_ids.txt").unlink()
    for path in (root, root / "metadata"):
        with pytest.raises(DataError, match=r"metadata/image_ids\.txt is missing"):
            open_dataset(path)


def test_names_of_classes(files, text):
    text("images/classes.txt", "cat", "dog")
    assert open_dataset(files()).classes == ("cat", "dog")


def test_splits_and_a_folder_of_its_own(files, tmp_path):
    root = files("meta/val")
    for given in (
        open_dataset(root, metadata=root / "meta" / "val"),
        open_dataset(root, metadata=root / "meta", split="val"),
        open_dataset(root / "meta", split="val"),  # looks upwards for the images
        open_dataset(root / "meta", split="val", root=root, mask_root=root),
    ):
        assert len(given) == 3
    with pytest.raises(DataError, match="has the splits val; give one as split"):
        open_dataset(root / "meta")
    with pytest.raises(DataError, match="has the splits val; no 'test'"):
        open_dataset(root, metadata=root / "meta", split="test")
    with pytest.raises(UsageError, match="read as wsol, which has no first_pixel"):
        open_dataset(root / "meta", split="val", first_pixel=0)


MISTAKES = [
    ({"image_ids": (*NAMES, "a/1.png")}, "image_ids.txt, line 4: a/1.png stands in line 1 already"),
    ({"image_ids": ("a/9.png", *NAMES)}, "image_ids.txt, line 1: a/9.png has no class in"),
    ({"class_labels": ("a/1.png,0", "a/2.png,0")}, "image_ids.txt, line 3: b/3.png has no class"),
    ({"class_labels": ("a/1.png,0", "a/2.png,x", "b/3.png,1")}, "class_labels.txt, line 2: a cl"),
    ({"class_labels": ("a/1.png,0", "a/2.png,-1", "b/3.png,1")}, "class_labels.txt, line 2: a cl"),
    ({"class_labels": ("a/1.png,0", "a/2.png,0", "b/3.png")}, 'txt, line 3: "path,class_id" want'),
    (
        {"class_labels": ("a/1.png,0", "a/2.png,0", "b/3.png,1", "a/1.png,1")},
        "class_labels.txt, line 4: a/1.png has class 1 here and 0 in line 1",
    ),
    (
        {"image_sizes": ("a/1.png,40,30", "a/2.png,40", "b/3.png,40,30")},
        'image_sizes.txt, line 2: "path,width,height" wanted',
    ),
    (
        {"image_sizes": ("a/1.png,40,30", "a/2.png,30,40", "b/3.png,40,30")},
        r"image_ids.txt, line 2: .*a/2.png is 40 x 30 pixels \(upright\), 30 x 40 are stated",
    ),
    (
        {"localization": ("a/1.png,0,0,39,29", "", "a/2.png,1,2,3", "b/3.png,0,0,1,1")},
        'localization.txt, line 3: "path,x0,y0,x1,y1", .* wanted',
    ),
    (
        {"localization": ("a/1.png,0,0,39,nan", "a/2.png,1,2,3,4", "b/3.png,0,0,1,1")},
        "localization.txt, line 1: x0,y0,x1,y1 must be numbers, got 0,0,39,nan",
    ),
    (
        {"localization": ("a/1.png,0,0,39,29", "a/2.png,1,2,3,4")},
        "image_ids.txt, line 3: b/3.png has no box in localization.txt",
    ),
    (
        {"localization": ("a/1.png,0,0,39,29", "a/2.png,9,2,3,4", "b/3.png,0,0,1,1")},
        r"localization.txt, line 2: the box \[9, 2, 3, 4\] .* of a/2.png is inverted",
    ),
    (
        {"localization": ("a/1.png,0,0,41,29", "a/2.png,1,2,3,4", "b/3.png,0,0,1,1")},
        "localization.txt, line 1: .* of a/1.png is outside its image of 40 x 30 pixels",
    ),
    (
        {"localization": ("a/1.png,-1,0,4,29", "a/2.png,1,2,3,4", "b/3.png,0,0,1,1")},
        "localization.txt, line 1: .* outside",
    ),
    (
        {"masks": ("a/1.png,m/9.png,", "a/2.png,m/a/2.png,", "b/3.png,m/b/3.png,")},
        "masks.txt, line 1: the mask .*9.png is missing",
    ),
    (
        {"masks": ("a/1.png,m/a/1.png,", "a/2.png,m/a/2.png,m/9.png", "b/3.png,m/b/3.png,")},
        "masks.txt, line 2: the mask .*9.png is missing",
    ),
    (
        {"masks": ("a/1.png,m/a/1.png,m/a/1.png", "a/1.png,m/a/1.png,m/a/2.png",
                   "a/2.png,m/a/2.png,", "b/3.png,m/b/3.png,")},
        "masks.txt, line 2: a/1.png has a second ignore mask",
    ),
    (
        {"masks": ("a/1.png,m/a/1.png", "a/1.png,m/a/1.png,", "a/2.png,m/a/2.png,",
                   "b/3.png,m/b/3.png,")},
        "masks.txt, line 2: a/1.png has a trimap",
    ),
    ({"masks": ("a/1.png,m/a/1.png,",)}, "image_ids.txt, line 2: a/2.png has no mask in"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "message"), MISTAKES)
def test_a_mistake_is_named_with_file_and_line(files, changed, message):
    root = files(**changed)
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(root)
    left = open_dataset(root, skip_bad=True)
    assert 0 < len(left) <= 3
    assert left.problems
    assert all(str(one) in str(caught.value) for one in left.problems)


def test_a_box_may_reach_one_pixel_over_the_edge(files):
    lines = ("a/1.png,0,0,40,30", "a/2.png,1,2,3,4", "b/3.png,0,0,1,1")
    assert len(open_dataset(files(localization=lines))) == 3


def test_all_problems_are_listed_and_the_first_ones_shown(files, image):
    names = [f"c/{index}.png" for index in range(30)]
    root = files(
        image_ids=(*NAMES, *names), class_labels=[f"{n},0" for n in (*NAMES, *names)],
        image_sizes=None, localization=None, masks=None,
    )  # fmt: skip
    with pytest.raises(DataError, match="30 problems in the data set") as caught:
        open_dataset(root)
    message = str(caught.value)
    assert "image_ids.txt, line 23: the image" in message
    assert "line 24" not in message
    assert message.endswith("and 10 more")
    left = open_dataset(root, skip_bad=True)
    assert len(left) == 3
    assert [one.line for one in left.problems] == list(range(4, 34))


def test_masks_of_another_scale_are_counted_and_of_another_shape_refused(files, image):
    root = files()
    image("images/m/a/2.png", 81, 60)
    assert "masks at another scale than their images: 1" in open_dataset(root).notes
    image("images/m/a/2.png", 60, 60)
    with pytest.raises(DataError, match=r"masks.txt, line 2: the mask .* is 60 x 60 pixels, its"):
        open_dataset(root)


def test_damaged_images_are_found(files):
    root = files()
    (root / "a/1.png").write_bytes(b"nothing")
    (root / "a/2.png").unlink()
    (root / "m/b/3.png").write_bytes((root / "m/b/3.png").read_bytes()[:12])
    with pytest.raises(DataError, match="3 problems") as caught:
        open_dataset(root)
    for text in (
        "image_ids.txt, line 1: the image",
        "1.png is damaged, or no image of a kind that is read",
        "image_ids.txt, line 2: the image",
        "2.png is missing",
        "masks.txt, line 3: the mask",
    ):
        assert text in str(caught.value)


def test_labels_beyond_the_names(files, text):
    text("images/classes.txt", "cat")
    with pytest.raises(DataError, match=r"line 3: b/3.png has class 1, there are 1 classes"):
        open_dataset(files())


@pytest.mark.parametrize("skip_bad", [False, True])
def test_an_empty_split(files, skip_bad):
    root = files(image_ids=())
    with pytest.raises(DataError, match=r"'images' \(wsol\) has no usable images"):
        open_dataset(root, skip_bad=skip_bad)
