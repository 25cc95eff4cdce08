"""How a data set's classes meet the model's, by name, by order or by id."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sigcam.core.errors import DataError
from sigcam.data import match_classes, open_dataset
from tests.support.tiny_datasets import image_writer, text_writer


@pytest.fixture
def data(tmp_path):
    """Ids are places in sorted order: Border_Collie 0 (one image), dog 1 (two)."""
    image = image_writer(tmp_path)
    for name in ("val/dog/2.png", "val/dog/1.png", "val/Border_Collie/3.png"):
        image(name)
    return open_dataset(tmp_path / "val")


@pytest.fixture
def four(tmp_path):
    """Class folders class0 to class3 of one image each."""
    image = image_writer(tmp_path)
    for index in range(4):
        image(f"four/class{index}/0.png")
    return open_dataset(tmp_path / "four")


@pytest.fixture
def ids(tmp_path):
    """Writes images and a CSV file of the class ids given."""
    image, text = image_writer(tmp_path), text_writer(tmp_path)

    def write(*values):
        for index in range(len(values)):
            image(f"{index}.png")
        lines = (f"{index}.png,{value}" for index, value in enumerate(values))
        return open_dataset(text("list.csv", "image,class_id", *lines))

    return write


def test_the_other_class_of_a_binary_model_may_have_any_name(tmp_path):
    write = text_writer(tmp_path)
    image_writer(tmp_path)("1.png")
    image_writer(tmp_path)("2.png")
    write("list.csv", "image,label", "1.png,nodule", "2.png,healthy")
    data = open_dataset(tmp_path)
    assert match_classes(data, 2, ("not nodule", "nodule")).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match="no class 'healthy'"):
        match_classes(data, 2, ("benign", "nodule"))


def test_names_are_mapped_whatever_their_case_and_underscores(data):
    mapped = match_classes(data, 4, ("Dog", "cat", "border collie", "fish"))
    assert mapped.labels.tolist() == [2, 0, 0]
    assert mapped.classes == ("Dog", "cat", "border collie", "fish")
    assert mapped.ids_given
    assert match_classes(mapped, 4).labels.tolist() == [2, 0, 0]  # ids now


def test_names_in_another_order(four):
    names = ("other", "Class3", "class1", "CLASS0", "class2")
    matched = match_classes(four, 5, names)
    assert matched.labels.tolist() == [3, 2, 4, 1]
    assert matched.classes == names


def test_sorted_order_where_the_count_matches(data, four):
    assert match_classes(data, 2).labels.tolist() == [0, 1, 1]
    assert match_classes(four, 4).labels.tolist() == [0, 1, 2, 3]
    assert match_classes(four, 4, ("a", "b", "c", "d")).labels.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("count", "names", "message"),
    [
        (5, (), r"four \(.*four\) has 4 classes \(class0, .*the model has 5 and no names; name"),
        (5, tuple("abcde"), r"the model has 5 and none of these names; .*--new-classes"),
        (4, ("class0", "class1", "class2", "klass3"), "no class 'class3'; near: klass3"),
        (5, (*(f"class{i}" for i in range(4)), "class3"), r"2 classes called 'class3' \(ids"),
    ],
)  # fmt: skip
def test_classes_that_do_not_match(four, count, names, message):
    with pytest.raises(DataError, match=message):
        match_classes(four, count, names)


def test_two_names_that_the_model_has_not_or_twice(data):
    with pytest.raises(DataError, match=r"has 2 classes .* the model has 3 and no names"):
        match_classes(data, 3)
    with pytest.raises(DataError, match="the model has 3 and none of these names"):
        match_classes(data, 3, ("x", "y", "z"))
    with pytest.raises(DataError, match="no class 'Border_Collie'; near: border coli"):
        match_classes(data, 2, ("dog", "border coli"))
    with pytest.raises(DataError, match=r"2 classes called 'dog' \(ids \[0, 1\]\)"):
        match_classes(data, 3, ("dog", "DOG", "border collie"))


def test_a_class_that_the_model_lacks_is_said_once_and_can_be_left_out(data):
    with pytest.raises(DataError, match=r"^1 problem in the data set; val has classes") as caught:
        match_classes(data, 2, ("hound", "border collie"))
    assert str(caught.value).count("no class 'dog'") == 1  # of two images
    left = match_classes(data, 2, ("dog", "border coli"), skip_bad=True)
    assert left.labels.tolist() == [0, 0]
    assert len(left.problems) == 1


def test_given_ids_must_be_below_the_number_of_classes(ids):
    data = ids(7, 0)
    assert match_classes(data, 8).labels.tolist() == [7, 0]
    assert match_classes(data, 8).classes is None
    message = r"list\.csv, line 2: 0\.png has class 7, the model's are 0 to 6"
    with pytest.raises(DataError, match=f"(?s)use|take a model of these classes.*{message}"):
        match_classes(data, 7)
    below = replace(data, samples=[replace(data.samples[0], label=-1)])
    with pytest.raises(DataError, match="has class -1, the model's are 0 to 7"):
        match_classes(below, 8)


def test_given_ids_with_names_of_another_number(ids):
    """Whoever names all classes of the data says how many there are."""
    data = replace(ids(1, 0), classes=("cat", "dog"))
    assert match_classes(data, 2).classes == ("cat", "dog")
    with pytest.raises(DataError, match=r"has 2 classes \(cat, dog\), the model has 3; name"):
        match_classes(data, 3)


def test_a_data_set_without_classes_is_left_alone(ids):
    data = ids(0)
    without = replace(data, samples=[replace(data.samples[0], label=None)])
    assert match_classes(without, 5) is without
