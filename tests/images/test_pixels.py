"""Images of other channels and values: from arrays, NPY and TIFF to what a model takes."""

from __future__ import annotations

import io
import sys

import cv2
import numpy as np
import pytest

from sigcam.core.errors import ImageError
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import read_image
from sigcam.images.headers import size_of_file
from sigcam.images.overlay import draw
from sigcam.images.pixels import PixelFormat, converted, shown
from sigcam.images.preprocess import prepare, read_input

RNG = np.random.default_rng(0)
SIZE = (30, 40)


def noise(channels, dtype="uint8"):
    values = RNG.uniform(0, 255, (*SIZE, channels))
    return (values * (200 if dtype in ("uint16", "int32") else 1)).astype(dtype)


def npy(array, **options):
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def tiff(array, planes, **options):
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    first = np.ascontiguousarray(array.transpose(2, 0, 1))
    if planes == "pages":
        tifffile.imwrite(stream, first, photometric="minisblack", **options)
    elif planes == "separate":
        options = {"photometric": "minisblack", **options}
        tifffile.imwrite(stream, first, planarconfig="separate", **options)
    else:
        options = {"photometric": "minisblack", **options}
        array = array[:, :, 0] if array.shape[2] == 1 else array
        tifffile.imwrite(stream, array, planarconfig="contig", **options)
    return stream.getvalue()


def format_of(array):
    return PixelFormat(array.shape[2], as_bytes=array.dtype == np.uint8)


@pytest.mark.filterwarnings("ignore:.*3 grey pages")
@pytest.mark.parametrize("planes", ["contig", "separate", "pages"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_every_band_of_a_tiff(channels, dtype, planes):
    if channels == 1:
        planes = "contig"
    array = noise(channels, dtype)
    got = read_image(tiff(array, planes), pixels=format_of(array))
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, array.astype(got.dtype))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("alpha", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_rgba_tiff_keeps_its_values(dtype, alpha, compression):
    array = noise(4, dtype)
    options = {"photometric": "rgb", "extrasamples": [alpha], "compression": compression}
    got = read_image(tiff(array, "contig", **options), pixels=format_of(array))
    np.testing.assert_array_equal(got, array)


@pytest.mark.parametrize("planes", ["contig", "separate", "pages"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright(orientation, planes):
    stored = noise(5)
    data = tiff(stored, planes, extratags=[(274, "H", 1, orientation, True)])
    flipped = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}.get(orientation, ())
    want = np.flip(stored.swapaxes(0, 1) if orientation > 4 else stored, flipped)
    np.testing.assert_array_equal(read_image(data, pixels=PixelFormat(5)), want)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_rgba_is_turned_as_rgb_is(kind, orientation):
    image = pytest.importorskip("PIL.Image")
    rgba = noise(4)
    rgba[:, :, 3] = RNG.integers(100, 255, SIZE)
    stream, exif = io.BytesIO(), image.Exif()
    exif[0x112] = orientation
    image.fromarray(rgba).save(stream, kind, exif=exif, lossless=True, exact=True)
    colours = read_image(stream.getvalue())
    with_alpha = read_image(stream.getvalue(), pixels=PixelFormat(4))
    np.testing.assert_array_equal(with_alpha[:, :, :3], colours)
    assert colours.shape[:2] == (SIZE if orientation < 5 else SIZE[::-1])


def test_rgba_of_16_bits_from_png():
    array = noise(4, "uint16")
    data = cv2.imencode(".png", array[:, :, [2, 1, 0, 3]])[1].tobytes()
    np.testing.assert_array_equal(read_image(data, pixels=PixelFormat(4, False)), array)
    np.testing.assert_array_equal(read_image(data, pixels=PixelFormat(4)), array >> 8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg"])
def test_grey_files_stay_grey(suffix):
    grey = np.arange(256, dtype=np.uint8).repeat(8).reshape(32, 64)
    data = cv2.imencode(suffix, grey)[1].tobytes()
    want = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read_image(data, pixels=PixelFormat(1))[:, :, 0], want)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float16", "float64", ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy(channels, dtype, order):
    array = np.asarray(noise(channels, dtype), order=order)
    pixels = format_of(array)
    got = read_image(npy(array), pixels=pixels)
    assert got.flags.c_contiguous
    assert got.dtype == pixels.dtype
    np.testing.assert_array_equal(got, array.astype(pixels.dtype))
    np.testing.assert_array_equal(got, read_image(array, pixels=pixels))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npy(np.array([{}], object), allow_pickle=True), "one image of numbers"),
        (npy(np.zeros((2, 8, 8, 3), np.uint8)), r"one image of numbers.*\[2, 8, 8, 3\]"),
        (npy(np.zeros(8, np.uint8)), "one image of numbers"),
        (npy(np.zeros((0, 8), np.uint8)), "one image of numbers"),
        (npy(np.zeros((8, 8), [("a", "u1")])), "one image of numbers"),
        (npy(np.zeros((8, 8), complex)), "complex128"),
        (npy(np.zeros((8, 8), bool)), "bool"),
        (npy(np.zeros((8, 8), np.uint8))[:-3], "can't be read"),
        (npy(np.zeros((8, 8), np.uint8))[:20], "header can't be read"),
        (b"\x93NUMPY\x09\x00 what is this", "header can't be read"),
    ],
)
def test_bad_npy(tmp_path, data, message):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(tmp_path / "a.npy")
    assert "a.npy" in str(caught.value)


def test_a_large_npy_is_refused_by_its_header():
    with pytest.raises(ImageError, match="40 x 30 pixels, more than max_pixels = 1199"):
        read_image(npy(noise(3)), max_pixels=1199)


def test_nothing_is_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path / "touched").touch, ()

    with pytest.raises(ImageError):
        read_image(npy(np.array([[Evil()]], object), allow_pickle=True))
    assert not (tmp_path / "touched").exists()


def test_sizes_by_the_header(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(noise(7, "float32")))
    (tmp_path / "a.tif").write_bytes(tiff(noise(7), "separate"))
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY")
    assert size_of_file(tmp_path / "a.npy") == size_of_file(tmp_path / "a.tif") == SIZE[::-1]
    assert size_of_file(tmp_path / "bad.npy") == (0, 0)


@pytest.mark.parametrize("dtype", ["int16", "int32", "float32"])
def test_a_tiff_of_other_values_is_no_photograph(dtype):
    """OpenCV makes black and white of these where bytes are asked for."""
    for pixels in (PixelFormat(1), PixelFormat(3)):
        with pytest.raises(ImageError, match=f"{dtype}.*--scale"):
            read_image(tiff(noise(1, dtype), "contig"), pixels=pixels)


def test_bands_are_never_dropped():
    """Neither pages nor bands become the first of them, whatever the model takes."""
    for planes in ("contig", "separate", "pages"):
        for wanted in (1, 2, 3, 4, 7):
            with pytest.raises(ImageError, match=r"\[30, 40, 6\]"):
                read_image(tiff(noise(6), planes), pixels=PixelFormat(wanted))


def test_without_tifffile(monkeypatch):
    data = tiff(noise(6), "contig")
    photograph = cv2.imencode(".tiff", noise(3))[1].tobytes()
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ImageError, match=r"sigcam\[tiff\]"):
        read_image(data, pixels=PixelFormat(6))
    assert read_image(photograph).shape == (30, 40, 3)


def test_a_damaged_tiff_of_bands():
    data = tiff(noise(6), "contig")
    for cut in (len(data) // 2, 40, 9):
        with pytest.raises(ImageError, match="TIFF"):
            read_image(data[:cut], pixels=PixelFormat(6))


@pytest.mark.parametrize("rule", ["crop", "stretch", "letterbox"])
@pytest.mark.parametrize("size", [(100, 150), (33, 20), (16, 64)])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
@pytest.mark.parametrize("scale", [255, 10])
def test_channels_are_prepared_one_by_one(rule, size, channels, scale):
    """As three channels are, which other tests compare with their definition."""
    values = RNG.uniform(0, 200, (*size, channels))
    image = values.astype(np.uint8 if scale == 255 else np.float32)
    means, stds = (tuple(RNG.uniform(0.2, 0.8, channels)) for _ in range(2))
    common = (16, 24, rule, 30 if rule == "crop" else None)
    for layout in (None, "float32_nchw"):
        made = Preprocessing(*common, means, stds, layout, scale)
        got, placement = prepare(image, made)
        for channel in range(channels):
            three = np.ascontiguousarray(image[:, :, [channel] * 3])
            same = [(one[channel],) * 3 for one in (means, stds)]
            want, placed = prepare(three, Preprocessing(*common, *same, layout, scale))
            assert placement == placed
            axis = 2 if layout is None else 0
            # OpenCV may round a byte otherwise where there are other channels beside it, in both
            # of its steps.
            level = 1e-3 if scale != 255 else 1 if layout is None else 1.01 / 255 / stds[channel]
            difference = got.take(channel, axis).astype(float) - want.take(0, axis)
            assert np.abs(difference).max() <= 2 * level
            assert np.abs(difference).mean() <= level / 5


def test_a_large_jpeg_for_a_grey_model():
    """It is decoded smaller, too, and shown whole."""
    image = cv2.GaussianBlur(RNG.integers(0, 256, (400, 600, 3), np.uint8), (31, 31), 9)
    data = cv2.imencode(".jpg", image)[1].tobytes()
    grey = Preprocessing(40, 60, "stretch", None, (0.5,), (0.2,))
    got = read_input(data, grey)
    whole = read_image(data, pixels=PixelFormat(1))
    assert got.tensor.shape == (40, 60, 1)
    assert np.abs(got.tensor.astype(int) - prepare(whole, grey)[0]).max() <= 3
    np.testing.assert_array_equal(got.original.image, whole)


def test_luma():
    colour = RNG.integers(0, 256, (50, 50, 3), np.uint8)
    want = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(converted(colour, PixelFormat(1))[:, :, 0] - want).max() < 0.51
    values = colour.astype(np.float32) * 1000
    got = converted(values, PixelFormat(1, as_bytes=False))[:, :, 0]
    np.testing.assert_allclose(got, want * 1000, rtol=1e-5)


@pytest.mark.parametrize(
    ("image", "want"),
    [
        ([[[7]]], [7, 7, 7]),
        ([[[7, 9]]], [7, 7, 7]),
        ([[[7, 8, 9]]], [7, 8, 9]),
        ([[[7, 8, 9, 1]]], [7, 8, 9]),
        ([[[7, 8, 9, 1, 2, 3]]], [7, 8, 9]),
    ],
)
def test_how_bytes_are_shown(image, want):
    assert shown(np.array(image, np.uint8))[0, 0].tolist() == want


def test_how_values_are_shown():
    values = np.array([[[0.0, 51.0, 100.0, 900.0], [25.0, 25.0, 25.0, -900.0]]], np.float32)
    assert shown(values).tolist() == [[[0, 130, 255], [64, 64, 64]]]
    assert shown(np.full((1, 1, 1), 3.5, np.float32)).tolist() == [[[0, 0, 0]]]
    drawn = draw(np.zeros((4, 6, 7), np.float32), np.ones((4, 6), np.float32), (0, 0, 6, 4))
    assert drawn.shape == (4, 6, 3)
    assert drawn.dtype == np.uint8
