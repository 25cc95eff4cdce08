"""The reader against Pillow, pixel by pixel: formats, orientations, masks, frames and pages.

Where nothing is said the pixels are the same. Both use libjpeg-turbo, libpng, libwebp, libtiff,
libavif and OpenJPEG, with the same upsampling of chroma and the same inverse DCT.
"""

import io
import struct

import cv2
import numpy as np
import pytest

from sigcam.core.errors import ImageError, ImageWarning
from sigcam.images.decode import open_image, read_image
from sigcam.images.frames import Frame
from sigcam.images.pixels import PixelFormat

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
tifffile = pytest.importorskip("tifffile")

SMALL = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8)
RGB = cv2.resize(SMALL, (61, 45), interpolation=cv2.INTER_CUBIC)
PICTURE = Image.fromarray(RGB)
FLIPS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270",
         "TRANSVERSE", "ROTATE_90")  # fmt: skip


def saved(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pillow(data):
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    return np.asarray(image.convert("RGB"))


def same(data, atol=0):
    want, got = pillow(data), read_image(data)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= atol
    found = open_image(data)
    assert (found.height, found.width) == want.shape[:2]


JPEGS = [
    {"subsampling": sampling, "progressive": progressive, "quality": quality}
    for sampling in ("4:4:4", "4:2:2", "4:2:0")
    for progressive in (False, True)
    for quality in (30, 95)
]


@pytest.mark.parametrize("options", JPEGS, ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg(mode, options):
    same(saved(PICTURE.convert(mode), "JPEG", **options))


@pytest.mark.parametrize("options", [{"restart_marker_rows": 1}, {"keep_rgb": True}], ids=str)
def test_rare_jpegs(options):
    same(saved(PICTURE, "JPEG", **options))


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg(adobe):
    """A level of 255: Pillow rounds the product of ink and black otherwise."""
    data = saved(PICTURE.convert("CMYK"), "JPEG", quality=95)
    if not adobe:
        at = data.index(b"\xff\xee")
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    same(data, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png(mode):
    same(saved(PICTURE.convert(mode), "PNG"))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_colours(bits):
    same(saved(PICTURE.quantize(1 << bits), "PNG", bits=bits))
    same(saved(PICTURE.quantize(1 << bits), "PNG", bits=bits, transparency=1))


def test_png_with_a_transparent_colour():
    same(saved(PICTURE, "PNG", transparency=tuple(RGB[3, 4].tolist())))
    same(saved(PICTURE.convert("L"), "PNG", transparency=int(RGB[3, 4, 0])))


def test_png_of_16_bits():
    """Pillow makes black and white of these; their upper 8 bits are wanted."""
    deep = RGB[:, :, 0].astype(np.uint16) * 257 // 3 + 1
    got = read_image(saved(Image.fromarray(deep), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((deep >> 8)[:, :, None], 3, 2))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_gif(mode):
    same(saved(PICTURE.convert(mode), "GIF"))
    same(saved(PICTURE.convert(mode), "GIF", interlace=0))


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 40}, {"quality": 90}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp(mode, options):
    same(saved(PICTURE.convert(mode), "WEBP", **options))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg"])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1"])
def test_tiff(mode, compression):
    if compression == "jpeg" and mode in ("P", "1"):
        pytest.skip("not allowed")
    same(saved(PICTURE.convert(mode), "TIFF", compression=compression))


@pytest.mark.parametrize("kind", ["planes", "tiles", "big", "white is zero", "big-endian"])
def test_tiff_of_other_layouts(kind):
    stream = io.BytesIO()
    array, options = RGB, {"photometric": "rgb"}
    if kind == "planes":
        array, options = RGB.transpose(2, 0, 1).copy(), {**options, "planarconfig": "separate"}
    elif kind == "tiles":
        options["tile"] = (16, 16)
    elif kind == "big":
        options["bigtiff"] = True
    elif kind == "white is zero":
        array, options = RGB[:, :, 0], {"photometric": "miniswhite"}
    else:
        options["byteorder"] = ">"
    tifffile.imwrite(stream, array, **options)
    same(stream.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_pnm(mode):
    same(saved(PICTURE.convert(mode), "PPM"))


@pytest.mark.parametrize("most", [1, 3, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_pnm_of_any_white(kind, most):
    """Half a level: Pillow cuts off, and reads values above 255 to 16 bits."""
    values = np.random.default_rng(0).integers(0, most + 1, (5, 7, 3 if kind in (3, 6) else 1))
    head = f"P{kind} # a comment\n7 5\n{most}\n".encode()
    wide = ">u2" if most > 255 else "u1"
    text = " ".join(str(one) for one in values.ravel()).encode()
    got = read_image(head + (text if kind < 4 else values.astype(wide).tobytes()))
    assert np.abs(got - values * (255 / most)).max() <= 0.501


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 95, "subsampling": "4:4:4"}])
def test_avif(mode, options):
    same(saved(PICTURE.convert(mode), "AVIF", **options))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("options", [{}, {"irreversible": True, "quality_layers": [20]}], ids=str)
def test_jpeg_2000(mode, options):
    same(saved(PICTURE.convert(mode), "JPEG2000", **options))
    if mode != "LA":  # two values that nothing says the meaning of
        same(saved(PICTURE.convert(mode), "JPEG2000", no_jp2=True, **options))


def test_heic():
    heif = pytest.importorskip("pillow_heif")
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[274] = turn
        stream = io.BytesIO()
        picture = heif.from_pillow(PICTURE)
        picture.info["exif"] = exif.tobytes()
        picture.save(stream, quality=90)
        data = stream.getvalue()
        want = np.asarray(heif.open_heif(data))
        np.testing.assert_array_equal(read_image(data), want)
        found = open_image(data)
        assert (found.height, found.width) == want.shape[:2]


def raw_profile(exif):
    """Text as ImageMagick writes it."""
    digits = exif.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    return f"\nexif\n{len(exif):8}\n{lines}\n"


def turned(kind, orientation):
    """A file whose stored image is PICTURE, with an orientation written as `kind` says."""
    from PIL import PngImagePlugin

    exif = Image.Exif()
    exif[274] = orientation
    if kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        return saved(PICTURE, kind, exif=exif, **options)
    if kind == "JPEG after XMP":
        data = saved(PICTURE, "JPEG", exif=exif)
        xmp = b"http://ns.adobe.com/xap/1.0/\0<x/>"
        other = b"Exif\0\0" + b"not a TIFF"
        parts = b"".join(b"\xff\xe1" + struct.pack(">H", len(p) + 2) + p for p in (xmp, other))
        return data[:2] + parts + data[2:]
    if kind == "JPEG with XMP alone":
        xmp = f'<x:xmpmeta><d tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
        return saved(PICTURE, "JPEG", xmp=xmp)
    info = PngImagePlugin.PngInfo()
    name = "Raw profile type exif" if "exif" in kind else "Raw profile type APP1"
    info.add_text(name, raw_profile(exif.tobytes()), zip="zTXt" in kind)
    return saved(PICTURE, "PNG", pnginfo=info)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    "kind",
    ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "JPEG after XMP", "JPEG with XMP alone",
     "PNG zTXt exif", "PNG tEXt exif", "PNG zTXt APP1"],
)  # fmt: skip
def test_orientation(kind, orientation):
    """What is turned is right by PICTURE itself, so that Pillow needn't know each way to say it."""
    data = turned(kind, orientation)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    if kind == "AVIF":
        want = pillow(data)
    elif kind == "TIFF" or orientation == 1:
        want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    else:
        want = np.asarray(stored.transpose(Image.Transpose[FLIPS[orientation - 2]]))
    np.testing.assert_array_equal(read_image(data), want)
    found = open_image(data)
    assert (found.height, found.width) == want.shape[:2]


def bmp(bits, masks=(), size=40, pixels=b"", top_down=False, compression=None, palette=b""):
    """A BMP with a header of that size; `pixels` are its rows, padded."""
    compression = (3 if masks else 0) if compression is None else compression
    height = -45 if top_down else 45
    if size == 12:
        info = struct.pack("<IHHHH", 12, 61, 45, 1, bits)
    else:
        info = struct.pack("<IiiHHIIiiII", size, 61, height, 1, bits, compression, 0, 0, 0, 0, 0)
        info = info[:size] + struct.pack(f"<{len(masks)}I", *masks)
        info += bytes(max(0, size - len(info)))
    body = info + palette
    start = 14 + len(body)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + body + pixels


def packed(masks, bits, top_down=False):
    """Rows of PICTURE with its channels in those masks, and what they come back as."""
    total, want = np.zeros(RGB.shape[:2], np.uint64), []
    for channel, mask in enumerate(masks[:3]):
        shift = (mask & -mask).bit_length() - 1
        most = mask >> shift
        value = (RGB[:, :, channel].astype(np.uint64) * most + 127) // 255
        total |= value << np.uint64(shift)
        want.append(np.rint(value * 255 / most))
    rows = total.astype(f"<u{bits // 8}")
    stride = -(-61 * bits // 32) * 4
    rows = np.pad(rows.view(np.uint8).reshape(45, -1), ((0, 0), (0, stride - 61 * bits // 8)))
    return (rows if top_down else rows[::-1]).tobytes(), np.dstack(want).astype(np.uint8)


MASKS = {
    "565": (16, (0xF800, 0x7E0, 0x1F)),
    "555": (16, (0x7C00, 0x3E0, 0x1F)),
    "565 blue first": (16, (0x1F, 0x7E0, 0xF800)),
    "444": (16, (0xF00, 0xF0, 0xF)),
    "RGBX": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "XBGR": (32, (0xFF, 0xFF00, 0xFF0000)),
    "GRB": (32, (0xFF00, 0xFF0000, 0xFF)),
    "10 bits": (32, (0x3FF00000, 0xFFC00, 0x3FF)),
    "alpha": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
}


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("size", [40, 56, 108, 124])
@pytest.mark.parametrize("name", MASKS)
def test_bmp_masks(name, size, top_down):
    bits, masks = MASKS[name]
    pixels, want = packed(masks, bits, top_down)
    if size == 40:
        masks = masks[:3]
    data = bmp(bits, masks, size, pixels, top_down)
    np.testing.assert_array_equal(read_image(data), want)


def test_bmp_of_16_bits_without_masks():
    pixels, want = packed((0x7C00, 0x3E0, 0x1F), 16)
    data = bmp(16, pixels=pixels)
    np.testing.assert_array_equal(read_image(data), want)
    assert np.abs(pillow(data).astype(int) - want).max() <= 1  # Pillow cuts off, we round


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmp(mode):
    same(saved(PICTURE.convert(mode), "BMP"))


@pytest.mark.parametrize("size", [12, 16, 64])
@pytest.mark.parametrize("bits", [1, 4, 8, 24])
def test_bmp_of_os2(size, bits):
    if bits == 24:
        rows = np.pad(RGB[::-1, :, ::-1].reshape(45, -1), ((0, 0), (0, 1)))
        palette, want = b"", RGB
    else:
        indices = RGB[:, :, 0] >> (8 - bits)
        colours = np.random.default_rng(1).integers(0, 256, (1 << bits, 3), np.uint8)
        step = 3 if size == 12 else 4
        palette = np.pad(colours[:, ::-1], ((0, 0), (0, step - 3))).tobytes()
        digits = np.unpackbits(indices[::-1, :, None], axis=2)[:, :, 8 - bits :].reshape(45, -1)
        rows = np.packbits(digits, axis=1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        want = colours[indices]
    data = bmp(bits, (), size, rows.tobytes(), palette=palette)
    np.testing.assert_array_equal(read_image(data), want)
    found = open_image(data)
    assert (found.height, found.width) == want.shape[:2]


def animation(kind, mode="RGB", count=4):
    frames = []
    for index in range(count):
        frame = np.zeros((40, 60, 4), np.uint8)
        box = slice(5 + 4 * index, 15 + 4 * index), slice(8 * index, 20 + 8 * index)
        frame[box] = (250, 60 * index, 9, 255)
        frames.append(Image.fromarray(frame).convert(mode))
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, **options)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_frames(tmp_path, kind, mode):
    data = animation(kind, mode)
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    image = Image.open(io.BytesIO(data))
    assert image.n_frames == 4
    for index in range(4):
        image.seek(index)
        want = np.asarray(image.convert("RGB"))
        np.testing.assert_array_equal(read_image(Frame(data, index)), want)
        np.testing.assert_array_equal(read_image(f"{path}#{index}"), want)
        np.testing.assert_array_equal(read_image(Frame(path, index)), want)
    with pytest.raises(ImageError, match="4 frames, counted from 0; there is no #4"):
        read_image(f"{path}#4")
    with pytest.warns(ImageWarning, match="4 frames, of which the first is read"):
        first = read_image(path)
    np.testing.assert_array_equal(first, read_image(f"{path}#0"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_pages(mode):
    pages = [PICTURE.transpose(Image.Transpose[one]).convert(mode) for one in FLIPS[:5]]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    for index, page in enumerate(pages):
        got = read_image(Frame(data, index))
        np.testing.assert_array_equal(got, np.asarray(page.convert("RGB")))
        found = open_image(Frame(data, index))
        assert (found.width, found.height) == page.size
    with pytest.raises(ImageError, match="5 pages"):
        read_image(Frame(data, 5))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_grey_pages_are_never_colours_in_silence(count):
    pages = [Image.fromarray(RGB[:, :, one % 3]) for one in range(count)]
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    if count == 3:
        with pytest.warns(ImageWarning, match="3 grey pages, which are read as the red, green"):
            np.testing.assert_array_equal(read_image(data), RGB)
    else:
        with pytest.raises(ImageError, match=rf"\[45, 61, {count}\].*FILE#0"):
            read_image(data)
    bands = read_image(data, pixels=PixelFormat(count)) if count != 3 else RGB
    np.testing.assert_array_equal(bands[:, :, 1], RGB[:, :, 1])


def test_a_thumbnail_is_no_page():
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(RGB, photometric="rgb")
        writer.write(RGB[::4, ::4], photometric="rgb", subfiletype=1)
    same(stream.getvalue())  # and nothing is said of pages
    with pytest.raises(ImageError, match="has one TIFF image"):
        read_image(Frame(stream.getvalue(), 1))


def test_a_real_name_with_a_hash_comes_first(tmp_path):
    (tmp_path / "a.gif").write_bytes(animation("GIF"))
    (tmp_path / "a.gif#1").write_bytes(saved(PICTURE, "PNG"))
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif#1"), RGB)
    assert read_image(tmp_path / "a.gif#2").shape == (40, 60, 3)
    with pytest.raises(ImageError, match="no image file"):
        read_image(tmp_path / "b.gif#1")


def test_a_frame_with_alpha():
    data = animation("PNG", "RGBA")
    image = Image.open(io.BytesIO(data))
    image.seek(2)
    got = read_image(Frame(data, 2), pixels=PixelFormat(4))
    np.testing.assert_array_equal(got, np.asarray(image.convert("RGBA")))
