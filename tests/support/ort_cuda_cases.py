"""Run by test_ort_cuda_on_a_fake_driver.py, in a process whose CUDA driver is a stand-in.

That driver's device memory is the host's, so ONNX Runtime's CPU provider can read it: all of
the path runs but for the provider itself.
"""

import sys
from dataclasses import replace

import numpy as np
import pytest

from sigcam.core.errors import BackendError, BackendUnavailableError, UsageError
from sigcam.kernels import driver
from sigcam.kernels.errors import KernelError
from sigcam.runtime.backends.cuda.source import FinishedCams
from sigcam.runtime.backends.cuda.stream import CudaStream
from sigcam.runtime.backends.onnxruntime import cuda as ort_cuda
from sigcam.runtime.session import load
from tests.support.device_doubles import at, fake_onnxruntime
from tests.support.fake_cuda import calls, live
from tests.support.sessions import make_artifact  # noqa: F401 (a fixture)

# ruff: noqa: F811 (fixtures come in as arguments of the same name)

IMAGES = [
    np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)
    for i, size in enumerate([(70, 90, 3), (70, 90, 3), (41, 56, 3), (120, 200, 3)])
]


class DeviceStream(CudaStream):
    """A stream that ONNX Runtime's CPU can work on, which isn't on the stream.

    The CPU leaves outputs in memory that the driver doesn't know: what is copied is moved first.
    """

    device = "cpu"

    def stage(self, feeds):
        self.close_moved()
        found = super().stage(feeds)
        self.synchronize()
        return found

    def fetch(self, outputs):
        return super().fetch({name: self.move(name, one) for name, one in outputs.items()})

    def enqueue_heatmaps(self, source, request):
        if isinstance(source, FinishedCams):
            source = FinishedCams(self.move("cams", source.cams))
        return super().enqueue_heatmaps(source, request)

    def move(self, name, one):
        buffer = self.moved[name] = driver.DeviceBuffer(max(1, one.nbytes))
        driver.copy_to_device(
            buffer.address, at(one.address, np.uint8, (one.nbytes,)), one.nbytes, self.handle
        )
        return replace(one, address=buffer.address)

    def close_moved(self):
        for buffer in getattr(self, "moved", {}).values():
            buffer.close()
        self.moved = {}

    def close(self):
        self.close_moved()
        super().close()


@pytest.fixture
def gpu(monkeypatch):
    module = fake_onnxruntime()
    cpu = module.InferenceSession

    def opened(*args, **kwargs):
        session = cpu(*args, **kwargs)
        session.get_providers = lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
        return session

    module.InferenceSession = opened
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    monkeypatch.setattr(ort_cuda, "CudaStream", DeviceStream)
    monkeypatch.setattr(ort_cuda, "refuse_cpu", lambda session, backend: None)
    return module


@pytest.mark.parametrize("per_position", [False, True])
def test_the_same_answers_as_on_the_cpu(gpu, make_artifact, per_position):
    before = live()
    path = make_artifact(profile="split", per_position=per_position)
    with load(path, "ort-cuda", threads=1) as session, load(path, "ort", threads=1) as plain:
        assert session.backend_name == "ort-cuda"
        for question in ({}, {"top_k": 3}, {}):
            got, want = session.explain(IMAGES, **question), plain.explain(IMAGES, **question)
            for one, other in zip(got, want, strict=True):
                for a, b in zip(one, other, strict=True):
                    assert a._made is not None
                    assert (a.class_id, a.probability, a.valid) == (
                        b.class_id, b.probability, b.valid,
                    )  # fmt: skip
                    np.testing.assert_allclose(a.cam, b.cam, atol=1e-6)
                    np.testing.assert_allclose(a.heatmap, b.heatmap, atol=3e-5)
    assert live() == before


@pytest.mark.parametrize("kind", ["uint8", "lazy"])
def test_heatmaps_of_bytes_and_none(gpu, make_artifact, kind):
    path = make_artifact(profile="split")
    gpu, cpu = (load(path, name, threads=1, heatmaps=kind) for name in ("ort-cuda", "ort"))
    with gpu as session, cpu as plain:
        for [one], [other] in zip(session.explain(IMAGES), plain.explain(IMAGES), strict=True):
            assert (one._made is None) == (kind == "lazy")
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=0.51 / 255)


def test_nothing_waits_before_the_end(gpu, make_artifact):
    """Kernels and all copies are enqueued, and then the stream is waited for once."""
    with load(make_artifact(profile="split"), "ort-cuda", threads=1) as session:
        session.explain(IMAGES)
        calls()
        session.explain(IMAGES)
        done = [name for name in calls() if name.startswith(("cuLaunch", "cuMemcpy", "cuStreamS"))]
    network = done.index("cuStreamSynchronize")  # the stand-in's, which needs its inputs at once
    rest = done[network + 1 :]
    assert rest.count("cuStreamSynchronize") == 1
    assert rest[-1] == "cuStreamSynchronize"
    assert rest.count("cuLaunchKernel") == 2  # for images of three sizes


def test_shared_memory_is_not_copied(gpu, make_artifact):
    """Inputs and heatmaps, that is: ONNX Runtime's outputs and CAMs lie in memory of the GPU's."""
    if not driver.devices()[0].integrated:
        pytest.skip("the stand-in is a GPU with memory of its own")
    with load(make_artifact(profile="split"), "ort-cuda", threads=1) as session:
        session.explain(IMAGES[:2])
        calls()
        session.explain(IMAGES[:2])
        done = calls()
    ends = done.index("cuLaunchKernel")
    assert "cuMemcpyHtoDAsync" not in done[:ends]
    copies = [name for name in done[ends:] if name.startswith("cuMemcpy")]
    # CAMs go from memory to memory, and logits, class ids and evidence to the host, after the
    # stand-in of ONNX Runtime has moved these three to the device.
    wanted = ["cuMemcpyAsync", *["cuMemcpyDtoHAsync"] * 3, *["cuMemcpyHtoDAsync"] * 3]
    assert sorted(copies) == wanted


@pytest.mark.parametrize("profile", ["split", "fused"])
@pytest.mark.parametrize("which", ["DeviceBuffer", "PinnedBuffer"])
def test_memory_that_is_used_up_and_the_next_call(gpu, make_artifact, monkeypatch, which, profile):
    def full(size):
        raise KernelError("cuMemAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (text)")

    path = make_artifact(profile=profile)
    with load(path, "ort-cuda", threads=1) as session, load(path, "ort", threads=1) as plain:
        session.explain(IMAGES[0])
        for _ in range(2):
            with (
                monkeypatch.context() as patch,
                pytest.raises(BackendError, match=r"OUT_OF_MEMORY.*smaller batch_size"),
            ):
                patch.setattr(driver, which, full)
                session.explain(IMAGES)
        for [one], [other] in zip(session.explain(IMAGES), plain.explain(IMAGES), strict=True):
            np.testing.assert_allclose(one.heatmap, other.heatmap, atol=3e-5)


def test_an_image_over_the_limit_and_the_next(gpu, make_artifact):
    path = make_artifact(profile="split")
    with load(path, "ort-cuda", threads=1, heatmap_limit=4 * 120 * 200 - 1) as session:
        with pytest.raises(UsageError, match="more than the limit of"):
            session.explain(IMAGES[3])
        assert session.explain(IMAGES[0])[0].heatmap.shape == (70, 90)


@pytest.mark.parametrize("kind", ["float32", "uint8", "lazy"])
def test_the_profile_fused(gpu, make_artifact, kind):
    """Heatmaps of the graph's own CAMs: those of many classes, named more than once here."""
    path, before = make_artifact(), live()
    kernels, plain = (load(path, name, threads=1, heatmaps=kind) for name in ("ort-cuda", "ort"))
    with kernels as session, plain:
        for question in ({}, {"classes": [0, -2, 3] * 12}, {"top_k": 2}):
            calls()
            got, want = session.explain(IMAGES, **question), plain.explain(IMAGES, **question)
            assert calls().count("cuLaunchKernel") == (0 if kind == "lazy" else 2)
            for one, other in zip(got, want, strict=True):
                for a, b in zip(one, other, strict=True):
                    assert (a._made is None) == (kind == "lazy")
                    assert (a.class_id, a.valid) == (b.class_id, b.valid)
                    np.testing.assert_array_equal(a.cam, b.cam)
                    off = 0.51 / 255 if kind == "uint8" else 3e-5
                    np.testing.assert_allclose(a.heatmap, b.heatmap, atol=off)
    del session, kernels, a, got
    assert live() == before


def test_a_fused_artifact_over_the_limit_and_the_next_call(gpu, make_artifact):
    with load(make_artifact(), "ort-cuda", threads=1, heatmap_limit=4 * 40 * 120 * 200) as session:
        with pytest.raises(UsageError, match=r'41 classes take .*heatmaps="lazy"'):
            session.explain(IMAGES[3], classes=[1] * 41)
        assert len(session.explain(IMAGES[3], classes=[1] * 40)) == 40


def test_a_gpu_that_is_not_there(gpu, make_artifact):
    with pytest.raises(BackendUnavailableError, match="there is no GPU 99"):
        load(make_artifact(), "ort-cuda", device=99)


def test_a_file_that_is_refused_frees_everything(gpu, tmp_path, make_artifact):
    before = live()
    path = make_artifact(metadata=True)
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(path.read_bytes()[:-40] + bytes(40))
    with pytest.raises(Exception, match=r"bad\.onnx"):
        load(bad, "ort-cuda")
    assert live() == before
