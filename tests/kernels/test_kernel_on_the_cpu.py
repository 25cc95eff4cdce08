"""clamp_combine.cu itself, compiled for the CPU, against the NumPy reference."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.kernels.arguments import (
    Axis,
    CombineArguments,
    HeatmapArguments,
    InputAxis,
    Place,
    PrepareArguments,
    whole,
)
from sigcam.kernels.compile import source
from sigcam.kernels.plan import WARP, plan
from sigcam.kernels.reference import clamp_combine, enlarged, normalised_heatmaps, to_bytes
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs
from tests.support.host_cuda import aligned, library, run_in_library


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("host") / "kernel.so")


def test_argument_layouts(lib):
    for function, structure in (
        ("layout_combine", CombineArguments), ("layout_heatmap", HeatmapArguments),
        ("layout_axis", Axis), ("layout_place", Place), ("layout_input_axis", InputAxis),
        ("layout_prepare", PrepareArguments),
    ):  # fmt: skip
        read = getattr(lib, function)
        read.restype = ctypes.POINTER(ctypes.c_int)
        names = [name for name, *_ in structure._fields_]
        want = [getattr(structure, name).offset for name in names] + [ctypes.sizeof(structure)]
        assert read()[: len(want)] == want


@st.composite
def axes(draw, cells):
    """Whole, a crop box, or the same with an offset as of a letterbox."""
    size = draw(st.integers(1, 40))
    low = draw(st.integers(0, size - 1))
    high = draw(st.integers(low + 1, size))
    if draw(st.booleans()):
        return whole(size, cells)
    scale = draw(st.floats(0.05, 3))
    return Axis(size, low, high, cells, scale, draw(st.floats(-2, cells)))


@st.composite
def all_axes(draw, inputs):
    """Axes for all images, or for each."""
    if draw(st.booleans()):
        return draw(axes(inputs.height)), draw(axes(inputs.width))
    return (
        [draw(axes(inputs.height)) for _ in range(inputs.batch)],
        [draw(axes(inputs.width)) for _ in range(inputs.batch)],
    )


@st.composite
def heatmaps_of(draw, inputs):
    return Heatmaps(
        *draw(all_axes(inputs)),
        bytes_=draw(st.booleans()),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        alignment=draw(st.sampled_from([1, 4, 8, 16])),
    )


@st.composite
def plans(draw, inputs):
    threads = draw(st.sampled_from([32, 64, 256]))
    processors = draw(st.sampled_from([1, 4, 40]))
    return plan(inputs, draw(heatmaps_of(inputs)), threads=threads, processors=processors)


@st.composite
def cases(draw):
    inputs = Inputs(
        batch=draw(st.integers(1, 3)),
        channels=draw(st.sampled_from([1, 2, 3, 5, 8, 17, 40, 130])),
        height=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 9)),
        classes=draw(st.sampled_from([1, 1, 2, 3, 4, 5, 9])),
        half=draw(st.booleans()),
        per_position=draw(st.booleans()),
        clamp=draw(st.booleans()),
        signed=draw(st.booleans()),
        alignment=draw(st.sampled_from([4, 16])),
    )
    return draw(plans(inputs)), draw(st.integers(0, 2**32))


@st.composite
def cases_of_cams(draw):
    inputs = Cams(
        batch=draw(st.integers(1, 3)),
        classes=draw(st.sampled_from([1, 2, 7, 33])),
        height=draw(st.integers(1, 40)),
        width=draw(st.integers(1, 40)),
    )
    return draw(plans(inputs)), draw(st.integers(0, 2**32))


def data(inputs, seed):
    """Features like a ReLU's, weights of both signs."""
    random = np.random.default_rng(seed)
    kind = np.float16 if inputs.half else np.float32
    positions = (inputs.height, inputs.width)
    features = random.normal(size=(inputs.batch, inputs.channels, *positions)).clip(0)
    tail = positions if inputs.per_position else ()
    weights = random.normal(size=(inputs.batch, inputs.classes, inputs.channels, *tail))
    return aligned(features.astype(kind)), aligned(weights.astype(kind))


def check(planned, result, features=None, weights=None):
    inputs = planned.inputs
    if isinstance(inputs, Inputs):
        wide = features.astype(np.float64), weights.astype(np.float64)
        terms = np.abs(np.maximum(wide[1], 0) if inputs.clamp else wide[1])
        flat = wide[0].reshape(*wide[0].shape[:2], -1)
        size = np.einsum("bkn...,bn...->bk...", terms, wide[0] if terms.ndim == 5 else flat.max(2))
        exact = clamp_combine(
            features.astype(np.float32),
            weights.astype(np.float32),
            inputs.clamp,
            signed=inputs.signed,
        )
        np.testing.assert_allclose(
            result.cams, exact, rtol=0, atol=2e-6 * max(float(size.max()), 1e-30)
        )
    assert not result.counters.any()
    each = planned.heatmaps.axes()
    for image in range(inputs.batch):
        rows, columns = each[image if planned.heatmaps.ragged else 0]
        check_heatmaps(
            result.heatmaps[image], result.valid[image], result.cams[image], rows, columns,
            planned.heatmaps,
        )  # fmt: skip


def check_heatmaps(made, flags, cams, rows, columns, wanted):
    """From the kernel's own CAMs on, as the scaling enlarges what the sums differ by."""
    flags = flags.astype(bool)
    axes = rows, columns, wanted.interpolation
    want, valid = (part[0] for part in normalised_heatmaps(cams[None], *axes))
    crop_box = enlarged(np.nan_to_num(cams), *axes)[
        ..., rows.low : rows.high, columns.low : columns.high
    ]
    extent = crop_box.max((1, 2)) - crop_box.min((1, 2))
    share = extent / np.maximum(np.abs(crop_box).max((1, 2)), 1e-30)
    # Elsewhere rounding decides; and where a far larger cell just outside the crop box makes the
    # rounding of the pixels inside it as large as their range.
    cells = np.abs(cams).max((1, 2))
    seen = (np.abs(crop_box).max((1, 2)) > 1e-6 * cells) | (cells == 0)
    clear = (seen & (share < 0.8e-5)) | ((share > 1.2e-5) & (extent > 1e-6 * cells))
    np.testing.assert_array_equal(flags[clear], valid[clear])
    # Coordinates and sums in float32, against the largest cell.
    allowed = (1e-6 + 4e-6 * cells / np.maximum(extent, 1e-30))[:, None, None]
    same = (valid == flags)[:, None, None]
    if wanted.bytes_:
        apart = np.abs(made.astype(int) - to_bytes(want).astype(int))
        assert (apart <= np.ceil(255 * allowed))[np.broadcast_to(same, apart.shape)].all()
    else:
        apart = np.abs(made - want)
        assert (apart <= allowed)[np.broadcast_to(same, apart.shape)].all()
    assert not made[~flags].any()


def run(lib, planned, features, weights):
    return run_in_library(lib, planned, features=features, weights=weights)


@settings(max_examples=150, deadline=None)
@given(cases())
def test_against_the_reference(lib, case):
    planned, seed = case
    features, weights = data(planned.inputs, seed)
    check(planned, run(lib, planned, features, weights), features, weights)


@settings(max_examples=100, deadline=None)
@given(cases_of_cams())
def test_cams_that_are_given_against_the_reference(lib, case):
    planned, seed = case
    inputs = planned.inputs
    random = np.random.default_rng(seed)
    shape = (inputs.batch, inputs.classes, inputs.height, inputs.width)
    cams = aligned(random.normal(size=shape).clip(-1).astype(np.float32))
    check(planned, run_in_library(lib, planned, cams=cams))


SHAPES = [
    # ResNet-50, VGG-16 and InceptionV3 in both forms, a small one, one class and several.
    Inputs(1, 2048, 7, 7, 1), Inputs(2, 2048, 14, 14, 5),
    Inputs(1, 512, 7, 7, 1, per_position=True),
    Inputs(1, 1280, 7, 7, 3, half=True), Inputs(3, 1023, 7, 7, 2, half=True),
    # More vectors in a group than threads in a block; more channels than a block stages.
    Inputs(1, 16, 56, 56, 1), Inputs(1, 24, 41, 43, 2, half=True), Inputs(1, 1500, 1, 1, 2),
]  # fmt: skip


@pytest.mark.parametrize("inputs", SHAPES, ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shapes_of_networks(lib, inputs, interpolation):
    rows, columns = whole(60, inputs.height), Axis(97, 10, 80, inputs.width, 0.1, -1.3)
    planned = plan(inputs, Heatmaps(rows, columns, interpolation=interpolation), processors=84)
    features, weights = data(inputs, 1)
    check(planned, run(lib, planned, features, weights), features, weights)


def test_the_same_input_gives_the_same_bits(lib):
    inputs = Inputs(2, 333, 7, 5, 6)
    planned = plan(inputs, Heatmaps(whole(50, 7), whole(40, 5)), processors=30)
    features, weights = data(inputs, 3)
    first, second = (run(lib, planned, features, weights) for _ in range(2))
    np.testing.assert_array_equal(first.heatmaps, second.heatmaps)


def test_a_smallest_and_a_largest_pixel(lib):
    inputs = Inputs(1, 64, 7, 7, 4)
    features, weights = data(inputs, 4)
    for interpolation in ("bilinear", "bicubic"):
        heatmaps = Heatmaps(whole(224, 7), whole(200, 7), interpolation=interpolation)
        found = run(lib, plan(inputs, heatmaps, processors=8), features, weights).heatmaps
        np.testing.assert_allclose(found.min((2, 3)), 0, atol=1e-6)
        np.testing.assert_allclose(found.max((2, 3)), 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["features", "weights"])
def test_numbers_that_are_not_finite(lib, bad, where):
    inputs = Inputs(2, 9, 3, 5, 2)
    planned = plan(inputs, Heatmaps(whole(12, 3), whole(12, 5)), processors=2)
    features, weights = data(inputs, 5)
    features += 0.1
    (features if where == "features" else weights)[1, 1, 2] = bad
    result = run(lib, planned, features, weights)
    want = [[1, 1], [0, 0]] if where == "features" else [[1, 1], [1, 0]]
    np.testing.assert_array_equal(result.valid, want)
    assert np.isfinite(result.heatmaps).all()
    assert not result.heatmaps[1, 1].any()


@pytest.mark.parametrize("value", [0.0, 3.0, 1e30])
def test_a_constant_cam_is_no_map(lib, value):
    inputs = Inputs(1, 6, 4, 4, 1)
    planned = plan(inputs, Heatmaps(whole(9, 4), whole(9, 4)), processors=2)
    features = aligned(np.full((1, 6, 4, 4), value, np.float32))
    weights = aligned(np.linspace(0.1, 1, 6, dtype=np.float32).reshape(1, 1, 6))
    result = run(lib, planned, features, weights)
    assert result.valid.tolist() == [[0]]
    assert not result.heatmaps.any()


@pytest.mark.parametrize("classes", [1, 4, 31, 32, 257, 1000])
def test_any_number_of_classes(lib, classes):
    inputs = Inputs(2, 12, 3, 4, classes)
    planned = plan(inputs, Heatmaps(whole(9, 3), whole(8, 4), bytes_=True), processors=6)
    features, weights = data(inputs, 8)
    made = run(lib, planned, features, weights)
    check(planned, made, features, weights)
    # The same from CAMs that something else made.
    again = plan(Cams(2, classes, 3, 4), planned.heatmaps, processors=6)
    found = run_in_library(lib, again, cams=aligned(made.cams))
    np.testing.assert_array_equal(found.heatmaps, made.heatmaps)
    np.testing.assert_array_equal(found.valid, made.valid)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("bytes_", [False, True])
@pytest.mark.parametrize("over", [-4, -1, 0, 1, 4])
def test_strips_at_every_edge(lib, over, bytes_, interpolation):
    """Heatmaps that end before, at and after the ends of strips, with crop boxes that do so."""
    strip, block = 16, 4 * 16
    sizes = (strip + over, block + over), (8 * WARP + over, 4 * WARP + over)
    for height, width in zip(*sizes, strict=True):
        for low, high in ((0, 0), (1, 1), (strip, 0), (strip - 1, strip - 3)):
            if low + high >= height:
                continue
            rows = Axis(height, low, height - high, 5, 0.11, -0.6)
            columns = Axis(width, min(low, width - 2), width - 1, 6, 0.07, -0.2)
            wanted = Heatmaps(rows, columns, bytes_, interpolation)
            inputs = Inputs(1, 8, 5, 6, 2)
            planned = plan(inputs, wanted, processors=40)
            assert planned._heatmap.strip == strip
            features, weights = data(inputs, 9)
            check(planned, run(lib, planned, features, weights), features, weights)


def test_images_of_different_sizes(lib):
    """Each equals what it is alone; those whose rows allow it are stored four at a time."""
    inputs = Inputs(4, 24, 7, 5, 3)
    rows = [whole(31, 7), Axis(64, 8, 60, 7, 0.13, -1.5), whole(1, 7), whole(200, 7)]
    columns = [whole(44, 5), whole(129, 5), whole(3, 5), Axis(256, 0, 200, 5, 0.02, -0.4)]
    for bytes_ in (False, True):
        planned = plan(inputs, Heatmaps(rows, columns, bytes_), processors=8)
        features, weights = data(inputs, 10)
        found = run(lib, planned, features, weights)
        check(planned, found, features, weights)
        for i in range(4):
            single = plan(
                replace(inputs, batch=1), Heatmaps(rows[i], columns[i], bytes_), processors=8
            )
            own = [aligned(array[i : i + 1]) for array in (features, weights)]
            alone = run(lib, single, *own)
            np.testing.assert_allclose(
                found.heatmaps[i], alone.heatmaps[0], atol=1 if bytes_ else 1e-5
            )


def test_levels_are_rounded_half_up(lib):
    """Values that lie on the middle between two levels, or a little before it."""
    # Between cells of 0 and 1, pixel i of 511 is at i / 510: every second one in the middle.
    size = 511
    columns = Axis(size, 0, size, 2, 1 / 510, 0.0)
    planned = plan(Cams(1, 1, 1, 2), Heatmaps(whole(1, 1), columns, bytes_=True), processors=2)
    cams = aligned(np.array([[[[0.0, 1.0]]]], np.float32))
    found = run_in_library(lib, planned, cams=cams).heatmaps[0, 0, 0].astype(int)
    positions = np.float32(1 / 510) * np.arange(size, dtype=np.float32)
    want = np.floor(positions.astype(np.float64) * 255 + 0.5)
    np.testing.assert_array_equal(found, want)


def test_the_harness_sees_a_wrong_kernel(lib, tmp_path):
    """A clamp that is left out of a copy of the source is found by the comparison."""
    text = source()
    planted = text.replace(
        "found.of[k] = a.clamp ? not_negative(weight)",
        "found.of[k] = a.clamp > 1 ? not_negative(weight)",
    )
    assert planted != text
    wrong = tmp_path / "wrong.cu"
    wrong.write_text(planted)
    inputs = Inputs(1, 40, 5, 5, 1)
    planned = plan(inputs, Heatmaps(whole(20, 5), whole(20, 5)), processors=2)
    features, weights = data(inputs, 6)
    other = library(tmp_path / "wrong.so", source=wrong)
    with pytest.raises(AssertionError):
        check(planned, run(other, planned, features, weights), features, weights)
    unclamped = plan(replace(inputs, clamp=False), planned.heatmaps, processors=2)
    check(unclamped, run(other, unclamped, features, weights), features, weights)
