"""The kernels that prepare images, compiled for the CPU, against what the CPU prepares."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import prepare
from sigcam.kernels.arguments import InputAxis
from sigcam.kernels.prepare import Images, Values, plan
from sigcam.kernels.reference import prepared
from sigcam.runtime.backends.cuda.preparation import input_axis, values_of
from tests.support.host_cuda import library

LEVEL = 1.001
"""One level of 255, and what float32 adds to it."""


@pytest.fixture(scope="module")
def lib(tmp_path_factory):
    return library(tmp_path_factory.mktemp("host") / "kernel.so")


def run(lib, images, preprocessing, placement, *, planar=False):
    """What the kernel makes of images [B, H, W, n], in memory full of poison."""
    given = np.ascontiguousarray(images.transpose(0, 3, 1, 2) if planar else images)
    batch, height, width, n = images.shape
    axes = input_axis(placement.rows), input_axis(placement.columns)
    planned = plan(Images(batch, height, width, n, planar), *axes, values_of(preprocessing))
    raw = preprocessing.layout == "uint8_nhwc"
    size = (preprocessing.height, preprocessing.width)
    out = np.full((batch, *size, n), 0xAB, np.uint8) if raw else np.full(
        (batch, n, *size), np.nan, np.float32
    )  # fmt: skip
    argument = planned.arguments(given.ctypes.data, out.ctypes.data)
    grid = (ctypes.c_uint * 3)(*planned.launch.grid)
    name = planned.launch.kernel.encode()
    lib.run(name, ctypes.byref(argument), grid, planned.launch.block, planned.launch.shared)
    return out


def check(lib, images, preprocessing, *, planar=False):
    """Compares with the CPU to one level, and with the NumPy reference; returns what differs."""
    wanted, placement = prepare(images[0], preprocessing)
    wanted = np.stack([wanted, *(prepare(one, preprocessing)[0] for one in images[1:])])
    made = run(lib, images, preprocessing, placement, planar=planar)
    assert made.shape == wanted.shape
    assert made.dtype == wanted.dtype
    values = values_of(preprocessing)
    axes = input_axis(placement.rows), input_axis(placement.columns)
    reference = np.stack([prepared(one, *axes, values) for one in images])
    step = np.ones(images.shape[-1])
    if values.scale is not None:
        step = np.abs(np.array(values.scale))[:, None, None]
    apart = np.abs(made.astype(np.float64) - wanted) / step
    assert apart.max() <= LEVEL
    assert (np.abs(made.astype(np.float64) - reference) / step).max() <= LEVEL
    return apart


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


SIZES = [
    (224, 224), (223, 225), (100, 100), (1, 1), (1, 300), (7, 5), (31, 640), (448, 448),
    (449, 451), (480, 640), (641, 479), (900, 905), (1000, 400),
]  # fmt: skip
RULES = [
    Preprocessing(),
    Preprocessing(224, 224, "crop", 256),
    Preprocessing(96, 64, "crop"),
    Preprocessing(224, 224, "stretch"),
    Preprocessing(65, 129, "stretch"),
    Preprocessing(128, 128, "letterbox"),
    Preprocessing(33, 77, "letterbox", layout="float32_nchw"),
    Preprocessing(64, 64, layout="float32_nchw"),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda p: f"{p.rule}-{p.height}x{p.width}-{p.layout}")
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes_and_rules(lib, size, rule):
    check(lib, noise(1, *size, 3), rule)


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_factors(lib, factor, channels):
    """The mean of cells alone is the CPU's, to the bit; with what follows, to one level."""
    mean = (0.4,) * channels
    small = Preprocessing(24, 24, "stretch", mean=mean, std=mean)
    images = noise(2, 24 * factor, 24 * factor, channels)
    assert input_axis(prepare(images[0], small)[1].rows).factor == factor
    assert check(lib, images, small).max() == 0
    check(lib, noise(1, 24 * factor + 7 * factor, 24 * factor + 5, channels), small)


def test_factors_that_differ(lib):
    """Along the height and along the width, and with middles that fall between two levels."""
    small = Preprocessing(20, 20, "stretch")
    for height, width in ((40, 20), (20, 80), (80, 40), (170, 33)):
        check(lib, noise(1, height, width, 3), small)
    halves = np.indices((40, 40)).sum(0)[None, :, :, None] % 2
    halves = np.repeat(halves + np.arange(3), 3, axis=0).astype(np.uint8)
    assert check(lib, halves, small).max() == 0


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_size(lib, data):
    side = st.integers(1, 300)
    height, width = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    rule = data.draw(st.sampled_from(["crop", "stretch", "letterbox"]))
    layout = data.draw(st.sampled_from(["uint8_nhwc", "float32_nchw"]))
    preprocessing = Preprocessing(height, width, rule, layout=layout)
    batch, seed = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 99))
    images = noise(batch, data.draw(side), data.draw(side), 3, seed=seed)
    check(lib, images, preprocessing, planar=data.draw(st.booleans()))


def test_planes_give_the_same(lib):
    images, rule = noise(3, 300, 201, 3), Preprocessing(64, 64)
    placement = prepare(images[0], rule)[1]
    one, other = (run(lib, images, rule, placement, planar=planar) for planar in (False, True))
    np.testing.assert_array_equal(one, other)


def test_what_cannot_be_planned():
    images, good = Images(1, 20, 20, 3), InputAxis(0, 1, 20, 0, 10, 10)
    values = Values((0, 0, 0))
    for wrong in (
        InputAxis(1, 1, 20, 0, 10, 10), InputAxis(-1, 1, 20, 0, 10, 10),
        InputAxis(0, 2, 11, 0, 10, 10), InputAxis(0, 1, 20, 1, 10, 10),
        InputAxis(0, 1, 0, 0, 10, 10), InputAxis(0, 1, 20, 0, 0, 10),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="rows must lie in an image of 20 pixels, got start="):
            plan(images, wrong, good, values)
        with pytest.raises(ValueError, match="columns must lie"):
            plan(images, good, wrong, values)
    with pytest.raises(ValueError, match="16384 pixels at most"):
        plan(images, good, InputAxis(0, 1, 20, 0, 10, 16385), values)
    with pytest.raises(ValueError, match="1 to 16 channels, got 1 images of 17"):
        plan(Images(1, 20, 20, 17), good, good, values)
    with pytest.raises(ValueError, match="border must have 3 numbers, one a channel, got 1"):
        plan(images, good, good, Values((0,)))
    floats = plan(images, good, good, Values((0,) * 3, (1,) * 3, (0,) * 3))
    with pytest.raises(ValueError, match="multiple of 4 bytes"):
        floats.arguments(16, 18)
