"""What a decoder would fill with grey or black is refused; whole files get their own cause."""

import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest

from sigcam.core.errors import ImageError, ImageWarning
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import read_image
from sigcam.images.pixels import PixelFormat
from sigcam.images.preprocess import read_input

RNG = np.random.default_rng(5)
NOISE = RNG.integers(0, 256, (30, 40, 3), np.uint8)
IMAGE = cv2.resize(NOISE, (400, 300), interpolation=cv2.INTER_CUBIC)


def jpeg(kind="baseline", image=IMAGE):
    options = {
        "baseline": [],
        "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
        "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 8],
    }[kind]
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90, *options])[1].tobytes()


def scan_of(data):
    return data.index(b"\xff\xda") + 14, len(data) - 2


def damaged(data, how, seed):
    """Damages the scan of a JPEG between its first and last tenth; the end marker stays."""
    pick = random.Random(seed)
    start, end = scan_of(data)
    length = end - start
    at = start + pick.randrange(length // 10, length * 6 // 10)
    size = pick.randrange(length // 20, length // 4)
    if how == "cut":
        return data[:at] + data[at + size :]
    if how == "zeros":
        return data[:at] + bytes(size) + data[at + size :]
    if how == "noise":
        return data[:at] + pick.randbytes(size).replace(b"\xff", b"\0") + data[at + size :]
    if how == "doubled":
        return data[: at + size] + data[at:]
    if how == "end moved up":
        return data[:at] + b"\xff\xd9"
    if how == "another file's end":
        return data[:at] + jpeg(image=IMAGE[::-1])[-size:]
    raise ValueError(how)


HOW = ["cut", "zeros", "noise", "doubled", "end moved up", "another file's end"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["baseline", "restarts"])
def test_a_damaged_jpeg_is_refused(kind, how, seed):
    bad = damaged(jpeg(kind), how, seed)
    assert cv2.imdecode(np.frombuffer(bad, np.uint8), 1) is not None  # OpenCV makes an image of it
    with pytest.raises(ImageError, match="damaged JPEG"):
        read_image(bad)
    for size in (32, 140):  # decoded at 1/8 and at 1/2
        with pytest.raises(ImageError, match="damaged JPEG"):
            read_input(bad, Preprocessing(size, size, "stretch"))


@pytest.mark.parametrize("how", ["cut", "doubled", "end moved up"])
def test_a_damaged_progressive_jpeg_is_refused(how):
    for seed in range(10):
        with pytest.raises(ImageError, match="damaged JPEG"):
            read_image(damaged(jpeg("progressive"), how, seed))


@pytest.mark.parametrize("filler", [b"\0", b"\xff", b" "])
def test_padding_before_the_end_is_no_damage(filler):
    data = jpeg()
    padded = data[:-2] + 500 * filler + data[-2:]
    np.testing.assert_array_equal(read_image(padded), read_image(data))


def test_what_follows_the_end_is_no_damage():
    data = jpeg()
    np.testing.assert_array_equal(read_image(data + jpeg(image=NOISE)), read_image(data))


def test_bytes_between_segments_are_no_damage():
    data = jpeg()
    at = data.index(b"\xff\xdb")
    np.testing.assert_array_equal(read_image(data[:at] + b"\x01\x02" + data[at:]), read_image(data))


def test_damage_behind_padding_is_found():
    """Taking the padding away must not take the check away."""
    bad = damaged(jpeg(), "zeros", 1)
    with pytest.raises(ImageError, match="damaged JPEG"):
        read_image(bad[:-2] + bytes(300) + bad[-2:])


def test_a_jpeg_of_12_bits_says_so():
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = 0xC1, 12
    with pytest.raises(ImageError, match="of a kind that isn't read"):
        read_image(bytes(data))


def chunk(name, payload, crc=None):
    crc = zlib.crc32(name + payload) if crc is None else crc
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", crc)


def png(idat, width=40, height=30, bits=8, colour=2, before=b""):
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before
    return start + b"".join(chunk(b"IDAT", one) for one in idat) + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + row.tobytes() for row in NOISE)
PACKED = zlib.compress(ROWS)


@pytest.mark.parametrize(
    "data",
    [
        png([PACKED]).replace(chunk(b"IDAT", PACKED), chunk(b"IDAT", PACKED, 7)),
        png([PACKED[: len(PACKED) // 2]]),
        png([PACKED[:1000], PACKED[2000:]]),
        png([zlib.compress(ROWS[: len(ROWS) // 2])]),
        png([PACKED[:-1] + bytes([PACKED[-1] ^ 1])]),
        png([PACKED[:1000] + bytes(100) + PACKED[1100:]]),
        png([PACKED])[:-12],
        png([]),
    ],
    ids=["crc", "cut", "chunk gone", "rows gone", "checksum", "zeros", "no end", "no pixels"],
)
def test_a_damaged_png_is_refused(data):
    np.testing.assert_array_equal(read_image(png([PACKED])), NOISE)
    with pytest.raises(ImageError, match=r"damaged|truncated"):
        read_image(data)


def webp(**options):
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(IMAGE).save(stream, "WEBP", **options)
    return stream.getvalue()


@pytest.mark.parametrize("options", [{"quality": 80}, {"lossless": True}])
def test_a_cut_webp_is_refused(options):
    data = webp(**options)
    for cut in (0.3, 0.9):
        short = data[: int(len(data) * cut)]
        for bad in (short, short[:4] + struct.pack("<I", len(short) - 8) + short[8:]):
            with pytest.raises(ImageError, match=r"damaged|truncated"):
                read_image(bad)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000"])
def test_cut_files_of_other_formats_are_refused(kind):
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(IMAGE).save(stream, kind)
    data = stream.getvalue()
    for cut in (0.2, 0.6, 0.95):
        bad = data[: int(len(data) * cut)]
        for ending in (b"", b";") if kind == "GIF" else (b"",):
            with pytest.raises(ImageError, match=r"damaged|truncated"):
                read_image(bad + ending)


def tiff(array=IMAGE, **options):
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, photometric="rgb" if array.ndim == 3 else None, **options)
    return stream.getvalue()


@pytest.mark.parametrize("big", [False, True])
def test_strips_outside_of_the_file(big):
    """The tags come first, so that the cut takes only pixels."""
    data = tiff(bigtiff=big, rowsperstrip=50)
    np.testing.assert_array_equal(read_image(data), IMAGE)
    with pytest.raises(ImageError, match=r"truncated TIFF: 1 of its 6 strips lie outside"):
        read_image(data[:-100])


def test_strips_that_cannot_be_unpacked():
    data = tiff(compression="zlib", rowsperstrip=50)
    np.testing.assert_array_equal(read_image(data), IMAGE)
    at = len(data) // 2
    with pytest.raises(ImageError, match="can't be decompressed"):
        read_image(data[:at] + bytes(500) + data[at + 500 :])


def test_strips_of_jpeg_that_are_damaged():
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(IMAGE).save(stream, "TIFF", compression="jpeg", quality=90)
    data = stream.getvalue()
    assert np.abs(read_image(data).astype(int) - IMAGE).mean() < 5
    at = len(data) // 2
    with pytest.raises(ImageError, match="can't be decompressed"):
        read_image(data[:at] + bytes(2000) + data[at + 2000 :])


NEVER = "damaged|truncated|get it again"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "uint32"])
@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 3)])
@pytest.mark.parametrize("big", [False, True])
def test_values_that_are_no_bytes(dtype, shape, big):
    array = RNG.uniform(0, 100, shape).astype(dtype)
    data = tiff(array, bigtiff=big)
    with pytest.raises(ImageError, match=f"holds {dtype}.*--scale") as caught:
        read_image(data)
    assert not any(word in str(caught.value) for word in NEVER.split("|"))
    got = read_image(data, pixels=PixelFormat(shape[2] if len(shape) == 3 else 1, False))
    np.testing.assert_array_equal(got, array.reshape(30, 40, -1).astype(np.float32))


@pytest.mark.parametrize(
    "tags", [{"extratags": [(50706, "B", 4, (1, 4, 0, 0), True)]}, {"photometric": "cfa"}]
)
def test_a_raw_file_of_a_camera(tags):
    tifffile = pytest.importorskip("tifffile")
    stream = io.BytesIO()
    tifffile.imwrite(stream, IMAGE[:, :, 0].copy(), **tags)
    with pytest.raises(ImageError, match=r"a camera.s raw file.*develop it"):
        read_image(stream.getvalue())


def test_a_png_that_is_too_wide():
    row = bytes(1 + 1_000_001)
    with pytest.raises(ImageError, match=r"1000001 x 1 pixels, and OpenCV decodes PNG") as caught:
        read_image(png([zlib.compress(row)], 1_000_001, 1, colour=0))
    assert "get it again" not in str(caught.value)


def test_a_tiff_that_opencv_lacks_a_codec_for():
    image = pytest.importorskip("PIL.Image")
    stream = io.BytesIO()
    image.fromarray(IMAGE).convert("CMYK").save(stream, "TIFF", compression="zstd")
    with pytest.raises(ImageError, match=r"of a kind that isn't read.*compression 50000"):
        read_image(stream.getvalue())


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_fewer_bits_in_a_file_of_16(bits):
    values = RNG.integers(0, 1 << bits, (30, 40)).astype(np.uint16)
    want = np.repeat((values >> (bits - 8)).astype(np.uint8)[:, :, None], 3, 2)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    stated = png([zlib.compress(rows)], bits=16, colour=0, before=chunk(b"sBIT", bytes([bits])))
    np.testing.assert_array_equal(read_image(stated), want)
    tagged = tiff(values, extratags=[(281, "H", 1, (1 << bits) - 1, True)])
    np.testing.assert_array_equal(read_image(tagged), want)
    text = b"P5 40 30 %d\n" % ((1 << bits) - 1) + values.astype(">u2").tobytes()
    assert np.abs(read_image(text).astype(int) - want).max() <= 1


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits(bits):
    image = IMAGE[::4, ::4].astype(int) * ((1 << bits) - 1) // 255
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    done, data = cv2.imencode(".avif", image.astype(np.uint16), options)
    if not done:
        pytest.skip("this OpenCV writes no AVIF")
    got = read_image(data.tobytes())
    assert np.abs(got[:, :, ::-1].astype(int) - IMAGE[::4, ::4]).mean() < 3


def test_a_png_that_is_scaled_up_as_it_should_be():
    values = RNG.integers(0, 4096, (30, 40)).astype(np.uint16) * 16
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    data = png([zlib.compress(rows)], bits=16, colour=0, before=chunk(b"sBIT", b"\x0c"))
    np.testing.assert_array_equal(read_image(data)[:, :, 0], values >> 8)


def test_12_bits_that_nothing_states_are_told_of():
    values = RNG.integers(0, 4096, (30, 40)).astype(np.uint16)
    data = cv2.imencode(".png", values)[1].tobytes()
    for source in (data, values):
        with pytest.warns(ImageWarning, match="of 65535, which is nearly black"):
            assert read_image(source).max() == 15
    read_image(values * 2)  # and nothing is said of others
    read_image(data, pixels=PixelFormat(1, False))
