"""clamp_combine.cu itself, compiled for the CPU, against the NumPy reference."""

from __future__ import annotations

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.kernels.arguments import Axis, CombineArguments, HeatmapArguments, whole
from sigcam.kernels.plan import Heatmaps, Inputs, plan
from sigcam.kernels.reference import clamp_combine, enlarged, normalised_heatmaps, to_bytes
from tests.support.host_cuda import launches, library, run_in_library


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("host") / "kernel.so")


def test_argument_layouts(lib):
    for function, structure in (
        ("layout_combine", CombineArguments), ("layout_heatmap", HeatmapArguments),
        ("layout_axis", Axis),
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
def cases(draw):
    inputs = Inputs(
        batch=draw(st.integers(1, 3)),
        channels=draw(st.sampled_from([1, 2, 3, 5, 8, 17, 40, 130])),
        height=draw(st.integers(1, 9)),
        width=draw(st.integers(1, 9)),
        classes=draw(st.sampled_from([1, 1, 2, 4, 5, 9])),
        half=draw(st.booleans()),
        per_position=draw(st.booleans()),
        clamp=draw(st.booleans()),
        signed=draw(st.booleans()),
        alignment=draw(st.sampled_from([4, 16])),
    )
    heatmaps = Heatmaps(
        rows=draw(axes(inputs.height)),
        columns=draw(axes(inputs.width)),
        bytes_=draw(st.booleans()),
        interpolation=draw(st.sampled_from(["bilinear", "bicubic"])),
        alignment=draw(st.sampled_from([1, 16])),
    )
    threads = draw(st.sampled_from([32, 64, 256]))
    processors = draw(st.sampled_from([1, 4, 40]))
    return plan(inputs, heatmaps, threads=threads, processors=processors), draw(
        st.integers(0, 2**32)
    )


def data(inputs, seed):
    """Features like a ReLU's, weights of both signs."""
    random = np.random.default_rng(seed)
    kind = np.float16 if inputs.half else np.float32
    positions = (inputs.height, inputs.width)
    features = random.normal(size=(inputs.batch, inputs.channels, *positions)).clip(0)
    tail = positions if inputs.per_position else ()
    weights = random.normal(size=(inputs.batch, inputs.classes, inputs.channels, *tail))
    return aligned(features.astype(kind)), aligned(weights.astype(kind))


def aligned(array):
    """The same on an address that is a multiple of 16, and nothing but poison behind it."""
    memory = np.full(array.nbytes + 64, 0xFF, np.uint8)
    start = -memory.ctypes.data % 16
    found = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    found[...] = array
    return found


def check(planned, features, weights, result):
    inputs, heatmaps = planned.inputs, planned.heatmaps
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
    # From the kernel's own CAMs on, as the scaling enlarges what the sums differ by.
    cams, axes = result.cams, (heatmaps.rows, heatmaps.columns, heatmaps.interpolation)
    want, valid = normalised_heatmaps(cams, *axes)
    crop_box = enlarged(np.nan_to_num(cams), *axes)[
        ..., heatmaps.rows.low : heatmaps.rows.high, heatmaps.columns.low : heatmaps.columns.high
    ]
    extent = crop_box.max((2, 3)) - crop_box.min((2, 3))
    share = extent / np.maximum(np.abs(crop_box).max((2, 3)), 1e-30)
    # Elsewhere rounding decides; and where a far larger cell just outside the crop box makes the
    # rounding of the pixels inside it as large as their range.
    cells = np.abs(cams).max((2, 3))
    clear = (share < 0.8e-5) | ((share > 1.2e-5) & (extent > 1e-6 * cells))
    np.testing.assert_array_equal(result.valid.astype(bool)[clear], valid[clear])
    assert not result.counters.any()
    # Coordinates and sums in float32, against the largest cell.
    allowed = (1e-6 + 4e-6 * cells / np.maximum(extent, 1e-30))[..., None, None]
    same = (valid == result.valid.astype(bool))[..., None, None]
    if heatmaps.bytes_:
        apart = np.abs(result.heatmaps.astype(int) - to_bytes(want).astype(int))
        assert (apart <= np.ceil(255 * allowed))[np.broadcast_to(same, apart.shape)].all()
    else:
        apart = np.abs(result.heatmaps - want)
        assert (apart <= allowed)[np.broadcast_to(same, apart.shape)].all()
    assert not result.heatmaps[~result.valid.astype(bool)].any()


@settings(max_examples=150, deadline=None)
@given(cases())
def test_against_the_reference(lib, case):
    planned, seed = case
    features, weights = data(planned.inputs, seed)
    check(planned, features, weights, run_in_library(lib, planned, features, weights))


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
    check(planned, features, weights, run_in_library(lib, planned, features, weights))


def test_the_same_input_gives_the_same_bits(lib):
    inputs = Inputs(2, 333, 7, 5, 6)
    planned = plan(inputs, Heatmaps(whole(50, 7), whole(40, 5)), processors=30)
    features, weights = data(inputs, 3)
    first, second = (run_in_library(lib, planned, features, weights) for _ in range(2))
    np.testing.assert_array_equal(first.heatmaps, second.heatmaps)


def test_a_smallest_and_a_largest_pixel(lib):
    inputs = Inputs(1, 64, 7, 7, 4)
    features, weights = data(inputs, 4)
    for interpolation in ("bilinear", "bicubic"):
        heatmaps = Heatmaps(whole(224, 7), whole(200, 7), interpolation=interpolation)
        found = run_in_library(
            lib, plan(inputs, heatmaps, processors=8), features, weights
        ).heatmaps
        np.testing.assert_array_equal(found.min((2, 3)), 0)
        np.testing.assert_allclose(found.max((2, 3)), 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["features", "weights"])
def test_numbers_that_are_not_finite(lib, bad, where):
    inputs = Inputs(2, 9, 3, 5, 2)
    planned = plan(inputs, Heatmaps(whole(12, 3), whole(12, 5)), processors=2)
    features, weights = data(inputs, 5)
    features += 0.1
    (features if where == "features" else weights)[1, 1, 2] = bad
    result = run_in_library(lib, planned, features, weights)
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
    result = run_in_library(lib, planned, features, weights)
    assert result.valid.tolist() == [[0]]
    assert not result.heatmaps.any()


def test_the_harness_sees_a_wrong_kernel(lib, tmp_path):
    """A clamp that is left out of a copy of the source is found by the comparison."""
    from tests.support.host_cuda import SOURCE

    text = SOURCE.read_text()
    planted = text.replace("a.clamp ? not_negative(weight) : weight", "weight")
    assert planted != text
    wrong = tmp_path / "wrong.cu"
    wrong.write_text(planted)
    inputs = Inputs(1, 40, 5, 5, 1)
    planned = plan(inputs, Heatmaps(whole(20, 5), whole(20, 5)), processors=2)
    features, weights = data(inputs, 6)
    other = library(tmp_path / "wrong.so", source=wrong)
    with pytest.raises(AssertionError):
        check(planned, features, weights, run_in_library(other, planned, features, weights))
    unclamped = plan(replace(inputs, clamp=False), planned.heatmaps, processors=2)
    check(unclamped, features, weights, run_in_library(other, unclamped, features, weights))
    assert len(list(launches(planned, *planned.arguments(
        features=0, weights=0, heatmaps=0, valid=0, workspace=0
    )))) == 2  # fmt: skip
