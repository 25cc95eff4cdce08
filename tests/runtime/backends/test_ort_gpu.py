"""ONNX Runtime's GPU providers: what is asked of them, and what is said where they are missing.

The providers themselves can't run here; a double of the module stands for a GPU build.
"""

import sys
from typing import ClassVar

import numpy as np
import pytest

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    StorageError,
)
from sigcam.core.model_file import ModelFile
from sigcam.kernels import driver
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.onnxruntime import cuda as ort_cuda
from sigcam.runtime.backends.onnxruntime.cuda import INDEX_ARITHMETIC, assigned_nodes, refuse_cpu
from sigcam.runtime.backends.onnxruntime.tensorrt import engine_key
from sigcam.runtime.session import load
from tests.support.device_doubles import CpuStream, fake_onnxruntime
from tests.support.tiny import with_data_file

ort = pytest.importorskip("onnxruntime")

PROVIDERS = {"ort-cuda": "CUDAExecutionProvider", "ort-tensorrt": "TensorrtExecutionProvider"}


class Recording(CpuStream):
    """A stream that tells what a backend did with it."""

    opened: ClassVar = []

    def __init__(self, monkeypatch, ordinal):
        super().__init__(monkeypatch)
        self.asked = ordinal
        self.loaded = False
        Recording.opened.append(self)

    def load_kernels(self):
        self.loaded = True


@pytest.fixture
def gpu(monkeypatch):
    """gpu(**changes of the module) -> the module; streams in Recording.opened."""
    Recording.opened = []
    monkeypatch.setattr(ort_cuda, "CudaStream", lambda ordinal: Recording(monkeypatch, ordinal))

    def install(**changes):
        module = fake_onnxruntime(**changes)
        monkeypatch.setitem(sys.modules, "onnxruntime", module)
        return module

    return install


class Session:
    """A session that has what it should have of the GPU."""

    def __init__(self, real, providers, nodes):
        self.real = real
        self.get_providers = lambda: providers
        self.nodes = nodes

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_provider_graph_assignment_info(self):
        return [Subgraph(name, kinds) for name, kinds in self.nodes.items()]


class Subgraph:
    def __init__(self, name, kinds):
        self.ep_name = name
        self.kinds = kinds

    def get_nodes(self):
        return [type("Node", (), {"op_type": kind}) for kind in self.kinds]


def on_gpu(module, nodes):
    """Makes the module's sessions say that the GPU runs `nodes`."""
    cpu = module.InferenceSession

    def opened(path, sess_options, providers, enable_fallback):
        key = "session.record_ep_graph_assignment_info"
        assert sess_options.get_session_config_entry(key) == "1"
        real = cpu(path, sess_options, providers, enable_fallback)
        return Session(real, [p if isinstance(p, str) else p[0] for p in providers], nodes)

    module.InferenceSession = opened


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_a_build_without_the_provider(name, make_artifact):
    if PROVIDERS[name] in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has the provider")
    with pytest.raises(BackendUnavailableError) as caught:
        load(make_artifact(), name)
    text = str(caught.value)
    assert f"needs ONNX Runtime's {PROVIDERS[name]}" in text
    assert "it has " in text
    assert "CPUExecutionProvider" in text
    assert 'pip install "sigcam[gpu]"' in text


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_no_driver(name, make_artifact, monkeypatch):
    def missing():
        raise CudaUnavailableError("there is no libcuda")

    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime())
    monkeypatch.setattr(driver, "available", missing)
    with pytest.raises(BackendUnavailableError, match="there is no libcuda") as caught:
        load(make_artifact(), name)
    assert f"the backend {name!r} can't run here" in str(caught.value)
    assert "CUDAExecutionProvider, CPUExecutionProvider; the backend 'ort'" in str(caught.value)


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_onnx_runtimes_own_fallback_is_refused(name, make_artifact, gpu, capsys):
    gpu()  # its sessions run on the CPU, whatever was asked for
    with pytest.raises(BackendUnavailableError) as caught:
        load(make_artifact(), name)
    text = str(caught.value)
    assert f"the {PROVIDERS[name]} failed to start" in text
    assert "would have run with CPUExecutionProvider" in text
    assert "was built for CUDA 13.0" in text
    assert Recording.opened[0].done == ["close"]
    printed = capsys.readouterr()
    assert printed.out == ""  # results go there
    assert "looked for libraries" in printed.err


def test_a_provider_that_raises_while_it_is_set_up(make_artifact, gpu):
    def fails(*args, **kwargs):
        raise RuntimeError("install TensorRT")

    gpu(InferenceSession=fails)
    with pytest.raises(BackendUnavailableError, match=r"can't set up Tensorrt.*install TensorRT"):
        load(make_artifact(), "ort-tensorrt")
    assert Recording.opened[0].done == ["close"]


def test_the_library_that_is_missing_is_named(make_artifact, gpu, tmp_path):
    (tmp_path / "capi").mkdir()
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.write_bytes(b"not a library")
    gpu(__file__=str(tmp_path / "__init__.py"))
    with pytest.raises(BackendUnavailableError, match=r"libonnxruntime_providers_cuda\.so"):
        load(make_artifact(), "ort-cuda")


def test_what_is_asked_of_the_cuda_provider(make_artifact, gpu):
    module = gpu()
    on_gpu(module, {"CUDAExecutionProvider": ["Conv", "Relu"], "CPUExecutionProvider": ["Shape"]})
    with load(make_artifact(profile="split"), "ort-cuda", device=3, threads=1) as session:
        [stream] = Recording.opened
        assert stream.asked == 3
        assert stream.loaded
        (name, options), last = module.asked
        assert (name, last) == ("CUDAExecutionProvider", "CPUExecutionProvider")
        assert options == {"device_id": "3", "user_compute_stream": "7", "use_tf32": "0"}
        assert session._model.backend.nodes == {
            "CUDAExecutionProvider": 2,
            "CPUExecutionProvider": 1,
        }
        [one] = session.explain(np.full((40, 60, 3), (9, 99, 9), np.uint8), classes="green")
        assert one._made[0].shape == (40, 60)
        assert one.label == "green"
    assert stream.done[-1] == "close"


def test_kernels_are_loaded_only_for_the_profile_split(make_artifact, gpu):
    on_gpu(gpu(), {"CUDAExecutionProvider": ["Conv"]})
    with load(make_artifact(), "ort-cuda") as session:
        assert not Recording.opened[0].loaded
        [one] = session.explain(np.full((40, 60, 3), (9, 99, 9), np.uint8), classes="green")
        assert one._made is None
        assert one.heatmap.shape == (40, 60)


def test_what_is_asked_of_the_tensorrt_provider(make_artifact, gpu, tmp_path):
    module = gpu()
    on_gpu(module, {"TensorrtExecutionProvider": ["Conv"], "CUDAExecutionProvider": ["Where"]})
    path = make_artifact()
    with load(path, "ort-tensorrt", precision="fp16", cache=tmp_path):
        (first, options), (second, _), last = module.asked
    assert [first, second, last] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    folder = tmp_path / engine_key(ModelFile(path), "9.9", "fp16")
    assert folder.is_dir()
    assert options == {
        "device_id": "0",
        "user_compute_stream": "7",
        "trt_fp16_enable": "1",
        "trt_bf16_enable": "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tmp_path),
    }


@pytest.mark.parametrize("named", [False, True])
def test_the_engine_cache_is_the_users_by_default(make_artifact, gpu, tmp_path, monkeypatch, named):
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("SIGCAM_CACHE_DIR", raising=False)
    if named:
        monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path / "chosen"))
    on_gpu(gpu(), {"TensorrtExecutionProvider": ["Conv"]})
    folder = "chosen" if named else "sigcam"
    with load(make_artifact(), "ort-tensorrt"):
        assert len(list(tmp_path.rglob(f"{folder}/ort-tensorrt/*-ort9.9-fp32"))) == 1


def test_engines_of_other_weights_lie_elsewhere(make_artifact):
    path = make_artifact(head="mlp")
    alone = engine_key(ModelFile(path), "1.24", "fp32")
    assert engine_key(ModelFile(path), "1.25", "fp32") != alone
    assert engine_key(ModelFile(path), "1.24", "fp16") != alone
    beside = with_data_file(path)
    first = engine_key(ModelFile(path), "1.24", "fp32")
    beside.write_bytes(bytes(len(beside.read_bytes())))
    assert len({alone, first, engine_key(ModelFile(path), "1.24", "fp32")}) == 3
    with pytest.raises(ArtifactError, match="cannot read"):
        engine_key(ModelFile(path.with_name("none.onnx")), "1.24", "fp32")


def test_an_engine_cache_that_cannot_be_made(make_artifact, gpu, tmp_path):
    gpu()
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StorageError, match="cannot make the engine cache"):
        load(make_artifact(), "ort-tensorrt", cache=file)
    assert Recording.opened[0].done == ["close"]


def test_a_network_on_the_cpu_is_refused(make_artifact, gpu):
    nodes = {"CUDAExecutionProvider": ["Conv"], "CPUExecutionProvider": ["Shape", "Resize"]}
    on_gpu(gpu(), nodes)
    with pytest.raises(BackendError, match="on the CPU, not on the GPU: 1 x Resize; "):
        load(make_artifact(), "ort-cuda")


def test_the_nodes_of_a_real_session_are_seen(make_artifact):
    """ONNX Runtime's own record: everything is on the CPU here, so it must be refused."""
    settings = ort.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    path = str(make_artifact())
    session = ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    nodes = assigned_nodes(session)
    assert ("CPUExecutionProvider", "AveragePool") in nodes
    with pytest.raises(BackendError, match="1 x AveragePool"):
        refuse_cpu(session, "ort-cuda")


def test_index_arithmetic_holds_no_network():
    network = {"Conv", "Gemm", "MatMul", "Relu", "Softmax", "AveragePool", "Resize", "LSTM"}
    assert not network & INDEX_ARITHMETIC


@pytest.mark.parametrize("name", list(PROVIDERS))
def test_on_a_gpu(name, make_artifact):
    """Runs where there is one: the same as on the CPU."""
    try:
        backend = backend_class(name).open(make_artifact(profile="split"), BackendOptions())
    except BackendUnavailableError as exc:
        pytest.skip(str(exc))
    backend.close()
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    path = make_artifact(profile="split")
    with load(path, name) as session, load(path, "ort") as plain:
        for got, want in zip(
            session.explain(image, top_k=3), plain.explain(image, top_k=3), strict=True
        ):
            assert got.class_id == want.class_id
            np.testing.assert_allclose(got.heatmap, want.heatmap, atol=1e-3)
