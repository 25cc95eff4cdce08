"""The kernels' whole path through cuda.bindings; run by tests/kernels/test_on_a_fake_driver.py."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from sigcam.kernels import driver
from sigcam.kernels.arguments import Axis, whole
from sigcam.kernels.arrays import DeviceArray, stream_handle
from sigcam.kernels.calls import call
from sigcam.kernels.clamp_combine import KERNELS, ClampCombine
from sigcam.kernels.compile import architecture_of
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps, to_bytes
from sigcam.kernels.shapes import Cams, Heatmaps, Inputs
from tests.support.fake_cuda import calls, fake_pycuda, live, owners


@pytest.fixture(scope="module")
def context():
    made = driver.retain_primary_context(0)
    with made:
        yield made
    made.close()
    assert owners() == 0


@pytest.fixture(scope="module")
def kernel(context, tmp_path_factory):
    # What is compiled isn't what runs here; that it would, and is taken up, is seen.
    return ClampCombine()


@pytest.fixture(autouse=True)
def nothing_is_left(kernel):
    gc.collect()
    before = live()
    calls()
    yield
    gc.collect()
    assert live() == before


class Interface:
    """An array as PyCUDA hands it out."""

    def __init__(self, host, on, /, **more):
        self.buffer = driver.DeviceBuffer(max(host.nbytes, 1))
        driver.copy_to_device(self.buffer.address, np.ascontiguousarray(host), host.nbytes, on)
        self.__cuda_array_interface__ = {
            "shape": host.shape, "typestr": host.dtype.str, "strides": None, "version": 3,
            "data": (self.buffer.address, False), "stream": driver.handle_of(on) or 1, **more,
        }  # fmt: skip


def dlpack(host, stream):
    """An array as torch hands it out."""
    buffer = driver.DeviceBuffer(host.nbytes)
    driver.copy_to_device(buffer.address, host, host.nbytes, stream)
    return DeviceArray(buffer, host.shape, host.dtype, driver.handle_of(stream), 0)


def data(*shape, kind=np.float32, per_position=False, classes=2, seed=0):
    random = np.random.default_rng(seed)
    features = random.normal(size=shape).clip(0).astype(kind)
    tail = shape[2:] if per_position else ()
    return features, random.normal(size=(shape[0], classes, shape[1], *tail)).astype(kind)


def wanted(features, weights, rows, columns, interpolation="bilinear", clamp=True):
    cams = clamp_combine(features.astype(np.float32), weights.astype(np.float32), clamp)
    return normalised_heatmaps(cams, rows, columns, interpolation)


def test_all_kernels_are_found(kernel):
    assert set(kernel._functions) == set(KERNELS)
    assert architecture_of(kernel.device.capability) == 86
    with pytest.raises(KernelError, match="cuModuleGetFunction"):
        kernel._module.function("no_such_kernel")


@pytest.mark.parametrize("make", [Interface, dlpack])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("own_stream", [True, False])
def test_arrays_of_others(kernel, make, kind, interpolation, own_stream):
    """The inputs are made on one stream and used on another, which has to wait for it."""
    producer, consumer = driver.Stream(), driver.Stream() if own_stream else 0
    features, weights = data(2, 24, 5, 7, kind=kind, per_position=interpolation == "bicubic")
    given, used = make(features, producer), make(weights, producer)
    heatmaps, valid = kernel(
        given, used, size=(20, 30), interpolation=interpolation,
        stream=consumer if own_stream else None,
    )  # fmt: skip
    axes = whole(20, 5), whole(30, 7)
    want, good = wanted(features, weights, *axes, interpolation)
    np.testing.assert_allclose(heatmaps.to_host(), want, atol=2e-4)
    found = valid.to_host()
    assert found.dtype == bool
    np.testing.assert_array_equal(found, good)


def test_a_call_waits_for_nothing_and_returns_its_memory(kernel):
    stream = driver.Stream()
    features, weights = data(1, 16, 4, 4)
    given, used = dlpack(features, stream), dlpack(weights, stream)
    calls()
    kernel(given, used, size=(8, 8), stream=stream)
    done = [name for name in calls() if not name.startswith("cuCtx")]
    assert done == [
        "cuStreamGetCtx", "cuStreamIsCapturing", *["cuMemAllocFromPoolAsync"] * 3,
        "cuMemsetD8Async",
        *["cuLaunchKernel"] * 2, *["cuMemFreeAsync"] * 3,
    ]  # fmt: skip


def test_a_pool_of_our_own_keeps_memory_for_the_next_call(context):
    """The default pool gives everything back at each wait; others use it, so it stays as it is."""
    calls()
    own = ClampCombine(kept=1 << 20)
    made = calls()
    assert made.index("cuMemPoolCreate") < made.index("cuMemPoolSetAttribute")
    assert own.pool.kept == 1 << 20
    stream = driver.Stream()
    features, weights = data(1, 16, 4, 4)
    heatmaps, _ = own(dlpack(features, stream), dlpack(weights, stream), size=(8, 8), stream=stream)
    pool = own.pool
    del own
    gc.collect()  # the results keep the pool that they come from
    want, _ = wanted(features, weights, whole(8, 4), whole(8, 4))
    np.testing.assert_allclose(heatmaps.to_host(), want, atol=1e-5)
    calls()
    del heatmaps, pool, _
    gc.collect()
    ended = calls()
    assert ended.index("cuMemFreeAsync") < ended.index("cuMemPoolDestroy")
    with pytest.raises(ValueError, match="kept must be at least 0 bytes, got -1"):
        driver.MemoryPool(0, -1)
    with pytest.raises(KernelError, match="cuMemPoolCreate failed"):
        driver.MemoryPool(3)


def test_results_outlive_their_stream(kernel):
    stream = driver.Stream()
    features, weights = data(1, 16, 4, 4)
    heatmaps, _ = kernel(
        dlpack(features, stream), dlpack(weights, stream), size=(8, 8), stream=stream
    )
    del stream
    gc.collect()
    want, _ = wanted(features, weights, whole(8, 4), whole(8, 4))
    np.testing.assert_allclose(heatmaps.to_host(), want, atol=1e-5)


def test_given_outputs(kernel):
    stream = driver.Stream()
    features, weights = data(1, 12, 3, 3, classes=5)
    rows, columns = Axis(10, 2, 9, 3, 0.4, -1.0), Axis(12, 0, 12, 3, 0.25, -0.375)
    out = dlpack(np.full((1, 5, 10, 12), 7, np.uint8), stream)
    flags = Interface(np.full((1, 5), 7, np.uint8), stream)
    given = dlpack(features, stream), dlpack(weights, stream)
    options = {"rows": rows, "columns": columns, "dtype": "uint8", "stream": stream, "clamp": False}
    heatmaps, valid = kernel(*given, out=out, valid_out=flags, **options)
    assert heatmaps is out
    assert valid is flags
    want, good = wanted(features, weights, rows, columns, clamp=False)
    apart = out.to_host().astype(int) - to_bytes(want)
    assert np.abs(apart).max() <= 1
    found = np.empty((1, 5), np.uint8)
    driver.copy_to_host(found, flags.buffer.address, 5, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, good)
    for wrong in (np.zeros((1, 5, 10, 12), np.float32), np.zeros((1, 5, 12, 10), np.uint8)):
        with pytest.raises(ValueError, match="out must be a writable uint8"):
            kernel(*given, out=dlpack(wrong, stream), valid_out=flags, **options)
    read_only = Interface(np.zeros((1, 5), np.uint8), stream)
    read_only.__cuda_array_interface__["data"] = (read_only.buffer.address, True)
    with pytest.raises(ValueError, match="got read-only uint8"):
        kernel(*given, out=out, valid_out=read_only, **options)


def test_the_plan_in_a_graph(kernel):
    """Captured once, launched twice, on inputs that changed in between."""
    stream = driver.Stream()
    inputs = Inputs(1, 40, 6, 5, 3)
    plan = kernel.plan(inputs, Heatmaps(whole(16, 6), whole(12, 5)))
    sizes = {
        "features": 4 * 40 * 30,
        "weights": 4 * 3 * 40,
        "heatmaps": 4 * 3 * 16 * 12,
        "valid": 3,
    }
    buffers = {name: driver.DeviceBuffer(size) for name, size in sizes.items()}
    buffers["workspace"] = driver.DeviceBuffer(plan.workspace.size)
    addresses = {name: buffer.address for name, buffer in buffers.items()}
    pinned = driver.PinnedBuffer(sizes["heatmaps"] + 64)
    view = pinned.view(np.float32, (1, 3, 16, 12))
    kernel.prepare_workspace(plan, addresses["workspace"], stream)
    calls()
    with driver.Graph.capture(stream) as graph:
        kernel.launch(plan, stream=stream, **addresses)
        driver.copy_to_host(pinned.address, addresses["heatmaps"], sizes["heatmaps"], stream)
    assert "cuMemAlloc" not in calls()
    for seed in (1, 2):
        features, weights = data(1, 40, 6, 5, classes=3, seed=seed)
        driver.copy_to_device(addresses["features"], features, features.nbytes, stream)
        driver.copy_to_device(addresses["weights"], weights, weights.nbytes, stream)
        graph.launch(stream)
        stream.synchronize()
        want, _ = wanted(features, weights, whole(16, 6), whole(12, 5))
        np.testing.assert_allclose(view, want, atol=1e-5)
    graph.close()
    with pytest.raises(KernelError, match="was closed"):
        graph.launch(stream)


def test_cams_that_are_given(kernel):
    """As a graph of the profile "fused" leaves them, of many classes."""
    producer, stream = driver.Stream(), driver.Stream()
    cams = np.random.default_rng(1).normal(size=(2, 40, 5, 7)).clip(0).astype(np.float32)
    given = dlpack(cams, producer)
    calls()
    heatmaps, valid = kernel.heatmaps(given, size=(20, 32), dtype="uint8", stream=stream)
    assert calls().count("cuLaunchKernel") == 2
    want, good = normalised_heatmaps(cams, whole(20, 5), whole(32, 7))
    assert np.abs(heatmaps.to_host().astype(int) - to_bytes(want)).max() <= 1
    np.testing.assert_array_equal(valid.to_host(), good)
    out = dlpack(np.zeros((2, 40, 8, 8), np.float32), stream)
    heatmaps, _ = kernel.heatmaps(
        given, size=(8, 8), interpolation="bicubic", out=out, stream=stream
    )
    want, _ = normalised_heatmaps(cams, whole(8, 5), whole(8, 7), "bicubic")
    np.testing.assert_allclose(out.to_host(), want, atol=1e-4)
    for wrong in (cams.astype(np.float16), cams[0], cams[:0]):
        with pytest.raises(ValueError, match=r"cams must be float32 \[B, K, h, w\]"):
            kernel.heatmaps(Interface(wrong, stream), size=(8, 8))


RAGGED = (
    [whole(20, 5), Axis(33, 4, 30, 5, 0.2, -1.0), whole(64, 5)],
    [whole(30, 7), whole(12, 7), Axis(200, 0, 150, 7, 0.04, -0.4)],
)


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_images_of_different_sizes(kernel, dtype):
    stream = driver.Stream()
    features, weights = data(3, 24, 5, 7)
    given = dlpack(features, stream), dlpack(weights, stream)
    rows, columns = RAGGED
    heatmaps, valid = kernel(*given, rows=rows, columns=columns, dtype=dtype, stream=stream)
    assert [one.shape for one in heatmaps] == [(2, 20, 30), (2, 33, 12), (2, 64, 200)]
    flat = dlpack(np.full(2 * (600 + 396 + 12800), 7, dtype), stream)
    kernel(*given, rows=rows, columns=columns, dtype=dtype, out=flat, stream=stream)
    together = flat.to_host()
    assert valid.to_host().all()
    for i, one in enumerate(heatmaps):
        want, _ = wanted(features[i : i + 1], weights[i : i + 1], rows[i], columns[i])
        made = one.to_host()
        if dtype == "uint8":
            assert np.abs(made.astype(int) - to_bytes(want[0])).max() <= 1
        else:
            np.testing.assert_allclose(made, want[0], atol=2e-4)
        np.testing.assert_array_equal(together[: made.size], made.ravel())
        together = together[made.size :]
    # Each keeps the memory of all alive.
    last = heatmaps.pop().to_host()
    kept = heatmaps[0]
    heatmaps.clear()
    assert kept.to_host().shape == (2, 20, 30)
    assert last.any()
    with pytest.raises(ValueError, match=r"out must be a writable .*\[27592\]"):
        kernel(*given, rows=rows, columns=columns, dtype=dtype, out=dlpack(last, stream))
    with pytest.raises(ValueError, match="axes for 2 images, and 3"):
        kernel(*given, rows=rows[:2], columns=columns[:2])


def test_different_sizes_with_addresses(kernel):
    """Plans for several sizes take turns with one workspace, prepared once."""
    stream = driver.Stream()
    features, weights = data(3, 24, 5, 7)
    kept = [dlpack(features, stream), dlpack(weights, stream)]
    given = {name: one.address for name, one in zip(("features", "weights"), kept, strict=True)}
    rows, columns = RAGGED
    inputs = Inputs(3, 24, 5, 7, 2)
    each = ((rows, columns), (rows[::-1], columns))
    plans = [kernel.plan(inputs, Heatmaps(*axes)) for axes in each]
    buffers = [driver.DeviceBuffer(n) for n in (plans[0].workspace.size, 4 * 200 * 64 * 6, 6, 512)]
    workspace, heatmaps, valid, places = (buffer.address for buffer in buffers)
    kernel.prepare_workspace(plans[0], workspace, stream)
    for plan, own in zip(plans, (None, places), strict=True):
        if own is not None:
            at = ctypes.addressof(plan.places)
            driver.copy_to_device(places, at, ctypes.sizeof(plan.places), stream)
        kernel.launch(
            plan, **given, heatmaps=heatmaps, valid=valid, workspace=workspace, places=own,
            stream=stream,
        )  # fmt: skip
        made = np.empty(plan.pixels, np.float32)
        driver.copy_to_host(made, heatmaps, made.nbytes, stream)
        stream.synchronize()
        for i, place in enumerate(plan.places):
            want, _ = wanted(features[i : i + 1], weights[i : i + 1], place.rows, place.columns)
            found = made[place.start :][: want.size].reshape(want.shape)
            np.testing.assert_allclose(found, want, atol=2e-4)
    rest = {**given, "heatmaps": heatmaps, "valid": valid, "workspace": workspace}
    with (
        pytest.raises(KernelError, match="give its address as `places`"),
        driver.Graph.capture(stream),
    ):
        kernel.launch(plans[0], **rest, stream=stream)
    # In a graph, the sizes are those that lie at `places` when it is launched.
    with driver.Graph.capture(stream) as graph:
        kernel.launch(plans[0], **rest, places=places, stream=stream)
    graph.launch(stream)  # with the places of the other plan
    again = np.empty_like(made)
    driver.copy_to_host(again, heatmaps, again.nbytes, stream)
    stream.synchronize()
    np.testing.assert_array_equal(again, made)
    graph.close()


def test_addresses_that_are_not_the_plans(kernel):
    wanted = Heatmaps(whole(8, 2), whole(8, 2))
    of_features = kernel.plan(Inputs(1, 4, 2, 2, 1), wanted)
    of_cams = kernel.plan(Cams(1, 1, 2, 2), wanted)
    rest = {"heatmaps": 256, "valid": 1, "workspace": 256, "stream": 0}
    calls()
    for given in ({}, {"features": 16}, {"cams": 16}, {"features": 16, "weights": 16, "cams": 16}):
        with pytest.raises(ValueError, match="launch it with features and weights, and no cams"):
            kernel.launch(of_features, **given, **rest)
    for given in ({}, {"features": 16, "weights": 16}, {"cams": 16, "weights": 16}):
        with pytest.raises(ValueError, match=r"for Cams\(batch=1, .*: launch it with cams"):
            kernel.launch(of_cams, **given, **rest)
    assert "cuLaunchKernel" not in calls()


def test_a_capture_that_breaks_off(kernel):
    stream = driver.Stream()
    features, weights = data(1, 4, 2, 2)
    given = dlpack(features, stream), dlpack(weights, stream)
    with (
        pytest.raises(KernelError, match="being captured"),
        driver.Graph.capture(stream),
    ):
        kernel(*given, size=(4, 4), stream=stream)
    assert not driver.is_capturing(stream)
    stream.synchronize()


def test_another_plan_needs_the_workspace_prepared(kernel):
    """What the docstring says of workspaces that change plans is so."""
    stream = driver.Stream()
    small = kernel.plan(Inputs(1, 8, 3, 3, 1), Heatmaps(whole(6, 3), whole(6, 3)))
    large = kernel.plan(Inputs(1, 64, 9, 9, 400), Heatmaps(whole(6, 9), whole(6, 9)))
    assert small.workspace.cams < large.workspace.counters
    buffer = driver.DeviceBuffer(large.workspace.size)
    kernel.prepare_workspace(large, buffer.address, stream)
    found = np.empty(large.workspace.counters, np.uint8)
    driver.copy_to_host(found, buffer.address, found.size, stream)
    stream.synchronize()
    assert not found.any()


def test_results_go_to_others(kernel):
    """DLPack and the array interface of the results, and the order they put streams in."""
    stream = driver.Stream()
    features, weights = data(1, 8, 4, 4)
    given = dlpack(features, stream), dlpack(weights, stream)
    heatmaps, valid = kernel(*given, size=(8, 8), stream=stream)
    about = heatmaps.__cuda_array_interface__
    assert about["shape"] == (1, 2, 8, 8)
    assert (about["typestr"], about["stream"]) == ("<f4", stream.handle)
    assert heatmaps.__dlpack_device__() == (2, 0)
    assert valid.__cuda_array_interface__["typestr"] == "|b1"
    calls()
    heatmaps.__dlpack__(stream=stream.handle, max_version=(1, 1))
    assert "cuStreamWaitEvent" not in calls()
    heatmaps.__dlpack__(stream=-1)
    assert "cuStreamWaitEvent" not in calls()
    heatmaps.__dlpack__()
    assert "cuStreamWaitEvent" in calls()
    for wrong in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            heatmaps.__dlpack__(**wrong)
    with pytest.raises(ValueError, match="stream 0"):
        heatmaps.__dlpack__(stream=0)
    # One call's result is another's input.
    again, _ = kernel(heatmaps, dlpack(np.ones((1, 1, 2), np.float32), stream), size=(8, 8))
    want, _ = wanted(heatmaps.to_host(), np.ones((1, 1, 2), np.float32), whole(8, 8), whole(8, 8))
    np.testing.assert_allclose(again.to_host(), want, atol=1e-5)


def test_arrays_that_do_not_fit(kernel):
    stream = driver.Stream()
    features, weights = data(1, 8, 4, 4)
    given, used = dlpack(features, stream), dlpack(weights, stream)
    with pytest.raises(ValueError, match=r"GPU's memory.*type 1"):
        kernel(features, used, size=(4, 4))
    with pytest.raises(TypeError, match="got list"):
        kernel([1], used, size=(4, 4))
    with pytest.raises(ValueError, match="both be float32"):
        kernel(given, dlpack(weights.astype(np.float16), stream), size=(4, 4))
    with pytest.raises(ValueError, match="weights must be"):
        kernel(given, dlpack(weights[:, :, :4].copy(), stream), size=(4, 4))
    with pytest.raises(ValueError, match="either size"):
        kernel(given, used)
    with pytest.raises(ValueError, match="bilinear"):
        kernel(given, used, size=(4, 4), interpolation="nearest")
    with pytest.raises(ValueError, match="uint8"):
        kernel(given, used, size=(4, 4), dtype="float64")
    with pytest.raises(ValueError, match="features: the array must be C-contiguous"):
        kernel(Interface(features, stream, strides=(4, 4, 4, 4)), used, size=(4, 4))
    with pytest.raises(ValueError, match="stream 0"):
        kernel(Interface(features, stream, stream=0), used, size=(4, 4))
    with pytest.raises(ValueError, match="mask"):
        kernel(Interface(features, stream, mask=used), used, size=(4, 4))
    elsewhere = DeviceArray(given._buffer, given.shape, given.dtype, stream.handle, 1)
    with pytest.raises(ValueError, match=r"GPU 0.*got GPU 1"):
        kernel(elsewhere, used, size=(4, 4))


def test_a_stream_of_another_context(kernel):
    """In a process with two GPUs; see test_on_a_fake_driver.py. The next call works."""
    if len(driver.devices()) < 2:
        pytest.skip("the stand-in shows one GPU")
    stream = driver.Stream()
    features, weights = data(1, 8, 4, 4)
    given = dlpack(features, stream), dlpack(weights, stream)
    other = driver.retain_primary_context(1)
    with other:
        foreign = driver.Stream()
    for call_it in (lambda: kernel(*given, size=(4, 4), stream=foreign),
                    lambda: driver.check_stream(foreign)):  # fmt: skip
        with pytest.raises(KernelError, match=r"another CUDA context.*make the stream's context"):
            call_it()
    heatmaps, _ = kernel(*given, size=(4, 4), stream=stream)
    want, _ = wanted(features, weights, whole(4, 4), whole(4, 4))
    np.testing.assert_allclose(heatmaps.to_host(), want, atol=1e-5)
    for default in (0, 1, 2):
        driver.check_stream(default)
    foreign.close()
    other.close()


def test_two_threads_with_one_object(kernel, context):
    """Each with the context current, a stream and memory of its own."""
    found = {}

    def make(seed):
        with context:
            stream = driver.Stream()
            features, weights = data(1, 32, 5, 5, seed=seed)
            given = dlpack(features, stream), dlpack(weights, stream)
            for _ in range(5):
                heatmaps, _ = kernel(*given, size=(9, 9), stream=stream)
            want, _ = wanted(features, weights, whole(9, 5), whole(9, 5))
            found[seed] = np.abs(heatmaps.to_host() - want).max()

    threads = [Thread(target=make, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [1, 2]
    assert max(found.values()) < 1e-5


def test_the_example_of_pycuda(context, monkeypatch, capsys):
    """As a whole, with a stand-in for PyCUDA."""
    fake_pycuda.install(monkeypatch)
    file = Path(__file__).resolve().parents[3] / "examples" / "pycuda_embed.py"
    spec = importlib.util.spec_from_file_location("pycuda_embed", file)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "SHAPE", (2, 48, 7, 7))
    monkeypatch.setattr(example, "SIZE", (32, 40))
    assert example.main() == 0, capsys.readouterr()
    assert "2 x 5 maps" in capsys.readouterr().out


def test_streams_of_others():
    class Torch:
        cuda_stream = 11

    class CuPy:
        ptr = 12

    class Core:
        def __cuda_stream__(self):
            return 0, 13

    assert [stream_handle(s) for s in (Torch(), CuPy(), Core(), 14, None)] == [11, 12, 13, 14, 0]
    with pytest.raises(TypeError, match="got str"):
        stream_handle("0")


def test_events_and_copies(context):
    stream, other = driver.Stream(), driver.Stream()
    first, second = driver.Event(timing=True), driver.Event(timing=True)
    buffer = driver.DeviceBuffer(8)
    first.record(stream)
    driver.memset(buffer.address, 3, 8, stream)
    second.record(stream)
    second.hold_back(other)
    found = np.zeros(8, np.uint8)
    driver.copy_to_host(found, buffer.address, 8, other)
    other.synchronize()
    assert found.tolist() == [3] * 8
    second.synchronize()
    assert second.milliseconds_since(first) == 1.5
    assert driver.pointer_device(buffer.address) == 0
    with pytest.raises(ValueError, match="8 bytes"):
        driver.copy_to_host(np.zeros(4, np.uint8), buffer.address, 8, stream)
    with pytest.raises(ValueError, match="at least 1 byte"):
        driver.DeviceBuffer(0)
    with pytest.raises(ValueError, match="don't fit"):
        driver.PinnedBuffer(4).view(np.float32, (2,))
    buffer.close()
    buffer.close()


def test_a_view_keeps_its_pinned_buffer(context):
    view = driver.PinnedBuffer(16).view(np.float32, (2, 2))
    gc.collect()
    view[...] = 5
    assert view.sum() == 20


def test_errors_name_the_call(context):
    with pytest.raises(KernelError, match=r"cuMemFree failed: CUDA_ERROR_OTHER \(text"):
        call("cuMemFree", 12345)


def test_no_current_context(kernel):
    handle = call("cuCtxPopCurrent")
    try:
        with pytest.raises(KernelError, match="no CUDA context is current"):
            ClampCombine()
        with pytest.raises(KernelError, match="INVALID_CONTEXT"):
            driver.DeviceBuffer(4)
    finally:
        call("cuCtxPushCurrent", handle)


def test_memory_goes_back_where_no_context_is_current(context):
    buffer = driver.DeviceBuffer(16)
    handle = call("cuCtxPopCurrent")
    try:
        del buffer
        gc.collect()
    finally:
        call("cuCtxPushCurrent", handle)


def test_devices(context):
    (found,) = driver.devices()
    assert (found.name, found.capability, found.multiprocessors) == ("Fake 0", (8, 6), 4)
    with pytest.raises(CudaUnavailableError, match="there is no GPU 3"):
        driver.retain_primary_context(3)


def test_binaries(context, monkeypatch, tmp_path):
    with pytest.raises(CudaUnavailableError, match="sigcam kernels build"):
        ClampCombine(tmp_path / "none.fatbin")
    wrong = tmp_path / "wrong.fatbin"
    wrong.write_bytes(b"no such code")
    monkeypatch.setenv("SIGCAM_KERNELS", str(wrong))
    with pytest.raises(KernelError, match=r"wrong\.fatbin"):
        ClampCombine()
    monkeypatch.setenv("FAKE_CUDA_REFUSES", "1")
    with pytest.raises(CudaUnavailableError, match="no code in it suits"):
        ClampCombine()
