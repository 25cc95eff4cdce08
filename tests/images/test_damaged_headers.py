"""Headers that are damaged are refused as such, whatever a parser below makes of them."""

import io
import re
import struct

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from sigcam.core.errors import ImageError
from sigcam.images.decode import read_image
from sigcam.images.formats.tiff import damage, directories
from sigcam.images.headers import size_of_file
from sigcam.images.pixels import PixelFormat


def npy(text):
    """An NPY file with this text as its header."""
    body = text.encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(body)) + body + bytes(72)


@pytest.mark.parametrize(
    "text",
    ["{'descr': '|u1', 'fortran_order': False, 'shape': (4, 6, 3), ", "((((", "'''", "{\\", "\0",
     "lambda", "{'descr': '|u1'}", "{'descr': 'O', 'fortran_order': 0, 'shape': 4}"],
)  # fmt: skip
def test_npy(text):
    with pytest.raises(ImageError, match=r"header can't be read|must hold one image"):
        read_image(npy(text))


@pytest.mark.parametrize("place", [2**40, 2**63, 2**64 - 1])
def test_a_bigtiff_whose_tags_lie_beyond_any_file(place):
    data = b"II+\0" + struct.pack("<HHQ", 8, 0, place) + bytes(64)
    with pytest.raises(ValueError, match="inside its tags"):
        directories(data)
    with pytest.raises(ImageError):
        read_image(data)


@pytest.mark.parametrize("seed", range(40))
def test_tags_of_many_bands(seed):
    """A damaged tag made the package's axes and its values disagree."""
    file = io.BytesIO()
    bands = np.zeros((6, 12, 16), np.uint16)
    tifffile.imwrite(file, bands, photometric="minisblack")
    data = bytearray(file.getvalue())
    (at,) = struct.unpack_from("<I", data, 4)
    rng = np.random.default_rng(seed)
    (count,) = struct.unpack_from("<H", data, at)
    entry = at + 2 + 12 * int(rng.integers(count))
    struct.pack_into(
        "<I", data, entry + int(rng.choice((4, 8))), int(rng.choice((0, 1, 2, 3, 257)))
    )
    try:
        read = read_image(bytes(data), pixels=PixelFormat(6, as_bytes=False))
    except ImageError:
        return
    assert read.shape[2] == 6


def test_of_two_tags_of_a_tiff_the_first_counts(tmp_path):
    """The pixels are libtiff's, so their size is told by the entry that libtiff takes."""
    made = cv2.imencode(".tif", np.full((7, 9, 3), 90, np.uint8))[1].tobytes()
    (at,) = struct.unpack_from("<I", made, 4)
    (count,) = struct.unpack_from("<H", made, at)
    last = at + 2 + 12 * (count - 1)
    two = bytearray(made)
    struct.pack_into("<HHII", two, last, 257, 3, 1, 1)  # another height, after the first
    path = tmp_path / "two.tif"
    path.write_bytes(two)
    assert size_of_file(path) == (9, 7)
    assert read_image(path).shape == (7, 9, 3)


@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_that_has_fewer_strips_than_its_size_asks_for(tile, planar):
    """Whatever isn't there would be black; the size may be what is wrong."""
    shape = (40, 60, 3) if planar == "contig" else (3, 40, 60)
    file = io.BytesIO()
    options = {"tile": tile} if tile else {"rowsperstrip": 8}
    tifffile.imwrite(
        file, np.full(shape, 90, np.uint8), photometric="rgb", planarconfig=planar, **options
    )
    data = bytearray(file.getvalue())
    assert damage(bytes(data)) == ""
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    places = {struct.unpack_from("<H", data, at + 2 + 12 * i)[0]: at + 2 + 12 * i
              for i in range(count)}  # fmt: skip
    struct.pack_into("<HHII", data, places[257], 257, 4, 1, 4000)
    assert re.fullmatch(r"[1-9]\d+ of its \d+ (strips|tiles) are missing", damage(bytes(data)))


@pytest.mark.parametrize("kind", [".png", ".webp"])
@pytest.mark.parametrize("cut", [None, 70_000])
def test_a_large_files_size_is_read_without_its_pixels(tmp_path, kind, cut, monkeypatch):
    """The tag that turns it lies behind the pixels; what is read is far less than the file."""
    path = tmp_path / f"large{kind}"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(path, exif=exif, lossless=True)
    if kind == ".png":  # Pillow writes it before the pixels
        data = path.read_bytes()
        at = data.index(b"eXIf") - 4
        length = int.from_bytes(data[at : at + 4], "big") + 12
        chunk, rest = data[at : at + length], data[:at] + data[at + length :]
        path.write_bytes(rest[:-12] + chunk + rest[-12:])
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    read = 0

    class Counting(io.FileIO):
        def read(self, size=-1):
            nonlocal read
            data = super().read(size)
            read += len(data)
            return data

    monkeypatch.setattr(type(path), "open", lambda self, mode: Counting(self, mode))
    assert size_of_file(path) == ((300, 400) if cut is None else (400, 300))
    assert len(whole) > 300_000
    assert read < 70_000
