"""Images without classes: which folder is plain, and which a data set."""

from __future__ import annotations

import shutil

import pytest

from sigcam.core.errors import DataError, UsageError
from sigcam.data import open_dataset
from sigcam.data.unlabelled import open_images
from tests.support.toy import write_image


def names(dataset) -> list[str]:
    return [sample.name for sample in dataset.samples]


@pytest.fixture
def plain(tmp_path):
    for name in ("b.png", "a.png", "deep/er/c.png", ".thumbnails/t.png", "deep/._c.png"):
        write_image(tmp_path / "plain" / name, 0, 1)
    (tmp_path / "plain" / "notes.md").write_text("about")
    return tmp_path / "plain"


def test_a_plain_folder_with_subfolders(plain) -> None:
    data = open_images(plain)
    assert names(data) == ["a.png", "b.png", "deep/er/c.png"]
    assert data.classes is None
    assert all(sample.label is None and sample.size == (20, 24) for sample in data.samples)
    assert data.notes == (
        "left out, hidden, or left by another program: 2 (.thumbnails, deep/._c.png)",
        "left out, no image by its name: 1 (notes.md)",
    )
    assert data.name == "plain"


def test_linked_folders_count_and_what_is_written_does_not(plain, tmp_path) -> None:
    write_image(tmp_path / "other" / "o.png", 0, 1)
    write_image(plain / "maps" / "a.png", 0, 1)
    (plain / "linked").symlink_to(tmp_path / "other")
    (plain / "round").symlink_to(plain)
    data = open_images(plain, written=[plain / "maps"])
    assert names(data) == ["a.png", "b.png", "deep/er/c.png", "linked/o.png"]
    assert any("(maps)" in note for note in data.notes)


def test_class_folders_are_the_same_images_as_with_classes(folder) -> None:
    with_classes, without = open_dataset(folder), open_images(folder)
    assert names(without) == names(with_classes)
    assert without.classes is None
    # The features of the one serve the other.
    assert without.fingerprint() == with_classes.fingerprint()
    (folder / "empty").mkdir()
    assert names(open_images(folder)) == names(with_classes)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("list.csv", "image,class\na.png,cat\n"),
        ("instances.json", '{"images": [{"id": 1, "file_name": "a.png"}], "annotations": []}'),
        ("image_ids.txt", "a.png\n"),
        ("metadata/image_ids.txt", "a.png\n"),
    ],
)
def test_a_list_says_which_images_there_are(plain, file, text) -> None:
    (plain / file).parent.mkdir(exist_ok=True)
    (plain / file).write_text(text)
    try:
        assert names(open_images(plain)) == names(open_dataset(plain)) == ["a.png"]
    except DataError as error:  # what open_dataset refuses, it refuses with the same words
        with pytest.raises(DataError) as same:
            open_dataset(plain)
        assert str(same.value) == str(error)


def test_options_are_those_of_open_dataset(folder, tmp_path) -> None:
    shutil.copytree(folder, tmp_path / "splits" / "one")
    assert len(open_images(tmp_path / "splits", split="one")) == 40
    assert len(open_images(folder, format="folders")) == 40
    assert len(open_images(folder, format="auto", split=None, root=None)) == 40
    with pytest.raises(UsageError, match="no first_pixel"):
        open_images(folder, first_pixel=0)


def test_damaged_images_are_refused_or_left_out(plain) -> None:
    (plain / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"b\.png is damaged"):
        open_images(plain)
    data = open_images(plain, skip_bad=True)
    assert names(data) == ["a.png", "deep/er/c.png"]
    assert len(data.problems) == 1


def test_nothing_there(tmp_path) -> None:
    with pytest.raises(DataError, match="doesn't exist"):
        open_images(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no usable images"):
        open_images(tmp_path / "empty")
