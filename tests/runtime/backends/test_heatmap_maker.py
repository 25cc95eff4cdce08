"""Heatmaps on a device: cut into launches, placed in memory, and equal to the CPU's."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.spec import Preprocessing
from sigcam.images.preprocess import place
from sigcam.images.upsample import spread, to_heatmap
from sigcam.kernels.arguments import whole
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.plan import plan
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps
from sigcam.kernels.shapes import Heatmaps, Inputs
from sigcam.runtime.backends.base import HeatmapOptions, HeatmapRequest
from sigcam.runtime.backends.cuda import heatmaps as device_heatmaps
from sigcam.runtime.backends.cuda import layout
from sigcam.runtime.backends.cuda.heatmaps import HeatmapMaker, axis_of
from sigcam.runtime.backends.cuda.source import DeviceTensor, source_of
from tests.support.device_doubles import STREAM, Buffer, FakeDriver, HostKernel, ReferenceKernel

GEOMETRIES = [
    Preprocessing(224, 224, resize=256),
    Preprocessing(224, 160, rule="stretch"),
    Preprocessing(56, 56, rule="letterbox"),
]


@st.composite
def placements(draw):
    preprocessing = draw(st.sampled_from(GEOMETRIES))
    return place(preprocessing, draw(st.integers(8, 700)), draw(st.integers(8, 700)))


def crop_box_of(placement):
    x0, y0, x1, y1 = placement.crop_box
    return slice(y0, y1), slice(x0, x1)


@settings(max_examples=60, deadline=None)
@given(placements(), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32))
def test_the_kernels_axes_are_the_placements(placement, height, width, seed):
    cam = np.random.default_rng(seed).random((height, width), np.float32)
    rows, columns = axis_of(placement.rows, height), axis_of(placement.columns, width)
    for interpolation in ("bilinear", "bicubic"):
        want, valid = to_heatmap(cam, placement, interpolation)
        got, flags = normalised_heatmaps(cam[None, None], rows, columns, interpolation)
        assert flags[0, 0] == valid
        # The kernel's scale and offset are float32, and far from the image's edge their
        # products are large. A crop box that shows a small part of a cell gives a heatmap of a
        # small range, by which the rounding is divided.
        inside = spread(cam, placement, interpolation)[crop_box_of(placement)]
        far = max(abs(rows.offset), abs(columns.offset))
        rounding = (4 + 2 * far) * np.finfo(np.float32).eps * cam.max()
        tolerance = 3e-5 + rounding / max(np.ptp(inside), 1e-30)
        np.testing.assert_allclose(got[0, 0], want, rtol=0, atol=tolerance)


def test_axes_of_known_images():
    placement = place(Preprocessing(224, 224, rule="stretch"), 448, 224)
    rows, columns = axis_of(placement.rows, 7), axis_of(placement.columns, 7)
    for found, size in ((rows, 448), (columns, 224)):
        want = whole(size, 7)
        assert [getattr(found, n) for n, *_ in found._fields_] == [
            getattr(want, n) for n, *_ in want._fields_
        ]


class Tensor:
    """An array and how HeatmapMaker takes it; `off` moves its address."""

    def __init__(self, array, off=0):
        self._memory = np.full(array.nbytes + 64, 0xFF, np.uint8)
        start = -self._memory.ctypes.data % 16 + off
        self._memory[start : start + array.nbytes] = array.reshape(-1).view(np.uint8)
        address = self._memory.ctypes.data + start
        self.tensor = DeviceTensor(address, array.dtype, array.shape)


def made(heatmaps, driver, features, weights, sizes, off=0, clamp=True, options=None):
    given = {"features": features, "cam_weights": weights}
    return made_of(heatmaps, driver, given, sizes, off, clamp, options)


def made_of(heatmaps, driver, given, sizes, off=0, clamp=True, options=None):
    held = {name: Tensor(array, off) for name, array in given.items()}
    placed = tuple(place(GEOMETRIES[0], *size) for size in sizes)
    pending = heatmaps.enqueue(
        source_of({name: one.tensor for name, one in held.items()}, len(placed)),
        HeatmapRequest(placed, clamp, options=options or HeatmapOptions()),
        STREAM,
    )
    driver.synchronize()
    return pending.collect(), placed


def check(found, features, weights, placed, clamp=True, atol=2e-5):
    exact = clamp_combine(features.astype(np.float32), weights.astype(np.float32), clamp)
    np.testing.assert_allclose(found.cams, exact, atol=1e-5 * max(1, np.abs(exact).max()))
    assert found.cams.dtype == np.float32
    assert len(found.heatmaps) == len(placed)
    for row, placement in enumerate(placed):
        assert found.heatmaps[row].dtype == np.float32
        assert found.heatmaps[row].shape == (weights.shape[1], placement.height, placement.width)
        for rank, cam in enumerate(found.cams[row]):
            want, valid = to_heatmap(cam, placement)
            assert found.valid[row, rank] == valid
            np.testing.assert_allclose(found.heatmaps[row][rank], want, atol=atol)


def data(batch, channels, classes, cam=(7, 7), kind=np.float32, positions=False):
    rng = np.random.default_rng(batch * 100 + channels)
    features = rng.normal(size=(batch, channels, *cam)).clip(0).astype(kind)
    tail = cam if positions else ()
    return features, rng.normal(size=(batch, classes, channels, *tail)).astype(kind)


SIZES = [(300, 400), (300, 400), (211, 97), (640, 480), (300, 400)]


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    monkeypatch.setattr(device_heatmaps, "driver", fake)
    return fake


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("off", [0, 4])
def test_a_batch_of_several_sizes(driver, kind, positions, off):
    kernel = ReferenceKernel(driver)
    features, weights = data(5, 13, 3, kind=kind, positions=positions)
    found, placed = made(HeatmapMaker(kernel), driver, features, weights, SIZES, off)
    check(found, features, weights, placed)
    assert [plan.inputs.batch for plan, _ in kernel.launches] == [5]
    assert {plan.inputs.per_position for plan, _ in kernel.launches} == {positions}


def test_the_real_kernel_on_real_placements(driver, tmp_path):
    from tests.support.host_cuda import library

    kernel = HostKernel(driver, library(tmp_path / "kernel.so"))
    features, weights = data(5, 40, 5)
    weights[2, 1] = -1  # nothing is left of it
    heatmaps = HeatmapMaker(kernel)
    for _ in range(2):
        found, placed = made(heatmaps, driver, features, weights, SIZES)
        check(found, features, weights, placed)
        assert not found.valid[2, 1]
        assert not found.heatmaps[2][1].any()


def test_no_clamping_is_passed_on(driver):
    features, weights = data(1, 8, 2)
    heatmaps = HeatmapMaker(ReferenceKernel(driver))
    found, placed = made(heatmaps, driver, features, weights, SIZES[:1], clamp=False)
    check(found, features, weights, placed, clamp=False)


def test_memory_is_kept_grows_and_is_freed(driver):
    before = Buffer.alive
    heatmaps = HeatmapMaker(ReferenceKernel(driver))
    small, large = data(1, 8, 1), data(4, 8, 3)
    made(heatmaps, driver, *small, SIZES[:1])
    first = heatmaps._results
    made(heatmaps, driver, *small, SIZES[:1])
    assert heatmaps._results is first
    check(*(lambda f, p: (f, *large, p))(*made(heatmaps, driver, *large, SIZES[:4])))
    grown = heatmaps._results
    assert grown is not first
    check(*(lambda f, p: (f, *small, p))(*made(heatmaps, driver, *small, SIZES[:1])))
    assert heatmaps._results is grown
    heatmaps.close()
    assert Buffer.alive == before


@pytest.mark.parametrize("staged", [1, 100_000, 400_000, 10**9])
@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_large_batches_go_through_memory_of_a_fixed_size(driver, monkeypatch, staged, kind):
    """One image at a time where one is all that fits; the results are the same."""
    for module in (layout, device_heatmaps):
        monkeypatch.setattr(module, "STAGED", staged)
    sizes = [(100, 130), (100, 130), (100, 130), (211, 97), (100, 130)]
    features, weights = data(5, 13, 3)
    weights[1, 2] = -1
    kernel = ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    options = HeatmapOptions(kind)
    for _ in range(2):  # from the memory of the batch before, too
        found, placed = made(maker, driver, features, weights, sizes, options=options)
        if kind == "uint8":
            assert {one.dtype for one in found.heatmaps} == {np.dtype(np.uint8)}
            floats = tuple(one.astype(np.float32) / 255 for one in found.heatmaps)
            check(replace(found, heatmaps=floats), features, weights, placed, atol=0.51 / 255)
        else:
            check(found, features, weights, placed)
        assert not found.valid[1, 2]
    largest = 3 * max(h * w for h, w in sizes) * options.itemsize
    assert maker._results.size <= 1.6 * max(staged, largest + 512)
    counts = [plan.inputs.batch for plan, _ in kernel.launches[: len(kernel.launches) // 2]]
    assert sum(counts) == 5
    assert counts == ([1] * 5 if staged == 1 else [5] if staged == 10**9 else counts)


def test_a_batch_over_the_limit_is_refused_and_the_next_works(driver):
    features, weights = data(2, 8, 3)
    maker, kernel = None, ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    pixels = 2 * 300 * 400 * 3
    for kind, needed in (("float32", 4 * pixels), ("uint8", pixels)):
        just = HeatmapOptions(kind, needed)
        made(maker, driver, features, weights, SIZES[:2], options=just)
        launches = len(kernel.launches)
        less = HeatmapOptions(kind, needed - 1)
        with pytest.raises(UsageError) as caught:
            made(maker, driver, features, weights, SIZES[:2], options=less)
        text = str(caught.value)
        assert "the heatmaps of 2 images and 3 classes take" in text
        assert f"heatmap_limit={needed}" in text
        assert 'heatmaps="lazy"' in text
        assert ('heatmaps="uint8"' in text) == (kind == "float32")
        assert len(kernel.launches) == launches
        assert not driver.queue
        found, placed = made(maker, driver, features, weights, SIZES[:2])
        check(found, features, weights, placed)


def test_only_cams(driver):
    """No memory for heatmaps, one launch for images of any size, and no limit."""
    features, weights = data(5, 13, 3)
    kernel = ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    options = HeatmapOptions("lazy", limit=1)
    found, _ = made(maker, driver, features, weights, SIZES, options=options)
    assert found.heatmaps is None
    exact = clamp_combine(features, weights)
    np.testing.assert_allclose(found.cams, exact, atol=1e-5 * np.abs(exact).max())
    assert len(kernel.launches) == 1
    assert maker._results.size < 20_000


@pytest.mark.parametrize("which", ["DeviceBuffer", "PinnedBuffer"])
@pytest.mark.parametrize("staged", [1, 10**9])
def test_memory_that_is_used_up_is_told_and_the_next_batch_works(
    driver, monkeypatch, which, staged
):
    for module in (layout, device_heatmaps):
        monkeypatch.setattr(module, "STAGED", staged)
    features, weights = data(4, 8, 2)
    maker = HeatmapMaker(ReferenceKernel(driver))
    made(maker, driver, features[:1], weights[:1], [(20, 30)])
    before = Buffer.alive

    def fails(size):
        if size > 40_000:
            raise KernelError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (out of memory)")
        return Buffer(size)

    monkeypatch.setattr(driver, which, fails)
    for _ in range(2):
        with pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*smaller batch_size.*\"lazy\""):
            made(maker, driver, features, weights, SIZES[:4])
        driver.synchronize()
    found, placed = made(maker, driver, features[:2], weights[:2], [(20, 30), (9, 9)])
    check(found, features[:2], weights[:2], placed)
    monkeypatch.setattr(driver, which, Buffer)
    found, placed = made(maker, driver, features, weights, SIZES[:4])
    check(found, features, weights, placed)
    assert Buffer.alive <= before + 5  # a workspace for each number of images


def test_memory_that_is_used_up_in_the_middle_of_a_batch(driver, monkeypatch):
    """The first group is done; the second finds no workspace."""
    for module in (layout, device_heatmaps):
        monkeypatch.setattr(module, "STAGED", 1)
    features, weights = data(3, 8, 2)
    kernel = ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    launch, failing = kernel.launch, [True]

    def fails(plan, **given):
        if failing and len(kernel.launches) == 1:
            raise KernelError("cuLaunchKernel failed: CUDA_ERROR_OUT_OF_MEMORY (text)")
        launch(plan, **given)

    monkeypatch.setattr(kernel, "launch", fails)
    with pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*smaller batch_size"):
        made(maker, driver, features, weights, SIZES[:3])
    failing.clear()
    driver.synchronize()
    found, placed = made(maker, driver, features, weights, SIZES[:3])
    check(found, features, weights, placed)


def test_many_shapes_do_not_pile_up(driver, monkeypatch):
    monkeypatch.setattr(device_heatmaps, "_MAX_KEPT", 3)
    before = Buffer.alive
    heatmaps = HeatmapMaker(ReferenceKernel(driver))
    for classes in (1, 2, 3, 4, 5, 6, 7, 1):
        features, weights = data(1, 8, classes)
        found, placed = made(heatmaps, driver, features, weights, [(90, 80)])
        check(found, features, weights, placed)
        assert Buffer.alive - before <= 3 + 2
    assert len(heatmaps._plans) <= 3


def test_results_outlive_the_next_batch(driver):
    heatmaps = HeatmapMaker(ReferenceKernel(driver))
    features, weights = data(2, 8, 2)
    found, placed = made(heatmaps, driver, features, weights, SIZES[:2])
    made(heatmaps, driver, features * 3 + 1, weights[:, ::-1].copy(), SIZES[:2])
    check(found, features, weights, placed)
    assert found.heatmaps[0].base is None  # each image's heatmaps are an array of their own


@pytest.mark.parametrize(
    ("features", "weights", "half", "images"),
    [
        ((2, 8, 7, 7), (2, 3, 9), (0, 0), 2),
        ((2, 8, 7, 7), (1, 3, 8), (0, 0), 2),
        ((2, 8, 7), (2, 3, 8), (0, 0), 2),
        ((2, 8, 7, 7), (2, 3, 8, 7), (0, 0), 2),
        ((2, 8, 7, 7), (2, 3, 8, 7, 6), (0, 0), 2),
        ((2, 8, 7, 7), (2, 3, 8), (0, 1), 2),
        ((2, 8, 7, 7), (2, 3, 8), (0, 0), 1),
        ((2, 8, 7, 7), (2, 0, 8), (0, 0), 2),
    ],
)
def test_tensors_that_do_not_belong_together(features, weights, half, images):
    first, second = (
        DeviceTensor(4096, np.dtype(np.float16 if kind else np.float32), shape)
        for shape, kind in zip((features, weights), half, strict=True)
    )
    with pytest.raises(ArtifactError, match="don't belong together"):
        source_of({"features": first, "cam_weights": second}, images)


@pytest.mark.parametrize(
    ("shape", "kind", "text"),
    [
        ((2, 3, 7), np.float32, r"got float32 \[2, 3, 7\]; export the model again"),
        ((1, 3, 7, 7), np.float32, "export the model again"),
        ((2, 0, 7, 7), np.float32, "export the model again"),
        ((2, 3, 7, 7), np.float64, "got float64"),
        ((2, 3, 7, 7), np.float16, "got float16.*outputIOFormats=fp32:chw"),
    ],
)
def test_cams_that_the_kernels_do_not_take(shape, kind, text):
    with pytest.raises(ArtifactError, match=text):
        source_of({"cams": DeviceTensor(4096, np.dtype(kind), shape)}, images=2)


@pytest.fixture(scope="module")
def library_on_the_cpu(tmp_path_factory):
    from tests.support.host_cuda import library

    return library(tmp_path_factory.mktemp("host") / "kernel.so")


@pytest.mark.parametrize("kind", ["float32", "uint8"])
@pytest.mark.parametrize("classes", [1, 31, 32, 33, 1000])
def test_heatmaps_of_cams_that_the_network_made(
    driver, monkeypatch, library_on_the_cpu, classes, kind
):
    """The kernels themselves, over images of several sizes in several pieces of memory."""
    for module in (layout, device_heatmaps):
        monkeypatch.setattr(module, "STAGED", 100_000)
    sizes = [(40, 30), (40, 30), (21, 57), (64, 48)][: 4 if classes < 1000 else 2]
    rng = np.random.default_rng(classes)
    cams = rng.normal(size=(len(sizes), classes, 7, 5)).clip(0).astype(np.float32)
    cams[-1, 0] -= 0.5  # signed
    cams[1, -1] = 0  # nothing to see
    cams[0, 0, 3, 2] = np.nan
    kernel = HostKernel(driver, library_on_the_cpu)
    maker = HeatmapMaker(kernel)
    options = HeatmapOptions(kind)
    for _ in range(2):
        found, placed = made_of(maker, driver, {"cams": cams}, sizes, 4, options=options)
        np.testing.assert_array_equal(found.cams, cams)
        for row, placement in enumerate(placed):
            assert found.heatmaps[row].dtype == kind
            assert found.heatmaps[row].shape == (classes, placement.height, placement.width)
            for rank in range(classes):
                got = found.heatmaps[row][rank]
                if np.isnan(cams[row, rank]).any():
                    want, valid, off = 0, False, 0
                else:
                    want, valid = to_heatmap(cams[row, rank], placement)
                    off = 2e-5
                assert found.valid[row, rank] == valid
                scale, off = (255, 0.51 / 255) if kind == "uint8" else (1, off)
                np.testing.assert_allclose(got / np.float32(scale), want, atol=off)
    assert len(kernel.launches) >= (4 if classes >= 31 else 2)
    assert sum(plan.inputs.batch for plan, _ in kernel.launches) == 2 * len(sizes)


def test_cams_over_the_limit_and_the_next(driver):
    cams = np.random.default_rng(0).random((2, 40, 7, 7), np.float32)
    kernel = ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    less = HeatmapOptions("float32", 4 * 40 * 2 * 300 * 400 - 1)
    with pytest.raises(UsageError, match=r"2 images and 40 classes take .*\"uint8\"") as caught:
        made_of(maker, driver, {"cams": cams}, SIZES[:2], options=less)
    assert 'heatmaps="lazy"' in str(caught.value)
    assert not kernel.launches
    found, placed = made_of(maker, driver, {"cams": cams[:1]}, SIZES[:1], options=less)
    want, _ = to_heatmap(cams[0, 39], placed[0])
    np.testing.assert_allclose(found.heatmaps[0][39], want, atol=2e-5)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (KernelError("cuMemAlloc failed: OUT_OF_MEMORY"), BackendError),
        (CudaUnavailableError("no such GPU"), BackendUnavailableError),
    ],
)
def test_errors_of_cuda_are_told_as_ours(driver, error, kind):
    def fails(size):
        raise error

    driver.DeviceBuffer = fails
    features, weights = data(1, 8, 1)
    with pytest.raises(kind, match=str(error)) as caught:
        made(HeatmapMaker(ReferenceKernel(driver)), driver, features, weights, SIZES[:1])
    assert caught.value.__cause__ is error


def test_images_of_one_size_take_the_plan_without_places(driver):
    kernel = ReferenceKernel(driver)
    maker = HeatmapMaker(kernel)
    features, weights = data(3, 8, 2)
    for sizes, ragged in (([(40, 50)] * 3, False), ([(40, 50), (50, 40), (40, 50)], True)):
        found, placed = made(maker, driver, features, weights, sizes)
        check(found, features, weights, placed)
        assert (kernel.launches[-1][0].places is not None) == ragged
    assert len(kernel.launches) == 2


def test_the_double_sees_a_workspace_that_was_not_prepared(driver):
    kernel = ReferenceKernel(driver)
    kernel.prepare_workspace = lambda *a: None
    features, weights = data(1, 8, 1)
    with pytest.raises(AssertionError, match="prepared"):
        made(HeatmapMaker(kernel), driver, features, weights, SIZES[:1])
    planned = plan(Inputs(1, 8, 7, 7, 1), Heatmaps(whole(9, 7), whole(9, 7)), processors=1)
    assert planned.workspace.counters > 0
