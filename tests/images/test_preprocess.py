import math

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import Axis, place, prepare
from sigcam.images.upsample import spread, to_heatmap

RULES = ("crop", "stretch", "letterbox")
SIZES = st.one_of(st.integers(1, 40), st.integers(41, 700))


def preprocessing_of(rule, layout="uint8_nhwc", height=56, width=48):
    resize = 64 if rule == "crop" else None
    return Preprocessing(height, width, rule, resize, layout=layout)


def kernel(distance, interpolation):
    d = abs(distance)
    if interpolation == "bilinear":
        return max(0.0, 1 - d)
    a = -0.75
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def slow_spread(cam, placement, interpolation):
    """Pixel by pixel: image pixel to input pixel to CAM coordinate, then the kernel."""
    h, w = cam.shape
    out = np.zeros((placement.height, placement.width))
    x0, y0, x1, y1 = placement.crop_box

    def taps(pixel, axis, cells):
        shown = (pixel + 0.5 - axis.start) * axis.shown / axis.used
        at = (shown + axis.first) * cells / axis.length - 0.5
        for cell in range(math.floor(at) - 1, math.floor(at) + 3):
            yield min(max(cell, 0), cells - 1), kernel(at - cell, interpolation)

    for y in range(y0, y1):
        for x in range(x0, x1):
            for i, wy in taps(y, placement.rows, h):
                for j, wx in taps(x, placement.columns, w):
                    out[y, x] += wy * wx * cam[i, j]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", [(37, 61), (150, 131), (5, 90), (64, 3), (1, 1), (1, 200)])
def test_spread_equals_the_slow_definition(interpolation, rule, size):
    placement = place(preprocessing_of(rule), *size)
    cam = np.random.default_rng(1).random((7, 6)).astype(np.float32)
    got = spread(cam, placement, interpolation)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_spread(cam, placement, interpolation), atol=2e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_spread_of_a_whole_image_equals_opencv_resize(interpolation):
    cam = np.random.default_rng(2).random((7, 7)).astype(np.float32)
    placement = place(Preprocessing(56, 56, "stretch"), 56, 56)
    flag = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[interpolation]
    wanted = cv2.resize(cam, (56, 56), interpolation=flag)
    np.testing.assert_allclose(spread(cam, placement, interpolation), wanted, atol=1e-6)


def test_unknown_interpolation_is_refused():
    placement = place(preprocessing_of("crop"), 50, 50)
    with pytest.raises(UsageError, match="got 'nearest'"):
        spread(np.zeros((7, 7), np.float32), placement, "nearest")


@given(height=SIZES, width=SIZES, rule=st.sampled_from(RULES))
@example(height=1, width=5000, rule="crop")
@example(height=5000, width=1, rule="crop")
@example(height=1, width=20_000, rule="crop")
@example(height=3, width=20_000, rule="letterbox")
def test_every_shape_gives_an_input_and_a_window(height, width, rule):
    preprocessing = preprocessing_of(rule)
    image = np.zeros((height, width, 3), np.uint8)
    image[:] = (10, 20, 30)
    tensor, placement = prepare(image, preprocessing)
    assert tensor.shape == (56, 48, 3)
    rows, columns = placement.rows, placement.columns
    assert (tensor[rows.filled, columns.filled] == (10, 20, 30)).all()
    x0, y0, x1, y1 = placement.crop_box
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    if rule != "crop":
        assert (x0, y0, x1, y1) == (0, 0, width, height)
    else:
        assert (rows.shown, columns.shown) == (56, 48)
    full, valid = to_heatmap(np.random.default_rng(0).random((7, 6)).astype(np.float32), placement)
    assert full.shape == (height, width)
    assert np.isfinite(full).all()
    assert valid == bool(full.max() >= 1 - 2e-6)
    assert full.min() >= 0
    assert full.max() <= 1


@given(height=SIZES, width=SIZES, rule=st.sampled_from(RULES), at=st.floats(-5, 800))
def test_the_way_there_and_back_is_the_same(height, width, rule, at):
    placement = place(preprocessing_of(rule), height, width)
    for axis in (placement.rows, placement.columns):
        assert axis.to_input(axis.to_image(at)) == pytest.approx(at, rel=1e-9, abs=1e-6)
        assert axis.low <= axis.start < axis.start + axis.used <= axis.high
        left_over = axis.high - axis.low - axis.used
        assert left_over < axis.factor <= max(1, axis.used / axis.shown)
        assert axis.used <= 2 * axis.factor * axis.shown
        assert axis.factor in (1, 2, 4) or axis.factor % 8 == 0
        assert axis.start % math.gcd(8, axis.factor) == 0
        if rule == "crop":
            assert left_over == 0


@given(height=st.integers(30, 900), width=st.integers(30, 900))
def test_crop_sees_what_torchvision_leaves(height, width):
    # torchvision.transforms.v2: Resize(64) then CenterCrop((56, 48)).
    placement = place(preprocessing_of("crop"), height, width)
    short, long = min(height, width), max(height, width)
    sizes = (64, int(64 * long / short)) if height <= width else (int(64 * long / short), 64)
    for axis, resized, cropped in zip(
        (placement.rows, placement.columns), sizes, (56, 48), strict=True
    ):
        low = round((resized - cropped) / 2.0)
        pixel = axis.size / resized  # of the resized image, in pixels of the image
        # One rounding here, up to half a resized pixel in each of torchvision's two, and with
        # a box average to its cells: half a cell in the length, of which half is at each
        # end, and half a cell in the place.
        cells = 0.75 * axis.factor if axis.factor > 1 else 0
        assert abs(axis.low - low * pixel) <= 1 + pixel + cells
        assert abs(axis.high - (low + cropped) * pixel) <= 1 + pixel + cells


def test_a_known_crop():
    placement = place(Preprocessing(224, 224, "crop", 256), 480, 640)
    assert placement.rows == Axis(480, 30, 450, 1, 0, 224, 224)
    assert placement.columns == Axis(640, 110, 530, 1, 0, 224, 224)
    assert placement.crop_box == (110, 30, 530, 450)


def test_a_whole_factor_is_a_box_average():
    image = np.random.default_rng(3).integers(0, 256, (56 * 24 + 17, 48 * 2 + 1, 3), dtype=np.uint8)
    tensor, placement = prepare(image, preprocessing_of("stretch"))
    assert (placement.rows.factor, placement.columns.factor) == (24, 2)
    assert (placement.rows.start, placement.columns.start) == (8, 0)
    used = image[8 : 8 + 56 * 24, :96].astype(float)
    boxes = used.reshape(56, 24, 48, 2, 3).mean((1, 3))
    assert np.abs(tensor - boxes).max() <= 0.5 + 1e-6


def bilinear_by_loops(image, preprocessing):
    """The input by the definition, for images that aren't box averaged."""
    placement = place(preprocessing, *image.shape[:2])
    out = np.zeros((preprocessing.height, preprocessing.width, 3))
    for i in range(preprocessing.height):
        for j in range(preprocessing.width):
            left, top, right, bottom = placement.crop_box
            y = min(max(placement.rows.to_image(i), top), bottom - 1)
            x = min(max(placement.columns.to_image(j), left), right - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, bottom - 1), min(x0 + 1, right - 1)
            upper = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
            lower = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
            out[i, j] = upper * (1 - y + y0) + lower * (y - y0)
    return out


@pytest.mark.parametrize("size", [(70, 100), (20, 30), (1, 900), (900, 1), (40, 2000), (2000, 7)])
def test_the_input_follows_the_definition(size):
    image = np.random.default_rng(4).integers(0, 256, (*size, 3), dtype=np.uint8)
    tensor, placement = prepare(image, preprocessing_of("crop"))
    assert placement.rows.factor == placement.columns.factor == 1
    assert np.abs(tensor - bilinear_by_loops(image, preprocessing_of("crop"))).max() <= 1


def test_letterbox_fills_with_the_mean_colour():
    image = np.full((30, 90, 3), 255, np.uint8)
    tensor, placement = prepare(image, preprocessing_of("letterbox"))
    assert placement.rows.filled == slice(20, 36)
    assert (tensor[20:36] == 255).all()
    assert (tensor[:20] == (124, 116, 104)).all()
    assert (tensor[36:] == (124, 116, 104)).all()


@pytest.mark.parametrize("rule", RULES)
def test_float_layout_is_the_normalised_byte_layout(rule):
    image = np.random.default_rng(5).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    preprocessing = preprocessing_of(rule, "float32_nchw")
    planes, placement = prepare(image, preprocessing)
    pixels, same = prepare(image, preprocessing_of(rule))
    assert placement == same
    assert planes.dtype == np.float32
    wanted = (pixels / 255 - np.array(preprocessing.mean)) / np.array(preprocessing.std)
    np.testing.assert_allclose(planes, wanted.transpose(2, 0, 1), atol=2e-6)


@pytest.mark.parametrize("layout", ["uint8_nhwc", "float32_nchw"])
@pytest.mark.parametrize("rule", RULES)
def test_prepare_writes_into_the_given_array(rule, layout):
    image = np.random.default_rng(6).integers(0, 256, (90, 30, 3), dtype=np.uint8)
    wanted, _ = prepare(image, preprocessing_of(rule, layout))
    out = np.full_like(wanted, 77)
    got, _ = prepare(image, preprocessing_of(rule, layout), out=out)
    assert got is out
    np.testing.assert_array_equal(out, wanted)


def test_the_map_is_normalised_in_the_window_and_zero_outside():
    cam = np.random.default_rng(7).random((7, 6)).astype(np.float32) + 3
    placement = place(preprocessing_of("crop"), 120, 300)
    x0, y0, x1, y1 = placement.crop_box
    for interpolation in ("bilinear", "bicubic"):
        full, valid = to_heatmap(cam, placement, interpolation)
        assert valid
        inside = full[y0:y1, x0:x1]
        assert inside.min() == pytest.approx(0, abs=2e-6)
        assert inside.max() == pytest.approx(1, abs=2e-6)
        assert 0 <= inside.min() < inside.max() <= 1
        outside = full.copy()
        outside[y0:y1, x0:x1] = 0
        assert not outside.any()
        raw = spread(cam, placement, interpolation)[y0:y1, x0:x1]
        wanted = (raw - raw.min()) / (raw.max() - raw.min())
        np.testing.assert_allclose(inside, wanted, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 1e-30, 0.3, 1.0, 1e6, 1e30, np.nan, np.inf])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_cam_without_a_map(value, interpolation):
    cam = np.full((7, 7), value, np.float32)
    full, valid = to_heatmap(cam, place(preprocessing_of("crop"), 123, 77), interpolation)
    assert not valid
    assert full.shape == (123, 77)
    assert not full.any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_cell_that_is_not_finite(bad):
    cam = np.random.default_rng(0).random((7, 7)).astype(np.float32)
    cam[3, 3] = bad
    full, valid = to_heatmap(cam, place(preprocessing_of("crop"), 60, 60))
    assert not valid
    assert not full.any()


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e30])
def test_small_and_large_cams_keep_their_map(scale):
    cam = np.random.default_rng(0).random((7, 7))
    placement = place(preprocessing_of("crop"), 60, 60)
    wanted, _ = to_heatmap(cam.astype(np.float32), placement)
    got, valid = to_heatmap((cam * scale).astype(np.float32), placement)
    assert valid
    np.testing.assert_allclose(got, wanted, atol=1e-5)
