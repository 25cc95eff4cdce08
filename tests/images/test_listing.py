"""Which files of a folder are images, and what is said of the others."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest

from sigcam.core.errors import DataError
from sigcam.images import listing
from sigcam.images.decode import read_image
from sigcam.images.listing import (
    HIDDEN,
    KIND_UNREAD,
    NO_IMAGE,
    SEEN,
    VIDEO,
    WRITTEN,
    LeftOut,
    described,
    list_images,
)
from sigcam.images.suffixes import IMAGE_SUFFIXES, READ, SUFFIXES_TEXT, UNREAD, is_image


@pytest.fixture
def files(tmp_path):
    """files(names) -> a folder with empty files of these names."""

    def make(*names):
        for name in names:
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "images"

    return make


def names(folder, paths):
    return [path.relative_to(folder).as_posix() for path in paths]


def left_out(folder, found):
    return {path.relative_to(folder).as_posix(): reason for path, reason in found.left_out}


def test_images_in_all_subfolders_sorted_and_the_others_with_reasons(files):
    folder = files(
        "b/2.PNG", "b/1.jpeg", "a.tif", "b/c/x.WebP", "s.JFIF", "t.jpe", "b.txt", "png", "p.jxl",
        "r.CR2", "v.MOV",
    )  # fmt: skip
    (folder / "folder.png").mkdir()  # a folder is no image, whatever its name
    found = list_images(folder)
    expected = ["a.tif", "b/1.jpeg", "b/2.PNG", "b/c/x.WebP", "s.JFIF", "t.jpe"]
    assert names(folder, found.images) == expected
    assert left_out(folder, found) == {
        "b.txt": NO_IMAGE, "png": NO_IMAGE, "p.jxl": KIND_UNREAD, "r.CR2": KIND_UNREAD,
        "v.MOV": VIDEO,
    }  # fmt: skip
    assert list_images(folder / "folder.png") == ((), ())


def test_litter_is_left_and_what_is_called_like_an_image_named(files):
    folder = files(
        "a.jpg", "._a.jpg", ".DS_Store", "Thumbs.db", "desktop.ini", "@eaDir/a.jpg",
        "__MACOSX/a.jpg", ".thumbnails/a.jpg", "b/.hidden.png", "b/c.png",
    )  # fmt: skip
    found = list_images(folder)
    assert names(folder, found.images) == ["a.jpg", "b/c.png"]
    assert left_out(folder, found) == dict.fromkeys(
        ("._a.jpg", "@eaDir", "__MACOSX", ".thumbnails", "b/.hidden.png"), HIDDEN
    )


def test_links_are_followed_and_loops_end(files, tmp_path):
    folder = files("real/1.png", "real/deep/2.png")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "3.png").touch()
    (folder / "real" / "gone.png").symlink_to("nowhere.png")
    (folder / "real" / "itself.png").symlink_to("itself.png")
    (folder / "real" / "round").symlink_to(folder / "real")
    (folder / "real" / "top").symlink_to(folder)
    (folder / "away").symlink_to(outside)
    (folder / "again").symlink_to(folder / "real")  # sorts before what it leads to
    (outside / "back").symlink_to(folder)
    found = list_images(folder)
    assert names(folder, found.images) == [
        "away/3.png", "real/1.png", "real/deep/2.png", "real/gone.png", "real/itself.png",
    ]  # fmt: skip
    assert left_out(folder, found) == dict.fromkeys(
        ("again", "real/round", "real/top", "away/back"), SEEN
    )
    through = list_images(folder / "again")
    assert "again/1.png" in names(folder, through.images)


def test_two_folders_that_lead_to_each_other(tmp_path):
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / one).mkdir()
        (tmp_path / one / f"{one}.png").touch()
        (tmp_path / one / "other").symlink_to(tmp_path / other)
    assert names(tmp_path, list_images(tmp_path).images) == ["a/a.png", "b/b.png"]
    assert names(tmp_path, list_images(tmp_path / "a").images) == ["a/a.png", "a/other/b.png"]


@pytest.mark.parametrize("name", ["maps", "./maps/", "link", "sub/../maps"])
def test_a_folder_that_is_written_to(files, name):
    folder = files("a.jpg", "maps/a.png", "maps/deep/b.png", "sub/b.jpg")
    (folder / "link").symlink_to("maps")
    found = list_images(folder, [folder / name])
    assert names(folder, found.images) == ["a.jpg", "sub/b.jpg"]
    assert left_out(folder, found) == {"maps": WRITTEN, "link": WRITTEN}
    assert len(list_images(folder, [folder / "none"]).images) == 4


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"the folder .*none can't be listed: No such file"):
        list_images(tmp_path / "none")

    def scandir(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(listing.os, "scandir", scandir)
    with pytest.raises(DataError, match=r"can't be listed: Permission denied; correct"):
        list_images(tmp_path)


def test_names_that_are_no_text(files):
    folder = files(os.fsdecode(b"caf\xe9.jpg"), "shots [2024]/a*.png", "new\nline.png")
    assert len(list_images(folder).images) == 3


def test_lines_for_a_person(tmp_path):
    some = [LeftOut(tmp_path / f"{n}.txt", NO_IMAGE) for n in range(5)]
    lines = described([*some, LeftOut(tmp_path / "x.jxl", KIND_UNREAD)], tmp_path)
    assert lines == [
        f"left out, {NO_IMAGE}: 5 (0.txt, 1.txt, 2.txt, ...)",
        f"left out, {KIND_UNREAD}: 1 (x.jxl)",
    ]


ENCODERS = {
    "JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "BMP": ".bmp", "TIFF": ".tiff", "NPY": "",
    "AVIF": ".avif", "PNM": ".ppm", "GIF": ".gif",
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_every_suffix_is_of_a_format_that_can_be_read_and_none_needs_to_be_right(tmp_path, kind):
    image = np.full((30, 40, 3), 255, np.uint8)  # whose colour every palette is near
    for suffix in IMAGE_SUFFIXES:  # also those of other formats: the first bytes decide
        path = tmp_path / f"{kind}{suffix}"
        assert is_image(path)
        assert suffix in SUFFIXES_TEXT
        if kind == "NPY":
            with path.open("wb") as stream:
                np.save(stream, image)
        else:
            path.write_bytes(cv2.imencode(ENCODERS[kind], image)[1].tobytes())
        assert read_image(path).min() >= 250


def test_no_suffix_is_read_and_unread():
    assert READ.keys() - ENCODERS.keys() == {"HEIC", "JPEG 2000"}  # tests/images has files of these
    assert not IMAGE_SUFFIXES & UNREAD
