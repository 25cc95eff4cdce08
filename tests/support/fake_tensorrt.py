"""Stand-ins for TensorRT and the CUDA driver, without a GPU.

An "engine" is an ONNX model, run by ONNX Runtime on the addresses that were set. Streams are
lazy: nothing runs before they are synchronised, so a missing wait shows as poison. While a
stream is captured, work goes into the graph.
"""

import hashlib
import itertools
import json
import threading
import weakref
from contextlib import contextmanager
from enum import Enum
from types import SimpleNamespace

import numpy as np
import onnx

from sigcam.core.artifact import read_spec
from sigcam.core.digest import ZEROS, find_digest, seal
from sigcam.core.model_file import ModelFile
from sigcam.core.sidecar import Sidecar, here, write_pair
from sigcam.kernels.calls import DeviceInfo
from sigcam.kernels.errors import CudaUnavailableError, KernelError
from tests.support.device_doubles import Buffer, ReferenceKernel, at
from tests.support.tiny import artifact_graph, tiny_spec, write

VERSION = "10.13.3.9"
GPU = DeviceInfo(0, "Fake GPU", (8, 6), 5)
SHAPES = {
    "image": ((1, 56, 56, 3), (1, 56, 56, 3), (4, 56, 56, 3)),
    "class_ids": ((1, 1), (1, 1), (4, 3)),
}


def write_engine(folder, package="tensorrt", capabilities=("8.6",), **changes):
    """An engine whose bytes are the tiny artifact's, its sidecar, and the model beside them."""
    spec = tiny_spec(**{"profile": "split", **changes})
    model = write(onnx, artifact_graph(onnx, spec), folder / "model.onnx", spec.to_json())
    data = model.read_bytes()
    engine = folder / "model.engine"
    sidecar = Sidecar(
        spec=read_spec(model), sha256=hashlib.sha256(data).hexdigest(), size=len(data),
        package=package,
        version=VERSION, platform=here(), capabilities=capabilities, shapes=SHAPES,
        gpu=GPU.name if package == "tensorrt" else None, precision="float32", tf32=False,
        source=model.name, source_sha256=ModelFile(model).contents_sha256(),
    )  # fmt: skip
    write_pair(engine, memoryview(data), sidecar)
    return engine


class FakeCuda:
    """What the runtime takes from `sigcam.kernels.driver`."""

    DeviceBuffer = PinnedBuffer = Buffer
    KernelError = KernelError

    def __init__(self):
        self.streams = {}
        self.launched = self.captured = self.contexts = 0
        self.missing = None
        self.capture_fails = None  # "begin" or "end"
        self.engines = weakref.WeakSet()
        cuda = self

        class Stream:
            numbers = itertools.count(1)

            def __init__(self):
                self.handle = next(self.numbers)
                self.queue, self.capturing = [], None
                cuda.streams[self.handle] = self

            def add(self, work):
                (self.queue if self.capturing is None else self.capturing).append(work)

            def synchronize(self):
                assert self.capturing is None
                while self.queue:
                    self.queue.pop(0)()

            def close(self):
                assert not self.queue
                del cuda.streams[self.handle]

        class Graph:
            @classmethod
            @contextmanager
            def capture(cls, stream):
                assert not stream.queue
                cuda.fail_at("begin")
                graph, stream.capturing = cls(), []
                try:
                    yield graph
                    cuda.fail_at("end")
                    graph.work = stream.capturing
                    cuda.captured += 1
                finally:
                    stream.capturing = None

            def launch(self, stream):
                cuda.launched += 1
                stream.queue += self.work

            def close(self):
                self.work = None

        self.Stream, self.Graph = Stream, Graph

    def fail_at(self, point):
        if self.capture_fails == point:
            raise KernelError(f"the {point} of the capture failed: CUDA_ERROR_UNKNOWN")

    def available(self):
        if self.missing:
            raise CudaUnavailableError(self.missing)

    def retain_primary_context(self, ordinal):
        cuda = self

        class Context:
            device = GPU
            depth = threading.local()

            def __init__(self):
                cuda.contexts += 1

            def __enter__(self):
                self.depth.value = getattr(self.depth, "value", 0) + 1
                return self

            def __exit__(self, *exc):
                self.depth.value -= 1

            def close(self):
                cuda.contexts -= 1
                if cuda.contexts == 0:
                    assert not cuda.engines, "to be freed in a context that is gone"

        return Context()

    def stream_of(self, stream):
        return self.streams[stream] if isinstance(stream, int) else stream

    def synchronize(self, stream):
        self.stream_of(stream).synchronize()

    def copy_to_device(self, address, source, size, stream):
        self._copy(address, source, size, stream)

    def copy_to_host(self, target, address, size, stream):
        target = target if isinstance(target, int) else target.ctypes.data
        self._copy(target, address, size, stream)

    def copy_on_device(self, to, source, size, stream):
        self._copy(to, source, size, stream)

    def _copy(self, to, source, size, stream):
        def work():
            at(to, np.uint8, (size,))[:] = at(source, np.uint8, (size,))

        self.stream_of(stream).add(work)


class FakeKernel(ReferenceKernel):
    """ClampCombine in NumPy, on a fake stream."""

    def prepare_workspace(self, plan, workspace, stream):
        stream = self.driver.stream_of(stream)
        assert stream.capturing is None, "the counters must be cleared before the capture"
        parts = plan.workspace
        stream.add(lambda: at(workspace, np.uint8, (parts.counters,)).fill(0))

    def launch(self, plan, *, stream, **addresses):
        self.driver.stream_of(stream).add(lambda: self.run(plan, **addresses))


class DataType(Enum):
    """TensorRT's names."""

    UINT8, FLOAT, HALF, INT64, BF16 = range(5)


_KINDS = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT", "tensor(int64)": "INT64"}


class Logger:
    """The base class of loggers."""

    INTERNAL_ERROR, ERROR, WARNING = range(3)


class FakeContext:
    """Checks that shapes and addresses are set before the engine is enqueued."""

    def __init__(self, engine, settled):
        self.engine, self.settled, self.memory = engine, settled, None
        self.shapes, self.addresses = {}, {}
        self.up_to_date = None  # with these shapes, since a run that wasn't captured
        self.busy = threading.Lock()

    def set_input_shape(self, name, shape):
        low, _, high = self.engine.module.shapes[name]
        if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            self.engine.module.logger.log(Logger.ERROR, f"{name} is out of range")
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_device_memory(self, memory, size):
        assert memory % 256 == 0
        assert size >= self.engine.device_memory_size_v2
        self.memory = memory

    def infer_shapes(self):
        return sorted(self.engine.inputs.keys() - self.shapes.keys())

    def get_tensor_shape(self, name):
        sizes = {"B": self.shapes["image"][0], "K": 1}
        if "class_ids" in self.shapes:
            sizes["K"] = self.shapes["class_ids"][1]
        if name in self.engine.module.depends_on_data:
            sizes["B"] = -1
        return [sizes.get(n, n) for n in self.engine.values[name].shape]

    def set_tensor_address(self, name, address):
        assert address % 256 == 0
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, handle):
        assert self.engine.module.cuda.streams[handle].capturing is None
        return self.engine.module.can_capture

    def execute_async_v3(self, handle):
        module = self.engine.module
        stream = module.cuda.streams[handle]
        assert self.addresses.keys() == self.engine.values.keys()
        if module.fails or (stream.capturing is not None and not module.can_capture):
            module.logger.log(Logger.ERROR, "not permitted")
            return False
        if stream.capturing is None:
            self.up_to_date = dict(self.shapes)
        assert self.up_to_date == self.shapes, "a graph can't hold the update for new shapes"
        module.executed += 1
        shapes = {name: self.get_tensor_shape(name) for name in self.engine.values}
        shapes.update(self.shapes)
        addresses = dict(self.addresses)  # those of now, whatever is set before it runs
        assert self.memory is not None, "this context has no memory for its values"
        # The intermediate values of contexts on two streams would overwrite each other.
        owner = module.memory_of.get(self.memory)
        assert owner in (None, handle) or owner not in module.cuda.streams
        module.memory_of[self.memory] = handle
        stream.add(lambda: self.run(shapes, addresses))
        return True

    def run(self, shapes, addresses):
        assert self.busy.acquire(blocking=False), "two threads use one context"
        at(self.memory, np.uint8, (self.engine.device_memory_size_v2,)).fill(0xEE)
        try:
            feeds = {
                name: at(addresses[name], self.engine.dtype(name), shapes[name])
                for name in self.engine.inputs
            }
            found = self.engine.session.run(None, feeds)
            for value, array in zip(self.engine.session.get_outputs(), found, strict=True):
                kind = self.engine.dtype(value.name)
                assert list(array.shape) == list(shapes[value.name])
                at(addresses[value.name], kind, array.shape)[...] = array
        finally:
            self.busy.release()


class FakeRuntimeCache:
    """TensorRT-RTX's runtime cache, whose blobs begin with b"ok"."""

    def __init__(self):
        self.kernels = set()

    def deserialize(self, blob):
        if blob[:2] == b"ok":
            self.kernels |= set(blob[3:].decode().split())
        return blob[:2] == b"ok"

    def serialize(self):
        return b"ok " + " ".join(sorted(self.kernels)).encode()


class FakeRuntimeConfig:
    """IRuntimeConfig: the strategy and the cache that contexts are made with."""

    def __init__(self, module):
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.create_runtime_cache, self.cache = FakeRuntimeCache, None
        self.allocation = "static"

    def set_execution_context_allocation_strategy(self, strategy):
        self.allocation = strategy

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True


class ComputeCapability(Enum):
    """Those of TensorRT-RTX 1.7."""

    NONE, CURRENT, SM75, SM80, SM86, SM89, SM120, SM121 = range(8)


class FakeEngine:
    """An ONNX model behind ICudaEngine's methods."""

    def __init__(self, module, data):
        import onnxruntime as ort

        self.module = module
        module.cuda.engines.add(self)
        self.session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.values = {**self.inputs, **{v.name: v for v in self.session.get_outputs()}}
        self.num_io_tensors = len(self.values)
        self.device_memory_size_v2 = 1000

    def get_tensor_name(self, index):
        return list(self.values)[index]

    def get_tensor_dtype(self, name):
        if name in self.module.half:
            return DataType.HALF
        if name in self.module.lacks:
            return DataType.BF16
        return DataType[_KINDS[self.values[name].type]]

    def dtype(self, name):
        kinds = {DataType.UINT8: "u1", DataType.FLOAT: "f4", DataType.INT64: "i8"}
        return np.dtype(kinds.get(self.get_tensor_dtype(name), "f2"))

    def get_tensor_mode(self, name):
        return "in" if name in self.inputs else "out"

    def get_tensor_shape(self, name):
        return [n if isinstance(n, int) else -1 for n in self.values[name].shape]

    def get_tensor_profile_shape(self, name, profile):
        assert profile == 0
        return self.module.shapes[name]

    def create_runtime_config(self):
        return FakeRuntimeConfig(self.module)

    def create_execution_context(self, given):
        runtime_config = given if self.module.is_rtx else None
        assert (given.allocation if self.module.is_rtx else given) == "by the user"
        strategy = getattr(runtime_config, "dynamic_shapes_kernel_specialization_strategy", None)
        if self.module.no_memory:
            return None
        self.module.settled.append(strategy == "eager")
        if runtime_config is not None:
            runtime_config.cache.kernels.add(strategy)
        made = FakeContext(self, strategy == "eager")
        self.module.contexts.add(made)
        return made


def fake_module(cuda, shapes, is_rtx=False):
    """A module `tensorrt` (or `tensorrt_rtx`) that runs engines."""

    class Runtime:
        engine_header_size = 64

        def __init__(self, logger):
            module.logger = module.logger or logger  # the first one is used by all
            cuda.engines.add(self)

        def deserialize_cuda_engine(self, data):
            if module.refuses:
                module.logger.log(Logger.ERROR, "a broken engine")
                return None
            if module.warns:
                module.logger.log(Logger.WARNING, module.warns)
            return FakeEngine(module, data)

        def get_engine_validity(self, header):
            assert len(header) == 64
            return module.validity

    class Diagnostics(Enum):
        VERSION_MISMATCH, UNSUPPORTED_CC, OLD_CUDA_DRIVER, INSUFFICIENT_GPU_MEMORY = 1, 2, 4, 16

        def __int__(self):
            return self.value

    class Validity(Enum):
        VALID, SUBOPTIMAL, INVALID = 0, 1, 2

    module = SimpleNamespace(
        __version__=VERSION, ILogger=Logger, Runtime=Runtime, cuda=cuda, shapes=shapes,
        ComputeCapability=ComputeCapability, memory_of={},
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED="by the user"),
        TensorIOMode=SimpleNamespace(INPUT="in"), EngineValidity=Validity,
        EngineInvalidityDiagnostics=Diagnostics, validity=(Validity.VALID, 0),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        half=set(), is_rtx=is_rtx, can_capture=True, fails=False, refuses=False, no_memory=False,
        executed=0, settled=[], contexts=weakref.WeakSet(), logger=None, depends_on_data=set(),
        lacks=set(), warns=None,
    )  # fmt: skip
    return module


def altered(path, **changes):
    """Changes fields of a sidecar, with a digest that fits; None removes one."""
    data = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del data[name]
        else:
            data[name] = value
    if "digest" in data:
        data["digest"] = ZEROS
    raw = json.dumps(data).encode()
    place = find_digest(raw)
    path.write_bytes(raw if place is None else seal(raw, place))
