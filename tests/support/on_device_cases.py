"""Images that lie on the device, in a process whose CUDA driver is a stand-in.

Run by tests/runtime/test_explain_device.py. "ort" runs ONNX Runtime's CPU provider on that driver's
memory, "tensorrt" a stand-in of TensorRT on its streams.
"""

import ctypes
import gc
import importlib.util
import sys
import threading
import weakref
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from sigcam.core.errors import BackendError, UnknownClassError, UsageError
from sigcam.images.preprocess import place, prepare
from sigcam.kernels import dlpack, driver
from sigcam.kernels.arrays import DeviceArray
from sigcam.kernels.errors import KernelError
from sigcam.kernels.reference import normalised_heatmaps, to_bytes
from sigcam.runtime.backends.cuda.heatmaps import axes_of
from sigcam.runtime.backends.onnxruntime import cuda as ort_cuda
from sigcam.runtime.session import load
from tests.support import ort_cuda_cases
from tests.support.fake_cuda import calls, fake_pycuda, live
from tests.support.fake_tensorrt import SHAPES, fake_module, write_engine
from tests.support.ort_cuda_cases import gpu  # noqa: F401 (a fixture)
from tests.support.paths import EXAMPLES
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

# ruff: noqa: F811 (fixtures come in as arguments of the same name)

SIZES = [(70, 90), (64, 64), (41, 56), (120, 200)]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


PHOTOS = [noise(*size, 3, seed=i) for i, size in enumerate(SIZES)]


class DeviceStream(ort_cuda_cases.DeviceStream):
    """ONNX Runtime's CPU isn't on the stream: it has to be there before, and its outputs after."""

    begins = True

    def follow(self, stream):
        super().follow(stream)
        if self.begins:
            self.synchronize()
        self.begins = not self.begins

    def synchronize(self):
        """Is called after each failure too."""
        super().synchronize()
        self.begins = True

    def lead(self, stream, outputs):
        self.close_moved()
        found = {name: self.move(name, one) for name, one in outputs.items()}
        return super().lead(stream, found)


class DriverStreams:
    """The stand-in driver's streams, as the stand-in of TensorRT wants them."""

    engines: ClassVar = weakref.WeakSet()

    class _One:
        library = ctypes.CDLL("libcuda.so.1")
        kept: ClassVar = []
        """Callbacks, which streams and graphs refer to."""

        def __init__(self, handle):
            self.handle = handle

        @property
        def capturing(self):
            return True if driver.is_capturing(self.handle) else None

        def add(self, work):
            """Work of a network runs when the stream has come to it, or is captured."""
            callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: work())
            self.kept.append(callback)
            stream = ctypes.c_void_p(self.handle)
            assert self.library.cuLaunchHostFunc(stream, callback, None) == 0

    class _Streams:
        def __getitem__(self, handle):
            return DriverStreams._One(handle)

        def __contains__(self, handle):
            """Not known: an address that was freed may be another stream's now."""
            return False

    streams = _Streams()


@pytest.fixture(params=["ort", "tensorrt"])
def opened(request, make_artifact, monkeypatch, tmp_path):
    """opened(spec changes, options) -> the session on the device, and one on the CPU."""
    sessions = []

    def on_device(path, options, changes):
        if request.param == "ort":
            request.getfixturevalue("gpu")
            monkeypatch.setattr(ort_cuda, "CudaStream", DeviceStream)
            return load(path, "ort-cuda", threads=1, **options)
        module = fake_module(DriverStreams, SHAPES)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return load(engine_of(tmp_path, changes), **options)

    def open_both(per_position=False, options=None, **changes):
        if per_position and request.param == "tensorrt":
            pytest.skip("the stand-in's engine has weights for whole channels")
        path = make_artifact(per_position=per_position, **changes)
        found = on_device(path, options or {}, changes), load(path, "ort", threads=1)
        sessions.extend(found)
        return found

    yield open_both
    for session in sessions:
        session.close()


def engine_of(folder, changes):
    from tests.support import fake_tensorrt

    name = driver.device(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_tensorrt, "GPU", name)
        return write_engine(folder, **{"profile": "fused", **changes})


@pytest.fixture(autouse=True)
def nothing_is_left():
    gc.collect()
    before = live()
    yield
    gc.collect()
    assert live() == before


@pytest.fixture
def context():
    made = driver.retain_primary_context(0)
    with made:
        yield made
    made.close()


def on_device(host, stream, device=0):
    """An array as torch hands it out."""
    host = np.ascontiguousarray(host)
    buffer = driver.DeviceBuffer(max(1, host.nbytes))
    driver.copy_to_device(buffer.address, host, host.nbytes, stream)
    return DeviceArray(buffer, host.shape, host.dtype, driver.handle_of(stream), device)


class Strided:
    """An array as torch hands out every second row of images: with gaps, by DLPack."""

    def __init__(self, host, stream):
        self.array = on_device(host, stream)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, **how):
        capsule = self.array.__dlpack__(**how)
        versioned = how.get("max_version") is not None
        name = b"dltensor_versioned" if versioned else b"dltensor"
        get = ctypes.pythonapi.PyCapsule_GetPointer
        get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        kind = dlpack._Versioned if versioned else dlpack._Managed
        tensor = kind.from_address(get(capsule, name)).tensor
        sizes = [tensor.shape[i] for i in range(tensor.ndim)]
        steps = np.cumprod([1, *sizes[:0:-1]])[::-1]
        self.strides = (ctypes.c_int64 * tensor.ndim)(*map(int, steps))
        self.strides[1] *= 2
        tensor.strides = self.strides
        tensor.shape[1] = sizes[1] // 2
        return capsule


class Interface:
    """An array as PyCUDA hands it out."""

    def __init__(self, host, stream, **more):
        self.array = on_device(host, stream)
        about = dict(self.array.__cuda_array_interface__)
        self.__cuda_array_interface__ = {**about, **more}


def check(found, plain, images, ids):
    """Everything, against the CPU's: its inputs to one level, and what is made of them exactly."""
    preprocessing = plain.spec.preprocessing
    inputs = found.inputs.to_host()
    wanted = np.stack([prepare(image, preprocessing)[0] for image in images])
    assert np.abs(inputs.astype(float) - wanted).max() <= 1
    several = isinstance(found.heatmaps, tuple)
    made = found.heatmaps if several else found.heatmaps.to_host()
    asked = np.tile(np.array(ids, np.int64), (len(images), 1))
    outputs = plain._model.run(inputs, asked if plain._model.takes_class_ids else None)
    np.testing.assert_allclose(found.logits.to_host(), outputs.logits, atol=1e-5)
    np.testing.assert_array_equal(found.class_ids.to_host(), outputs.class_ids)
    np.testing.assert_allclose(found.cams.to_host(), outputs.cams, atol=1e-5)
    if outputs.evidence_logits is None:
        assert found.evidence_logits is None
    else:
        np.testing.assert_allclose(
            found.evidence_logits.to_host(), outputs.evidence_logits, atol=1e-5
        )
    for i, image in enumerate(images):
        where = place(preprocessing, *image.shape[:2])
        assert found.placements[i] == where
        axes = axes_of((where,), *outputs.cams.shape[2:])
        want, good = normalised_heatmaps(outputs.cams[i : i + 1], *axes)
        one = made[i].to_host() if several else made[i]
        if one.dtype == np.uint8:
            assert np.abs(one.astype(int) - to_bytes(want[0])).max() <= 1
        else:
            np.testing.assert_allclose(one, want[0], atol=2e-4)
        np.testing.assert_array_equal(found.valid.to_host()[i], good[0])


@pytest.mark.parametrize("profile", ["split", "fused"])
@pytest.mark.parametrize("make", [on_device, Interface])
def test_a_batch(opened, context, profile, make):
    """Its images are made on one stream and explained on another, which has to wait."""
    session, plain = opened(profile=profile)
    images = noise(3, 97, 130, 3)
    producer, stream = driver.Stream(), driver.Stream()
    found = session.explain_device(make(images, producer), [2, -1], stream=stream)
    assert found.heatmaps.shape == (3, 2, 97, 130)
    check(found, plain, images, [2, -1])
    planes = make(images.transpose(0, 3, 1, 2), producer)
    again = session.explain_device(planes, [2, -1], stream=stream)
    np.testing.assert_array_equal(again.heatmaps.to_host(), found.heatmaps.to_host())
    default = session.explain_device(make(images[:1], producer))
    check(default, plain, images[:1], [-1])


@pytest.mark.parametrize("profile", ["split", "fused"])
def test_a_list_of_any_sizes(opened, context, profile):
    session, plain = opened(profile=profile)
    stream = driver.Stream()
    given = [on_device(one, stream) for one in PHOTOS]
    given[1] = Interface(PHOTOS[1].transpose(2, 0, 1), stream)
    found = session.explain_device(given, ["owl", 0] if "owl" in plain.spec.class_names else [1, 0],
                                   stream=stream)  # fmt: skip
    assert [one.shape for one in found.heatmaps] == [(2, *size) for size in SIZES]
    check(found, plain, PHOTOS, found.class_ids.to_host()[0])
    alike = session.explain_device([given[0], given[0]], stream=stream)
    check(alike, plain, [PHOTOS[0]] * 2, [-1])
    # One image's heatmaps keep the memory of all.
    last = alike.heatmaps[1]
    want = last.to_host()
    del alike
    gc.collect()
    np.testing.assert_array_equal(last.to_host(), want)


@pytest.mark.parametrize("per_position", [False, True])
@pytest.mark.parametrize("kind", ["uint8", "lazy", "float32"])
def test_kinds_of_heatmaps(opened, context, kind, per_position):
    session, plain = opened(per_position, {"heatmaps": kind}, profile="split")
    stream = driver.Stream()
    found = session.explain_device([on_device(PHOTOS[0], stream)], stream=stream)
    if kind == "lazy":
        assert found.heatmaps is None
        [one] = plain.explain([PHOTOS[0]])
        np.testing.assert_allclose(found.cams.to_host()[0, 0], one[0].cam, atol=0.02)
    else:
        assert found.heatmaps[0].dtype == kind
        check(found, plain, PHOTOS[:1], [-1])


def test_nothing_waits(opened, context):
    """ONNX Runtime's stand-in does, once; after it nothing does. TensorRT's doesn't either."""
    if not driver.devices()[0].pools:
        pytest.skip("without pools, memory goes back by waiting")
    session, _ = opened(profile="split")
    waits = session.backend_name != "tensorrt"
    stream = driver.Stream()
    given = [on_device(one, stream) for one in PHOTOS[:2]]
    kept = []
    for _ in range(4):  # plainly, captured, and as a graph
        calls()
        kept.append(session.explain_device(given, stream=stream))
        done = calls()
    assert done.count("cuStreamSynchronize") == waits
    rest = done[done.index("cuStreamSynchronize" if waits else "cuGraphLaunch") :]
    assert rest.count("cuLaunchKernel") == 2  # heatmaps of two sizes
    assert done.count("cuLaunchKernel") == 4
    assert "cuMemcpyDtoHAsync" not in done
    assert done.count("cuGraphLaunch") == (not waits)


@pytest.mark.parametrize("opened", ["tensorrt"], indirect=True)
@pytest.mark.parametrize("profile", ["split", "fused"])
def test_graphs_of_shapes_that_come_again(opened, context, profile, caplog):
    """On streams that take turns, beside calls on the host, and images anywhere in memory."""
    session, plain = opened(profile=profile)
    streams = [driver.Stream(), driver.Stream(), 0]
    found = []
    for turn in range(10):
        images = noise(2, 50 + 7 * turn, 60, 3, seed=turn)
        stream = streams[turn % 3]
        ids = [turn % 4, -1]
        given = on_device(images, stream)
        found.append((session.explain_device(given, ids, stream=stream), images, ids, given))
        if turn % 4 == 1:
            session.explain(list(images))
    assert calls().count("cuGraphLaunch") >= 8
    for one, images, ids, _ in found:
        check(one, plain, images, ids)
    assert session._model.backend.description.endswith("with CUDA graphs")
    assert not caplog.records


@pytest.mark.parametrize("opened", ["tensorrt"], indirect=True)
def test_more_shapes_than_graphs(opened, context):
    session, plain = opened(profile="split")
    stream = driver.Stream()
    found = []
    for turn in range(3):
        for batch in (1, 2, 3, 4):
            images = noise(batch, 64, 80, 3, seed=10 * turn + batch)
            given = on_device(images, stream)
            found.append((session.explain_device(given, stream=stream), images, given))
    assert calls().count("cuGraphLaunch") == 2
    for one, images, _ in found:
        check(one, plain, images, [-1])


@pytest.mark.parametrize("opened", ["tensorrt"], indirect=True)
def test_a_network_that_cannot_be_captured(opened, context, caplog):
    session, plain = opened(profile="split")
    sys.modules["tensorrt"].can_capture = False
    stream = driver.Stream()
    for turn in range(4):
        images = noise(2, 64, 80, 3, seed=turn)
        found = session.explain_device(on_device(images, stream), stream=stream)
        check(found, plain, images, [-1])
    [said] = [record.getMessage() for record in caplog.records]
    assert "without CUDA graphs: TensorRT can't be captured: not permitted" in said
    assert "cuGraphLaunch" not in calls()


def test_results_stay_what_they_were(opened, context):
    """Neither later calls on the device nor ones on the host write to them."""
    session, plain = opened(profile="split")
    streams = [driver.Stream() for _ in range(3)]
    images = [noise(2, 60 + 9 * i, 70, 3, seed=i) for i in range(12)]
    found = []
    # Kept, as giving memory back would wait for everything.
    given = [on_device(batch, streams[i % 3]) for i, batch in enumerate(images)]
    for i, batch in enumerate(images):
        found.append(session.explain_device(given[i], stream=streams[i % 3]))
        if i % 5 == 4:
            session.explain(list(batch))
    for one, batch in zip(found, images, strict=True):
        check(one, plain, batch, [-1])


def test_several_threads(opened):
    session, plain = opened(profile="split")
    failures = []

    def work(seed):
        try:
            made = driver.retain_primary_context(0)
            with made:
                stream = driver.Stream()
                for i in range(3):
                    batch = noise(1 + i % 2, 64, 80, 3, seed=seed + i)
                    check(
                        session.explain_device(on_device(batch, stream), stream=stream),
                        plain, batch, [-1],
                    )  # fmt: skip
                del stream, batch
                gc.collect()
            made.close()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(10 * n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_bad_images_and_the_next_call(opened, context):
    session, plain = opened(profile="split", options={"heatmap_limit": 4 * 200 * 200})
    stream = driver.Stream()
    good = noise(2, 64, 80, 3)
    given = on_device(good, stream)
    cases = [
        (good, r"images must lie in the GPU's memory .*got type 1; move it to the GPU"),
        (on_device(good, stream, device=1), "must lie on GPU 0, whose context is current, got"),
        (Interface(good, stream, strides=(1, 2, 3, 4)), "images: the array must be C-contiguous"),
        (Strided(good, stream), "images: the array must be C-contiguous.*make a contiguous copy"),
        (on_device(good.astype(np.float32), stream), "images must be uint8, .* got float32"),
        (on_device(good[0], stream), r"images must be \[B, H, W, 3\] or .*, got \[64, 80, 3\]"),
        ([given], r"images\[0\] must be \[H, W, 3\] or \[3, H, W\], got \[2, 64, 80, 3\]"),
        (on_device(noise(1, 64, 64, 4), stream), r"images must be .*got \[1, 64, 64, 4\]"),
        (on_device(noise(1, 3, 64, 3), stream), 'can be read as NHWC and as NCHW.*layout="NHWC"'),
        (on_device(good[:0], stream), r"got \[0, 64, 80, 3\]"),
        ([], "at least one image, got an empty list"),
        ("cat.jpg", "images must be an array on the GPU with __dlpack__ .* got str"),
        (on_device(noise(1, 201, 200, 3), stream), "more than the limit of"),
    ]
    for wrong, text in cases:
        with pytest.raises(UsageError, match=text):
            session.explain_device(wrong, stream=stream)
        check(session.explain_device(given, stream=stream), plain, good, [-1])
    with pytest.raises(UsageError, match=r"in the layout NCHW, got \[2, 64, 80, 3\]"):
        session.explain_device(given, layout="NCHW", stream=stream)
    with pytest.raises(UsageError, match="layout must be"):
        session.explain_device(given, layout="HWC", stream=stream)
    with pytest.raises(UnknownClassError, match="class 99 doesn't exist"):
        session.explain_device(given, 99, stream=stream)
    with pytest.raises(UsageError, match="stream must be a number"):
        session.explain_device(given, stream="main")
    thin = noise(1, 3, 64, 3)
    for layout, want in (("NHWC", thin), ("NCHW", thin.transpose(0, 2, 3, 1))):
        found = session.explain_device(on_device(thin, stream), layout=layout, stream=stream)
        check(found, plain, want, [-1])


def test_a_stream_that_is_captured(opened, context):
    session, plain = opened(profile="split")
    stream = driver.Stream()
    good = noise(1, 64, 80, 3)
    given = on_device(good, stream)
    stream.synchronize()
    with pytest.raises(UsageError, match="is being captured"), driver.Graph.capture(stream):
        session.explain_device(given, stream=stream)
    check(session.explain_device(given, stream=stream), plain, good, [-1])


def test_a_stream_of_another_context(opened, context):
    if len(driver.devices()) < 2:
        pytest.skip("the stand-in has one GPU")
    session, plain = opened(profile="split")
    other = driver.retain_primary_context(1)
    with other:
        theirs = driver.Stream()
    stream = driver.Stream()
    good = noise(1, 64, 80, 3)
    given = on_device(good, stream)
    with pytest.raises(UsageError, match="primary one of GPU 0; pass a stream that was made there"):
        session.explain_device(given, stream=theirs)
    check(session.explain_device(given, stream=stream), plain, good, [-1])
    with other:
        del theirs
        gc.collect()
    other.close()


def test_a_session_that_is_closed(opened, context):
    session, _ = opened(profile="split")
    stream = driver.Stream()
    good = noise(1, 64, 80, 3)
    found = session.explain_device(on_device(good, stream), stream=stream)
    session.close()
    assert found.heatmaps.to_host().max() == 1  # it was done before the session was gone
    with pytest.raises(UsageError, match="the session is closed"):
        session.explain_device(on_device(good, stream), stream=stream)


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pycuda_example(gpu, make_artifact, monkeypatch, capsys):
    monkeypatch.setattr(ort_cuda, "CudaStream", DeviceStream)
    fake_pycuda.install(monkeypatch)
    assert example("device_pycuda").main(str(make_artifact(profile="split"))) == 0
    assert "heatmaps (1, 1, 480, 640), the largest value 1.00" in capsys.readouterr().out


def test_the_nvimgcodec_example(opened, context, capsys):
    """With a stand-in of the package, whose images lie on the device; one can't be decoded."""
    session, plain = opened(profile="split")
    stream = driver.Stream()
    photos = {"a.jpg": PHOTOS[0], "b.jpg": None, "c.jpg": PHOTOS[2]}

    def decode(streams, params):
        assert params == {"apply_exif_orientation": True, "sample_format": "RGB"}
        images = [photos[name] for name in streams]
        return [None if one is None else on_device(one, stream) for one in images]

    package = SimpleNamespace(
        DecodeParams=dict, SampleFormat=SimpleNamespace(I_RGB="RGB"), CodeStream=str,
        Decoder=lambda device_id: SimpleNamespace(decode=decode),
    )  # fmt: skip
    assert example("device_nvimgcodec").explain(package, session, list(photos)) == 1
    found = capsys.readouterr()
    best = plain.explain(PHOTOS[0])[0]
    assert f"a.jpg: {best.label}, heatmaps (1, 70, 90)" in found.out
    assert "heatmaps (1, 41, 56)" in found.out
    assert found.err.splitlines()[-1] == "b.jpg: nvImageCodec can't decode it"


@pytest.mark.parametrize("opened", ["tensorrt"], indirect=True)
def test_more_than_the_engine_is_for_and_the_next_call(opened, context):
    """The stand-in's engine takes 4 images and 3 classes of each."""
    session, plain = opened(profile="fused")
    stream = driver.Stream()
    images = noise(5, 64, 80, 3)
    given, fewer = on_device(images, stream), on_device(images[:4], stream)
    for _ in range(3):
        with pytest.raises(UsageError, match="takes 1 to 4 images in one run, got 5"):
            session.explain_device(given, stream=stream)
        with pytest.raises(UsageError, match="makes CAMs of 1 to 3 classes for each image, got 4"):
            session.explain_device(fewer, [0, 1, 2, 3], stream=stream)
        check(session.explain_device(fewer, [0, 1, 3], stream=stream), plain, images[:4], [0, 1, 3])


@pytest.mark.parametrize("profile", ["split", "fused"])
@pytest.mark.parametrize("after", range(9))
def test_memory_that_is_used_up_and_the_next_call(opened, context, monkeypatch, after, profile):
    """At any of the allocations: what was made before goes back, and the session works on."""
    session, plain = opened(profile=profile)
    stream = driver.Stream()
    good = noise(2, 64, 80, 3)
    given = on_device(good, stream)
    real, count = driver.allocate, iter(range(100))
    # ONNX Runtime takes the class ids from the host.
    allocations = 7 + (profile == "fused") + (session.backend_name == "tensorrt")

    def full(*args, **kwargs):
        if next(count) == min(after, allocations - 1):
            raise KernelError("cuMemAllocFromPoolAsync failed: CUDA_ERROR_OUT_OF_MEMORY (text)")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(BackendError, match="memory is used up"):
        patch.setattr(driver, "allocate", full)
        session.explain_device(given, stream=stream)
    check(session.explain_device(given, stream=stream), plain, good, [-1])
