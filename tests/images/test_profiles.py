"""Colour profiles: the same colours as sRGB, against LittleCMS (in Pillow)."""

import io
import struct

import cv2
import numpy as np
import pytest

from sigcam.core.errors import ImageWarning
from sigcam.core.spec import Preprocessing
from sigcam.images.decode import read_image
from sigcam.images.pixels import PixelFormat
from sigcam.images.preprocess import read_input
from sigcam.images.profiles import to_srgb

Image = pytest.importorskip("PIL.Image")
ImageCms = pytest.importorskip("PIL.ImageCms")

RNG = np.random.default_rng(2)
RGB = cv2.resize(
    RNG.integers(0, 256, (9, 11, 3), np.uint8), (80, 64), interpolation=cv2.INTER_CUBIC
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

# Primaries under D50, as the profiles of these spaces hold them.
SPACES = {
    "Display P3": ([[0.51512, 0.24120, -0.00105], [0.29198, 0.69225, 0.04189],
                    [0.15710, 0.06657, 0.78407]], "srgb"),
    "Adobe RGB": ([[0.60974, 0.31111, 0.01947], [0.20528, 0.62567, 0.06087],
                   [0.14919, 0.06322, 0.74457]], 2.19921875),
    "ProPhoto": ([[0.79767, 0.28804, 0.0], [0.13519, 0.71187, 0.0], [0.03134, 0.00009, 0.82491]],
                 1.8),
    "channels exchanged": ([[0.14307, 0.06061, 0.71410], [0.38510, 0.71689, 0.09708],
                            [0.43607, 0.22249, 0.01392]], "table"),
}  # fmt: skip


def fixed(*values):
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def curve(kind):
    if kind == "srgb":
        return (
            b"para"
            + bytes(4)
            + struct.pack(">HH", 3, 0)
            + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        )
    if kind == "table":
        values = np.rint(65535 * np.linspace(0, 1, 500) ** 2.2).astype(">u2")
        return b"curv" + bytes(4) + struct.pack(">I", 500) + values.tobytes()
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(kind * 256)) + bytes(2)


def profile(space, tags, pcs=b"XYZ "):
    """An ICC profile of version 2 with these tags."""
    tags = {b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249), **tags}
    for name in (b"desc", b"cprt"):
        tags[name] = (
            b"text" + bytes(4) + b"test\0"
            if name == b"cprt"
            else (b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78))
        )
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, data in tags.items():
        data += bytes(-len(data) % 4)
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    head = bytearray(128)
    head[8:12] = bytes((2, 0x40, 0, 0))
    head[12:16], head[16:20], head[20:24], head[36:40] = b"mntr", space, pcs, b"acsp"
    head[68:80] = fixed(0.9642, 1, 0.8249)
    whole = bytes(head) + struct.pack(">I", len(tags)) + table + body
    return struct.pack(">I", len(whole)) + whole[4:]


def rgb_profile(name):
    columns, kind = SPACES[name]
    tags = dict(zip((b"rTRC", b"gTRC", b"bTRC"), [curve(kind)] * 3, strict=True))
    for tag, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True):
        tags[tag] = b"XYZ " + bytes(4) + fixed(*column)
    return profile(b"RGB ", tags)


def by_littlecms(image, icc, mode="RGB"):
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    target = ImageCms.ImageCmsProfile(io.BytesIO(SRGB))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    made = ImageCms.profileToProfile(image, source, target, intent, outputMode=mode)
    return np.asarray(made)


def saved(image, kind, icc, **options):
    stream = io.BytesIO()
    image.save(stream, kind, icc_profile=icc, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF", "HEIF"])
def test_colours_become_srgb(kind, name):
    """Within two levels, and half of one on average: LittleCMS rounds in 8 bits on the way."""
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    icc = rgb_profile(name)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(Image.fromarray(RGB), kind, icc, **options)
    stored = Image.open(io.BytesIO(data)).convert("RGB")
    want = by_littlecms(stored, icc).astype(int)
    got = read_image(data)
    assert np.abs(got - want).max() <= 2
    assert np.abs(got - want).mean() <= 0.5
    assert np.abs(got.astype(int) - np.asarray(stored)).mean() > 4  # it did something


def test_a_jpeg_decoded_smaller_is_converted_too():
    icc = rgb_profile("Adobe RGB")
    image = cv2.resize(RGB, (640, 512))
    data = saved(Image.fromarray(image), "JPEG", icc, quality=95)
    small = Preprocessing(32, 40, "stretch")
    got = read_input(data, small).tensor.astype(int)
    want = read_input(read_image(data), small).tensor
    assert np.abs(got - want).mean() < 0.6
    assert np.abs(got - read_input(image, small).tensor).mean() > 3


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_srgb_itself_is_left_alone(kind):
    data = saved(Image.fromarray(RGB), kind, SRGB)
    np.testing.assert_array_equal(
        read_image(data), read_image(saved(Image.fromarray(RGB), kind, b""))
    )
    assert to_srgb(RGB, SRGB, "") is RGB


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
def test_grey(kind, gamma):
    grey = Image.fromarray(RGB[:, :, 0])
    icc = profile(b"GRAY", {b"kTRC": curve(gamma)})
    data = saved(grey, kind, icc)
    light = (np.asarray(Image.open(io.BytesIO(data))) / 255) ** (round(gamma * 256) / 256)
    want = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    for pixels in (PixelFormat(1), PixelFormat(3)):
        got = read_image(data, pixels=pixels)
        assert np.abs(got - want[:, :, None]).max() <= (1.01 if gamma == 2.2 else 0.51)


def cmyk_table(kind, size=9):
    """A printing profile of its own: how much light the inks leave, as Lab."""
    inks = np.stack(np.meshgrid(*[np.linspace(0, 1, size)] * 4, indexing="ij"), -1)
    lightness = 100 * (1 - inks[..., :3].mean(-1) * 0.8) * (1 - 0.9 * inks[..., 3])
    a = 70 * (inks[..., 1] - inks[..., 0]) * (1 - inks[..., 3])
    b = 70 * (inks[..., 2] - inks[..., 1]) * (1 - inks[..., 3])
    lab = np.stack([lightness / 100, (a + 128) / 255, (b + 128) / 255], -1)
    head = bytes(4) + bytes((4, 3, size, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    if kind == b"mft1":
        line = np.arange(256, dtype=np.uint8).tobytes()
        return kind + head + 4 * line + np.rint(lab * 255).astype("u1").tobytes() + 3 * line
    line = np.array([0, 65535], ">u2").tobytes()
    grid = np.rint(lab * 65280).astype(">u2").tobytes()
    return kind + head + struct.pack(">HH", 2, 2) + 4 * line + grid + 3 * line


@pytest.mark.parametrize("kind", [b"mft1", b"mft2"])
def test_cmyk_with_a_table(kind):
    """Three levels on average: LittleCMS takes 5 of a cell's 16 corners, we all of them."""
    table = cmyk_table(kind)
    icc = profile(b"CMYK", {b"A2B0": table, b"A2B1": table}, b"Lab ")
    picture = Image.fromarray(RGB).convert("CMYK")
    data = saved(picture, "JPEG", icc, quality=95)
    want = by_littlecms(Image.open(io.BytesIO(data)), icc).astype(int)
    got = read_image(data)
    assert np.abs(got - want).mean() < 3
    plain = read_image(saved(picture, "JPEG", b"", quality=95)).astype(int)
    assert np.abs(plain - want).mean() > 20


@pytest.mark.parametrize(
    ("icc", "why"),
    [
        (b"no profile at all", "no ICC profile"),
        (rgb_profile("Adobe RGB")[:300], "damaged"),
        (profile(b"CMYK", {}, b"Lab "), "for CMYK"),
        (profile(b"RGB ", {}), "neither curves nor a table"),
    ],
)
def test_a_profile_that_is_of_no_use_is_told_of(icc, why):
    data = saved(Image.fromarray(RGB), "PNG", icc)
    with pytest.warns(ImageWarning, match=f"colour profile that isn't used.*{why}"):
        got = read_image(data)
    np.testing.assert_array_equal(got, RGB)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bits_are_converted_by_their_upper_8(suffix):
    icc = rgb_profile("ProPhoto")
    deep = (RGB[:, :, ::-1].astype(np.uint16) << 8) + 77
    exif = [cv2.IMAGE_METADATA_ICCP], [np.frombuffer(icc, np.uint8)]
    if suffix == ".png":
        data = cv2.imencodeWithMetadata(suffix, deep, *exif)[1].tobytes()
    else:
        tifffile = pytest.importorskip("tifffile")
        stream = io.BytesIO()
        tifffile.imwrite(stream, deep[:, :, ::-1], photometric="rgb", iccprofile=icc)
        data = stream.getvalue()
    want = by_littlecms(Image.fromarray(RGB), icc).astype(int)
    assert np.abs(read_image(data) - want).max() <= 2


def test_a_cmyk_tiff_says_that_its_profile_is_not_used():
    table = cmyk_table(b"mft1", 5)
    data = saved(
        Image.fromarray(RGB).convert("CMYK"), "TIFF", profile(b"CMYK", {b"A2B0": table}, b"Lab ")
    )
    with pytest.warns(ImageWarning, match="profile that isn't used, as it is a CMYK TIFF"):
        read_image(data)


def test_values_as_they_are_stay():
    deep = RGB[:, :, 0].astype(np.uint16) * 257
    data = saved(Image.fromarray(deep), "PNG", profile(b"GRAY", {b"kTRC": curve(1.0)}))
    got = read_image(data, pixels=PixelFormat(1, as_bytes=False))
    np.testing.assert_array_equal(got[:, :, 0], deep)
