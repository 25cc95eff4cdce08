"""Which files of a folder are images."""

from __future__ import annotations

import pytest

from sigcam.core.errors import DataError
from sigcam.images import listing
from sigcam.images.decode import read_image
from sigcam.images.listing import IMAGE_SUFFIXES, SUFFIXES_TEXT, is_image, list_images
from tests.support.tiny_datasets import image_writer


def test_images_and_others_in_all_subfolders_sorted(tmp_path):
    for name in ("b/2.PNG", "b/1.jpeg", "a.tif", "b/c/x.WebP", "b.txt", "c/.hidden", "png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "folder.png").mkdir()  # a folder is no image, whatever its name
    found = list_images(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in found.images] == [
        "a.tif",
        "b/1.jpeg",
        "b/2.PNG",
        "b/c/x.WebP",
    ]
    assert [path.name for path in found.others] == ["b.txt", ".hidden", "png"]
    assert list_images(tmp_path / "folder.png") == ((), ())


def test_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.png").touch()
    (tmp_path / "real" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "real" / "round").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    assert [path.name for path in list_images(tmp_path / "link").images] == ["1.png", "gone.png"]


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"the folder .*none can't be listed: No such file"):
        list_images(tmp_path / "none")

    def walk(folder, onerror):
        onerror(PermissionError(13, "Permission denied", str(folder)))

    monkeypatch.setattr(listing.os, "walk", walk)
    with pytest.raises(DataError, match=r"can't be listed: Permission denied; correct"):
        list_images(tmp_path)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".gif"}))
def test_every_suffix_is_of_a_format_that_can_be_read(tmp_path, suffix):
    path = image_writer(tmp_path)(f"a{suffix}")
    assert is_image(path)
    assert suffix in SUFFIXES_TEXT
    assert read_image(path).shape == (30, 40, 3)
