import io
import struct
import zlib

import cv2
import numpy as np
import pytest

from sigcam.core.errors import ImageError, ImageWarning, UsageError
from sigcam.images.decode import DEFAULT_MAX_PIXELS, read_image
from sigcam.images.frames import Frame

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(array, suffix=".png"):
    done, data = cv2.imencode(suffix, array)
    assert done
    return data.tobytes()


def bgr(array):
    return cv2.cvtColor(array, cv2.COLOR_RGB2BGR)


def png_chunk(kind, content):
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png_header(width, height, depth=8, colour=2):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_path_text_and_bytes_agree(tmp_path, suffix):
    data = encoded(bgr(COLOUR), suffix)
    path = tmp_path / f"image{suffix}"
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(read_image(source), COLOUR)


def test_an_array_is_taken_as_it_is():
    assert read_image(COLOUR) is COLOUR


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (COLOUR[:, :, 0], np.repeat(COLOUR[:, :, :1], 3, 2)),
        (COLOUR[:, :, :1], np.repeat(COLOUR[:, :, :1], 3, 2)),
        (np.dstack([COLOUR, COLOUR[:, :, 0]]), COLOUR),
        (COLOUR.astype(np.uint16) * 257, COLOUR),
        (COLOUR[::2, ::-1], COLOUR[::2, ::-1]),
        (np.asfortranarray(COLOUR), COLOUR),
    ],
    ids=["grey", "grey with axis", "rgba", "16 bit", "strided", "fortran"],
)
def test_arrays_of_other_kinds_become_rgb(given, wanted):
    got = read_image(given)
    assert got.flags.c_contiguous
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, wanted)


def test_png_of_every_kind():
    grey = COLOUR[:, :, 0]
    rgb_of_grey = np.repeat(grey[:, :, None], 3, 2)
    np.testing.assert_array_equal(read_image(encoded(grey)), rgb_of_grey)
    deep = grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(read_image(encoded(deep)), rgb_of_grey)
    rgba = np.dstack([bgr(COLOUR), grey])
    np.testing.assert_array_equal(read_image(encoded(rgba)), COLOUR)
    one = read_image(encoded(bgr(COLOUR[:1, :1])))
    np.testing.assert_array_equal(one, COLOUR[:1, :1])


def test_file_and_array_with_16_bits_agree():
    deep = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    from_file = read_image(encoded(deep[:, :, ::-1]))
    assert np.abs(from_file.astype(int) - read_image(deep)).max() <= 1


def test_palette_png():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = png_header(4, 3, 8, 3) + png_chunk(b"PLTE", palette)
    data += png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(data), np.eye(3, dtype=np.uint8)[pixels] * 255)


@pytest.fixture
def pillow():
    """Writes what OpenCV can't. It comes with torchvision."""
    return pytest.importorskip("PIL.Image", reason="Pillow writes these files")


def test_cmyk_jpeg(pillow):
    flat = np.zeros((16, 16, 3), np.uint8)
    flat[:] = (200, 60, 20)
    stream = io.BytesIO()
    pillow.fromarray(flat).convert("CMYK").save(stream, "JPEG", quality=95)
    got = read_image(stream.getvalue())
    assert np.abs(got.astype(int) - flat).max() <= 12


@pytest.mark.parametrize("suffix", [".gif", ".webp"])
def test_an_animation_gives_its_first_frame(suffix):
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (40, 200)]
    animation = cv2.Animation()
    animation.frames = frames
    animation.durations = [100, 100]
    done, data = cv2.imencodeanimation(suffix, animation)
    assert done
    with pytest.warns(ImageWarning, match="2 frames, of which the first is read"):
        assert abs(read_image(data.tobytes()).mean() - 40) < 20  # GIF has few colours
    for index, level in enumerate((40, 200)):
        assert abs(read_image(Frame(data.tobytes(), index)).mean() - level) < 20


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_honoured(jpeg, stored, orientation):
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:16, :16] = 255
    got = read_image(jpeg(stored(upright, orientation), orientation))
    assert got.shape == upright.shape
    assert np.abs(got.astype(int) - upright).max() < 40


@pytest.mark.parametrize("orientation", [3, 6, 8])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_orientation_of_other_formats(pillow, kind, orientation):
    tag = pillow.Exif()
    tag[0x0112] = orientation
    stored = np.ascontiguousarray(np.rot90(COLOUR, {3: 2, 6: 1, 8: -1}[orientation]))
    stream = io.BytesIO()
    options = {"lossless": True} if kind == "WEBP" else {}
    pillow.fromarray(stored).save(stream, kind, exif=tag, **options)
    np.testing.assert_array_equal(read_image(stream.getvalue()), COLOUR)


def test_a_huge_image_is_refused_by_its_header():
    data = png_header(20_000, 20_000) + png_chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"20000 x 20000 pixels, more than max_pixels = 178956970"):
        read_image(data)
    assert DEFAULT_MAX_PIXELS < 20_000 * 20_000


def test_the_limit_can_be_set():
    data = encoded(COLOUR)
    with pytest.raises(ImageError, match="raise max_pixels"):
        read_image(data, max_pixels=599)
    assert read_image(data, max_pixels=600).shape == COLOUR.shape
    assert read_image(data, max_pixels=None).shape == COLOUR.shape


def bad_files():
    noise = RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    yield "empty", b"", "is empty"
    yield "text", b"hello, this is not an image", "not an image"
    yield "onnx", b"\x08\x09\x12\x05torch", "not an image"
    yield "png header only", png_header(5, 5), "truncated PNG"
    yield "gif magic only", b"GIF89a", "without a readable size"
    yield "jpeg magic only", b"\xff\xd8\xff\xe0", "without a readable size"
    for suffix in (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff"):
        data = encoded(noise, suffix)
        for part in (0.3, 0.9):
            yield f"{suffix} cut at {part}", data[: int(len(data) * part)], "truncated|damaged"
    whole = encoded(noise)
    yield "png with damaged pixels", whole[:2000] + bytes(500) + whole[2500:], "damaged"


BAD = list(bad_files())


@pytest.mark.parametrize(("data", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_files_are_refused_by_name(tmp_path, data, message):
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    with pytest.raises(ImageError, match=message):
        read_image(data)


def test_a_thumbnail_does_not_hide_a_truncated_jpeg(jpeg):
    noise = RNG.integers(0, 256, (100, 100, 3), dtype=np.uint8)
    data = jpeg(noise)
    thumbnail = encoded(noise[:16, :16], ".jpg")
    segment = b"\xff\xe2" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert read_image(whole).shape == noise.shape
    with pytest.raises(ImageError, match="truncated JPEG"):
        read_image(whole[:-500])


def test_opencv_says_nothing_and_keeps_its_log_level(capfd):
    noise = RNG.integers(0, 256, (200, 200, 3), dtype=np.uint8)
    logging = cv2.utils.logging
    before = logging.setLogLevel(logging.LOG_LEVEL_ERROR)
    for suffix in (".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff"):
        data = encoded(noise, suffix)
        with pytest.raises(ImageError):
            read_image(data[: len(data) // 2])
    assert capfd.readouterr().err == ""
    assert logging.setLogLevel(before) == logging.LOG_LEVEL_ERROR


def test_missing_and_folder(tmp_path):
    with pytest.raises(ImageError, match="no image file"):
        read_image(tmp_path / "missing.jpg")
    with pytest.raises(ImageError, match="is a folder"):
        read_image(str(tmp_path))
    with pytest.raises(ImageError, match="cannot read"):
        read_image("x" * 5000)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 2), np.uint8),
        np.zeros((2, 5, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5, 3), bool),
    ],
)
def test_bad_arrays_are_refused(array):
    with pytest.raises(ImageError, match="got"):
        read_image(array)


def test_other_things_are_refused():
    with pytest.raises(UsageError, match="got 5"):
        read_image(5)
