"""Stand-ins for a GPU: its memory in the host's, and the kernels in NumPy or on the CPU."""

import ctypes
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

from sigcam.kernels.plan import plan as make_plan
from sigcam.kernels.reference import clamp_combine, normalised_heatmaps, to_bytes
from sigcam.kernels.shapes import Cams
from sigcam.runtime.backends.cuda.heatmaps import HeatmapMaker

STREAM = 7
PROCESSORS = 5


def at(address, dtype, shape):
    """The memory at an address as an array."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = (ctypes.c_char * size).from_address(address)
    return np.frombuffer(memory, dtype).reshape(shape)


class Buffer:
    """Memory of the "device", full of what must not be left in it."""

    alive = 0

    def __init__(self, size):
        self._memory = np.full(size + 256, 0xAB, np.uint8)
        self.address = self._memory.ctypes.data + -self._memory.ctypes.data % 256
        self.size = size
        Buffer.alive += 1

    def view(self, dtype, shape):
        return at(self.address, dtype, shape)

    def close(self):
        assert self._memory is not None, "closed twice"
        self._memory = None
        Buffer.alive -= 1


class FakeDriver:
    """What HeatmapMaker takes from the driver; copies happen when the stream is synchronised."""

    DeviceBuffer = PinnedBuffer = Buffer

    def __init__(self):
        self.queue = []

    def copy_to_host(self, target, address, size, stream):
        assert stream == STREAM
        assert target.nbytes >= size
        self.queue.append(lambda: target.reshape(-1)[:size].__setitem__(
            slice(None), at(address, np.uint8, (size,))
        ))  # fmt: skip

    def synchronize(self, stream=STREAM):
        assert stream == STREAM
        while self.queue:
            self.queue.pop(0)()


class ReferenceKernel:
    """ClampCombine in NumPy, on addresses of the host; runs when the stream is synchronised."""

    def __init__(self, driver):
        self.driver = driver
        self.launches = []

    def plan(self, inputs, heatmaps):
        return make_plan(inputs, heatmaps, processors=PROCESSORS)

    def prepare_workspace(self, plan, workspace, stream):
        parts = plan.workspace

        def clear():
            at(workspace + parts.arrived, np.uint8, (parts.counters,))[:] = 0

        self.driver.queue.append(clear)

    def launch(self, plan, *, stream, **addresses):
        assert stream == STREAM
        self.launches.append((plan, addresses))
        self.driver.queue.append(lambda: self.run(plan, **addresses))

    def run(self, plan, *, heatmaps, valid, workspace, **given):
        i, m, parts = plan.inputs, plan.heatmaps, plan.workspace
        counters = at(workspace + parts.arrived, np.uint8, (parts.counters,))
        assert not counters.any(), "the workspace wasn't prepared"
        cams = self.cams(i, **given)
        flags = at(valid, np.uint8, (i.batch, i.classes))
        for image, place in enumerate(m.places(i.classes) if m.ragged else [None]):
            part = slice(image, image + 1) if m.ragged else slice(None)
            rows, columns = (place.rows, place.columns) if m.ragged else (m.rows, m.columns)
            made, flags[part] = normalised_heatmaps(cams[part], rows, columns, m.interpolation)
            pixel = np.dtype(np.uint8 if m.bytes_ else np.float32)
            start = place.start * pixel.itemsize if m.ragged else 0
            at(heatmaps + start, pixel, made.shape)[...] = to_bytes(made) if m.bytes_ else made
        if "cams" not in given:
            at(workspace + parts.cams, np.float32, cams.shape)[...] = cams

    @staticmethod
    def cams(i, features=None, weights=None, cams=None):
        """The CAMs that are given, or those of features and weights."""
        if cams is not None:
            assert isinstance(i, Cams)
            return at(cams, np.float32, (i.batch, i.classes, i.height, i.width))
        assert features % i.alignment == 0 == weights % i.alignment
        kind = np.float16 if i.half else np.float32
        tail = (i.height, i.width) if i.per_position else ()
        given = at(features, kind, (i.batch, i.channels, i.height, i.width))
        used = at(weights, kind, (i.batch, i.classes, i.channels, *tail))
        return clamp_combine(
            given.astype(np.float32), used.astype(np.float32), i.clamp, signed=i.signed
        )


class HostKernel(ReferenceKernel):
    """clamp_combine.cu itself, compiled for the CPU."""

    def __init__(self, driver, library):
        super().__init__(driver)
        self.library = library

    def run(self, plan, **addresses):
        if plan.places is not None:
            to = addresses["workspace"] + plan.workspace.places
            ctypes.memmove(to, ctypes.addressof(plan.places), ctypes.sizeof(plan.places))
        for launch, argument in plan.launches(*plan.arguments(**addresses)):
            self.library.run(
                launch.kernel.encode(), ctypes.byref(argument),
                (ctypes.c_uint * 3)(*launch.grid), launch.block, launch.shared,
            )  # fmt: skip


class CpuStream:
    """A stream on ONNX Runtime's CPU, with heatmaps in NumPy; says what was done in which order."""

    device, ordinal, handle = "cpu", 0, STREAM

    def __init__(self, monkeypatch):
        from sigcam.runtime.backends.cuda import heatmaps as device_heatmaps

        self.driver = FakeDriver()
        monkeypatch.setattr(device_heatmaps, "driver", self.driver)
        self.kernel = ReferenceKernel(self.driver)
        self._heatmaps = HeatmapMaker(self.kernel)
        self._staged = {}
        self.done = []

    @contextmanager
    def current(self):
        self.done.append("enter")
        try:
            yield
        finally:
            self.done.append("leave")

    def stage(self, feeds):
        self.done.append("stage")
        for name, array in feeds.items():
            self._staged[name] = array.copy()
        return {name: self._staged[name].ctypes.data for name in feeds}

    def fetch(self, outputs):
        """Copies are enqueued behind what is on the stream, to memory that is full of poison."""
        self.done.append("fetch")
        views = {}
        for name, one in outputs.items():
            view = views[name] = np.full(one.nbytes, 0xAB, np.uint8)
            if one.nbytes:
                self.driver.copy_to_host(view, one.address, one.nbytes, STREAM)
            views[name] = view.view(one.dtype).reshape(one.shape)
        return views

    def enqueue_heatmaps(self, source, request):
        self.done.append("heatmaps")
        return self._heatmaps.enqueue(source, request, self.handle)

    def synchronize(self):
        self.done.append("synchronize")
        self.driver.synchronize()

    def close(self):
        self.done.append("close")
        self._heatmaps.close()


def bound_on_cpu(path, stream):
    """A BoundBackend on ONNX Runtime's CPU provider."""
    import onnxruntime as ort

    from sigcam.runtime.backends.base import BackendOptions
    from sigcam.runtime.backends.onnxruntime.common import open_session, session_options
    from sigcam.runtime.backends.onnxruntime.io_binding import BoundBackend

    class OnCpu(BoundBackend):
        name = "bound"

        @classmethod
        def _open(cls, model, options):
            settings = session_options(ort, options)
            session = open_session(ort, model, settings, ["CPUExecutionProvider"])
            return cls(session, stream, ort.RunOptions())

    return OnCpu.open(path, BackendOptions(threads=1))


def fake_onnxruntime(**changes):
    """A module onnxruntime whose GPU build loads and whose sessions are on the CPU."""
    import onnxruntime as real

    def opened(path, sess_options, providers, enable_fallback):
        if providers != ["CPUExecutionProvider"]:  # which only looks at the file
            module.asked = providers
        assert enable_fallback == 0
        return real.InferenceSession(path, sess_options, providers=["CPUExecutionProvider"])

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    module = SimpleNamespace(
        __version__="9.9", __file__=real.__file__, cuda_version="13.0",
        SessionOptions=real.SessionOptions, RunOptions=real.RunOptions,
        InferenceSession=opened, get_available_providers=lambda: names,
        preload_dlls=lambda: print("looked for libraries"),
    )  # fmt: skip
    for name, value in changes.items():
        setattr(module, name, value)
    return module
