"""What an image may be given as: the same pixels whatever it comes as, and advice for the rest."""

import io
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sigcam.core.errors import ImageArgumentError, ImageError, UsageError
from sigcam.images.decode import open_image, read_image
from sigcam.images.pixels import PixelFormat
from sigcam.images.sources import plain_source


def image(height=40, width=60):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), image()[..., ::-1])
    return path


def test_one_image_in_many_forms(file, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    data = file.read_bytes()
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("image.png", data)
    with (
        file.open("rb") as stream,
        zipfile.ZipFile(tmp_path / "all.zip") as archive,
        archive.open("image.png") as packed,
        Image.open(file) as lazy,
    ):
        for source in (
            file, str(file), "~/image.png", Path("~/image.png"), os.fspath(file), data,
            bytearray(data), memoryview(data), io.BytesIO(data), stream, packed, lazy,
            Image.fromarray(image()), image(), np.asfortranarray(image()), image()[::-1][::-1],
            image()[:, ::-1][:, ::-1], image().astype(np.uint16) << 8,
            np.dstack([image(), image()[..., :1]]),
        ):  # fmt: skip
            np.testing.assert_array_equal(read_image(source), image(), err_msg=repr(source)[:60])
        assert not stream.closed


@pytest.mark.parametrize("orientation", range(9))
def test_pillow_images_are_turned_as_their_tag_says(tmp_path, orientation):
    """As the file itself is, which PIL leaves as it is stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image()).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as found:
        np.testing.assert_array_equal(read_image(found), read_image(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_pillow(mode):
    found = Image.fromarray(image()).convert(mode)
    wanted = np.asarray(found.convert("L" if mode == "LA" else "RGB"))
    wanted = np.repeat(wanted[..., None], 3, 2) if wanted.ndim == 2 else wanted
    np.testing.assert_array_equal(read_image(found), wanted)


def test_pillow_images_of_16_bits():
    values = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    found = Image.fromarray(values)
    wide = read_image(found, pixels=PixelFormat(1, as_bytes=False))
    np.testing.assert_array_equal(wide[..., 0], values)


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_an_array():
    values = image()[..., 0]
    found = read_image(np.asmatrix(values))
    np.testing.assert_array_equal(found, np.repeat(values[..., None], 3, 2))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "an image is a path, .*got None"),
        (3, "got 3"),
        (2.5, "got 2.5"),
        ({"a": 1}, "pass several images as a list"),
        ({"a.jpg"}, "pass several images as a list"),
        ([[1, 2], [3, 4]], r"make an array of it with numpy\.array"),
        (iter(["a.jpg"]), "use Session.stream"),
        (object(), "got an object of the type object"),
        ("", "got an empty one"),
        ("a\0b.jpg", "zero byte"),
        (b"", "is empty"),
        ("https://example.org/cat.jpg", "is an address; download it"),
        ("s3://bucket/cat.jpg", "is an address; download it"),
        ("rtsp://camera/1", "sigcam explain MODEL ADDRESS"),
        (io.StringIO("text"), r"open for reading text; open it with open\(path, 'rb'\)"),
        (io.BytesIO(b""), r"nothing left to read.*file\.seek\(0\)"),
        (np.array(3, np.uint8), "an image is uint8"),
        (np.zeros(5, np.uint8), "an image is uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), "pass several as a list of arrays"),
        (np.zeros((4, 4, 2), np.uint8), "an image is uint8"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last: pass array\.transpose\(1, 2, 0\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (np.zeros((4, 4, 3)), "scale it to 0..255 as uint8"),
        (np.zeros((4, 4, 3), np.float32), "scale it to 0..255 as uint8"),
        (np.zeros((4, 4, 3), bool), "got bool"),
        (np.zeros((4, 4, 3), complex), "got complex128"),
        (np.zeros((4, 4, 3), object), "got object"),
        (np.zeros((4, 4, 3), np.int64), "got int64"),
        (np.ma.zeros((4, 4, 3), np.uint8), r"pass array\.filled\(0\)"),
        (torch.zeros(3, 4, 4), r"tensor\.permute\(1, 2, 0\)\.mul\(255\)\.byte\(\)\.cpu\(\)\.numpy"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"tensor\.permute\(1, 2, 0\)\.cpu\(\)\.numpy"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"tensor\.cpu\(\)\.numpy"),
        (torch.zeros(2, 3, 4, 4), r"several as a list, each as one of tensor\.permute"),
    ],
)
def test_what_is_no_image(source, message):
    with pytest.raises((UsageError, ImageError), match=message) as found:
        read_image(source)
    if not isinstance(source, bytes):
        assert isinstance(found.value, ImageArgumentError)
        assert isinstance(found.value, UsageError)
        assert isinstance(found.value, ImageError)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_advice_for_tensors_works(dtype):
    values = torch.from_numpy(image()).permute(2, 0, 1)
    tensor = values if dtype == torch.uint8 else values.float().div(255)
    with pytest.raises(UsageError) as found:
        read_image(tensor)
    code = str(found.value).split("pass ")[-1].split(" for values")[0]
    advised = eval(code, {"tensor": tensor})
    np.testing.assert_allclose(read_image(advised).astype(int), image().astype(int), atol=1)


def test_files_that_are_closed_or_only_written(file):
    with file.open("rb") as stream:
        pass
    with pytest.raises(ImageArgumentError, match=r"can't be read.*open\(path, 'rb'\)"):
        read_image(stream)
    advice = pytest.raises(ImageArgumentError, match=r"open\(path, 'rb'\)")
    with (file.parent / "new.png").open("wb") as stream, advice:
        read_image(stream)


def test_a_damaged_pillow_image(file):
    (file.parent / "cut.png").write_bytes(file.read_bytes()[:-3000])
    refused = pytest.raises(ImageArgumentError, match=r"PIL image.*can't be decoded")
    with Image.open(file.parent / "cut.png") as cut, refused:
        read_image(cut)


def test_no_file_of_an_array():
    with pytest.raises(UsageError, match="decoded already"):
        open_image(image())
    assert plain_source(image()) is not None
