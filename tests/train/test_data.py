from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from sigcam.core.errors import DataError
from sigcam.train.data import ImageList, match_classes
from sigcam.train.sources import open_data
from tests.support.paths import DATA

needs_shared = pytest.mark.skipif(not DATA.is_dir(), reason="needs ../shared/data")


def table(folder: Path, text: str, name: str = "list.csv") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_folders_give_sorted_names(data: ImageList) -> None:
    assert len(data) == 40
    assert data.class_names == ("class0", "class1", "class2", "class3")
    assert data.class_ids == tuple(i // 10 for i in range(40))
    assert data.file(0).is_file()
    assert not data.ids_given


@pytest.mark.parametrize("image", ["image", "path", "File"])
@pytest.mark.parametrize("label", ["class_index", "class", "label"])
def test_csv_with_ids(folder: Path, image: str, label: str) -> None:
    file = table(folder, f"{image},extra,{label}\nclass1/0.png,x,1\n\nclass3/2.png,y,3\n")
    data = open_data(file)
    assert (data.paths, data.class_ids) == (("class1/0.png", "class3/2.png"), (1, 3))
    assert data.ids_given
    assert open_data(folder) == data  # the one CSV of a folder


def test_csv_with_names_and_with_both(folder: Path) -> None:
    file = table(folder, "image,class_name\nclass1/0.png,dog\nclass3/2.png,cat\n")
    data = open_data(file)
    assert (data.class_ids, data.class_names, data.ids_given) == ((1, 0), ("cat", "dog"), False)
    both = "image,class_index,class_name\nclass1/0.png,1,dog\nclass3/2.png,0,cat\n"
    data = open_data(table(folder, both))
    assert (data.class_ids, data.class_names, data.ids_given) == ((1, 0), ("cat", "dog"), True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1: the header needs"),
        ("image,colour\na,b\n", "got image, colour"),
        ("image,class_index\nclass0/0.png,one\n", "line 2: a class id must be a whole number"),
        ("image,class_index\nclass0/0.png,-1\n", "line 2: a class id must be at least 0"),
        ("image,class\nclass0/0.png,0\nclass0/1.png,\n", "line 3: an image and a class"),
        ("image,class\nclass0/0.png\n", "line 2: 2 columns wanted, got 1"),
        ("image,class\n", "lists no images"),
        ("image,class\nclass0/0.png,0\nno.png,0\n", r"1 of 2 images are missing.*no\.png"),
        (
            "image,class_index,class_name\nclass0/0.png,0,a\nclass0/1.png,0,b\n",
            "line 3: class 0 is called 'b' here and 'a' before",
        ),
    ],
)
def test_csv_errors(folder: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_data(table(folder, text))


def wsol(folder: Path, ids: str, labels: str) -> Path:
    where = folder / "metadata"
    where.mkdir()
    table(where, ids, "image_ids.txt")
    table(where, labels, "class_labels.txt")
    return where


def test_a_cell_too_long_for_csv(folder: Path) -> None:
    file = folder / "list.csv"
    file.write_text("image,class\nclass0/0.png," + "x" * 200_000 + "\n")
    with pytest.raises(DataError, match=r"list\.csv, line 2: not CSV: field larger"):
        open_data(file)


def test_wsol_text_files(folder: Path) -> None:
    labels = "class0/0.png,0\nclass1/0.png,1\nclass2/0.png,2\n"
    where = wsol(folder, "class1/0.png\nclass0/0.png\n", labels)
    table(folder, "red\ngreen\nblue\n", "classes.txt")
    for path in (folder, where):
        data = open_data(path)
        assert data.paths == ("class1/0.png", "class0/0.png")
        assert data.class_ids == (1, 0)
        assert data.class_names == ("red", "green", "blue")
        assert data.file(0).is_file()
    moved = folder.parent / "elsewhere"
    shutil.move(where, moved)
    assert open_data(moved, root=folder).class_ids == (1, 0)


@pytest.mark.parametrize(
    ("ids", "labels", "words"),
    [
        ("class0/0.png\n", "class1/0.png,1\n", r"image_ids\.txt, line 1: .* has no class"),
        ("class0/0.png\n", "class0/0.png\n", r"class_labels\.txt, line 1: \"path,class_id\""),
        ("class0/0.png\n", "class0/0.png,x\n", "line 1: a class id must be a whole number"),
        ("\n", "class0/0.png,1\n", "lists no images"),
        ("gone.png\n", "gone.png,1\n", "1 of 1 images are missing"),
    ],
)
def test_wsol_errors(folder: Path, ids: str, labels: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_data(wsol(folder, ids, labels))


def test_wsol_lacks_a_file(folder: Path) -> None:
    where = wsol(folder, "class0/0.png\n", "class0/0.png,0\n")
    (where / "class_labels.txt").unlink()
    with pytest.raises(DataError, match=r"class_labels\.txt is missing"):
        open_data(folder)


def test_not_a_data_set(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        open_data(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is none of"):
        open_data(tmp_path / "empty")
    (folder / "hollow").mkdir()
    with pytest.raises(DataError, match="hollow holds no images"):
        open_data(folder)
    table(tmp_path / "empty", "image,class\n", "a.csv")
    table(tmp_path / "empty", "image,class\n", "b.csv")
    with pytest.raises(DataError, match=r"several CSV files \(a.csv, b.csv\)"):
        open_data(tmp_path / "empty")


def test_classes_are_matched_by_name(data: ImageList) -> None:
    names = ("other", "Class3", "class1", "CLASS0", "class2")
    matched = match_classes(data, 5, names)
    assert [matched.class_ids[i] for i in (0, 10, 20, 30)] == [3, 2, 4, 1]
    assert matched.class_names == names


def test_sorted_order_where_the_count_matches(data: ImageList) -> None:
    assert match_classes(data, 4).class_ids == data.class_ids
    assert match_classes(data, 4, ("a", "b", "c", "d")).class_ids == data.class_ids


@pytest.mark.parametrize(
    ("count", "names", "words"),
    [
        (5, (), "4 classes .* the model has 5 and has no class names"),
        (5, tuple("abcde"), "has none of these names"),
        (4, ("class0", "class1", "class2", "klass3"), "no class 'class3'; near names: klass3"),
        (5, ("class0", "class1", "class2", "class3", "class3"), "2 classes called 'class3'"),
    ],
)
def test_classes_that_do_not_match(
    data: ImageList, count: int, names: tuple[str, ...], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        match_classes(data, count, names)


def test_given_ids_must_be_below_the_number_of_classes(folder: Path) -> None:
    data = open_data(table(folder, "image,class_index\nclass0/0.png,9\n"))
    with pytest.raises(DataError, match=r"class0/0\.png .* has class 9, .* 0\.\.3"):
        match_classes(data, 4)
    assert match_classes(data, 10) is data


@pytest.mark.skipif(sys.platform != "linux", reason="only here a name may be any bytes")
def test_names_that_are_not_utf8_count_too(folder: Path) -> None:
    inside = os.fsencode(folder / "class0") + b"/"
    shutil.copy(folder / "class0" / "0.png", inside + b"\xff.png")
    before = open_data(folder).fingerprint()
    shutil.move(inside + b"\xff.png", inside + b"\xfe.png")
    assert open_data(folder).fingerprint() != before


def test_fingerprint_sees_changed_and_missing_images(data: ImageList) -> None:
    before = data.fingerprint()
    assert before == data.fingerprint()
    file = data.file(3)
    file.write_bytes(file.read_bytes() + b"\0")
    assert data.fingerprint() != before
    file.unlink()
    with pytest.raises(DataError, match=r"1 of 40 images are missing.*3\.png"):
        data.fingerprint()


@pytest.mark.shared
@needs_shared
def test_shared_data_sets() -> None:
    pets = open_data(DATA / "pets")
    assert (len(pets), len(pets.class_names), pets.name) == (300, 3, "pets")
    assert open_data(DATA / "pets" / "metadata").paths == pets.paths
    samples = open_data(DATA / "imagenet_samples")
    assert (len(samples), samples.class_names[:2]) == (1000, ("tench", "goldfish"))
    assert sorted(samples.class_ids) == list(range(1000))
