"""ONNX Runtime's GPU providers: what is asked of them, and what is said where they are missing.

The providers themselves can't run here; a double of the module stands for a GPU build.
"""

import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from packaging.requirements import Requirement

from sigcam.core.artifact import read_spec
from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    StorageError,
    UsageError,
)
from sigcam.core.model_file import ModelFile
from sigcam.kernels import driver
from sigcam.kernels.errors import CudaUnavailableError
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.cuda.source import DeviceTensor
from sigcam.runtime.backends.onnxruntime import cuda as ort_cuda
from sigcam.runtime.backends.onnxruntime import libraries
from sigcam.runtime.backends.onnxruntime.cuda import INDEX_ARITHMETIC, assigned_nodes, refuse_cpu
from sigcam.runtime.backends.onnxruntime.tensorrt import Largest, engine_key
from sigcam.runtime.session import load
from tests.support.device_doubles import CpuStream, fake_onnxruntime
from tests.support.paths import ROOT
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
        if len(providers) > 1:  # one that only looks at the file needn't tell
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
    extra = {"ort-cuda": "gpu"}.get(name, name)
    assert f'pip install "sigcam[{extra}]"' in text


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
    module = gpu()
    cpu = module.InferenceSession

    def fails(path, sess_options, providers, **kwargs):
        if len(providers) > 1:
            raise RuntimeError("install TensorRT")
        return cpu(path, sess_options, providers, **kwargs)

    module.InferenceSession = fails
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
        assert options == {
            "device_id": "3", "user_compute_stream": "7", "use_tf32": "0",
            "cudnn_conv_algo_search": "HEURISTIC",
        }  # fmt: skip
        assert session._model.backend.nodes == {
            "CUDAExecutionProvider": 2,
            "CPUExecutionProvider": 1,
        }
        [one] = session.explain(np.full((40, 60, 3), (9, 99, 9), np.uint8), classes="green")
        assert one._made[0].shape == (40, 60)
        assert one.label == "green"
    assert stream.done[-1] == "close"


@pytest.mark.parametrize("kind", ["float32", "uint8", "lazy"])
def test_kernels_are_loaded_where_heatmaps_are_made(make_artifact, gpu, kind):
    """A graph's own CAMs, as they are, need none; nor does a head graph, which gives CAMs too."""
    on_gpu(gpu(), {"CUDAExecutionProvider": ["Conv"]})
    with load(make_artifact(head_input="features"), "ort-cuda", heatmaps=kind) as session:
        assert Recording.opened[0].loaded == (kind != "lazy")
        [one] = session.explain(np.full((40, 60, 3), (9, 99, 9), np.uint8), classes="green")
        assert (one._made is None) == (kind == "lazy")
        assert one.heatmap.shape == (40, 60)
        assert len(one.for_classes([0, 2])) == 2
        head = Recording.opened[1:]
        assert head
        assert not any(stream.loaded for stream in head)


def test_what_is_asked_of_the_tensorrt_provider(make_artifact, gpu, tmp_path):
    module = gpu()
    on_gpu(module, {"TensorrtExecutionProvider": ["Conv"], "CUDAExecutionProvider": ["Where"]})
    path = make_artifact()
    with load(path, "ort-tensorrt", precision="fp16", cache=tmp_path):
        (first, options), (second, _), last = module.asked
    assert [first, second, last] == [
        "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider",
    ]  # fmt: skip
    sizes = {"image": Largest((8,), (56, 56, 3)), "class_ids": Largest((8, 10), ())}
    folder = tmp_path / engine_key(ModelFile(path), "9.9", "fp16", sizes)
    assert folder.name.endswith("-ort9.9-fp16-8-10")
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
        "trt_profile_min_shapes": "image:1x56x56x3,class_ids:1x1",
        "trt_profile_opt_shapes": "image:8x56x56x3,class_ids:8x1",
        "trt_profile_max_shapes": "image:8x56x56x3,class_ids:8x10",
    }


@pytest.mark.parametrize("name", list(PROVIDERS))
@pytest.mark.parametrize("search", ["exhaustive", "default"])
def test_the_search_for_convolutions_can_be_chosen(make_artifact, gpu, tmp_path, name, search):
    module = gpu()
    on_gpu(module, {PROVIDERS[name]: ["Conv"]})
    cache = {"cache": tmp_path} if name == "ort-tensorrt" else {}
    with load(make_artifact(), name, conv_search=search, **cache):
        asked = dict(one for one in module.asked if isinstance(one, tuple))
        assert asked["CUDAExecutionProvider"]["cudnn_conv_algo_search"] == search.upper()


def test_a_search_that_is_none(make_artifact):
    with pytest.raises(UsageError, match="one of heuristic, exhaustive, default, got 'fast'"):
        load(make_artifact(), "ort-cuda", conv_search="fast")
    with pytest.raises(UsageError, match="'ort' has no option conv_search"):
        load(make_artifact(), "ort", conv_search="exhaustive")


def test_engines_are_for_the_sizes_that_are_asked_for(make_artifact, gpu, tmp_path):
    module = gpu()
    on_gpu(module, {"TensorrtExecutionProvider": ["Conv"]})
    path = make_artifact(profile="split")
    image = np.full((40, 60, 3), (9, 99, 9), np.uint8)
    names = list(read_spec(path).class_names)
    with load(path, "ort-tensorrt", cache=tmp_path, batch_size=2, max_classes=3) as session:
        wishes = dict(module.asked[:1])["TensorrtExecutionProvider"]
        assert wishes["trt_profile_max_shapes"] == "image:2x56x56x3,class_ids:2x3"
        assert len(session.explain([image] * 5, classes=names[:3])) == 5  # in batches of 2
        with pytest.raises(UsageError, match="built for 3 classes for each image at most, got 4"):
            session.explain(image, classes=names[:4])
        backend = session._model.backend
        feeds = {"image": np.zeros((3, 56, 56, 3), np.uint8), "class_ids": np.zeros((3, 1), int)}
        with pytest.raises(UsageError, match=r"for 2 images at most, got 3.*batch_size=3"):
            backend.infer(feeds)
        on_device = DeviceTensor(4096, np.dtype(np.uint8), (3, 56, 56, 3))
        for tensor, ids, said in (
            (on_device, np.zeros((3, 1), int), r"for 2 images at most, got 3.*batch_size=3"),
            (replace(on_device, shape=(1, 56, 56, 3)), np.zeros((1, 4), int), "max_classes=4"),
        ):
            with pytest.raises(UsageError, match=said), backend.device_run(tensor, ids, [], 0):
                pass
        assert session.explain(image, classes="green")[0].label == "green"  # it works on afterwards
    backend = backend_class("ort-tensorrt").open(path, BackendOptions(cache=tmp_path))
    assert not any("profile" in name for name in dict(module.asked[:1]).popitem()[1])
    assert len(backend.infer(feeds)["logits"]) == 3  # nothing was said of sizes
    backend.close()


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_a_graph_that_is_divided_gets_no_sizes_and_that_is_told(
    make_artifact, gpu, tmp_path, caplog, kind
):
    module = gpu()
    on_gpu(module, {"TensorrtExecutionProvider": ["Conv"], "CUDAExecutionProvider": ["Where"]})
    whole, tried = module.InferenceSession, []

    def divided(path, sess_options, providers, enable_fallback):
        wishes = dict(one for one in providers if isinstance(one, tuple))
        if "trt_profile_min_shapes" in wishes.get("TensorrtExecutionProvider", {}):
            tried.append(wishes)
            raise kind("EP_FAIL: Following input(s) has no associated shape profiles provided: x")
        return whole(path, sess_options, providers, enable_fallback)

    module.InferenceSession = divided
    with load(make_artifact(), "ort-tensorrt", cache=tmp_path) as session:
        assert len(tried) == 1
        assert session._model.backend.sizes == {}
    assert "at each size outside of those seen" in caplog.text


@pytest.mark.parametrize("version", ["1.23.2", "1.9.0", "0.99"])
@pytest.mark.parametrize("name", list(PROVIDERS))
def test_an_onnx_runtime_that_cannot_tell_what_runs_where(make_artifact, gpu, version, name):
    gpu(__version__=version)
    with pytest.raises(BackendUnavailableError, match=r"1\.24 or later.*installed is") as caught:
        load(make_artifact(), name)
    assert "onnxruntime-gpu>=1.24,<1.27" in str(caught.value)  # the last for CUDA 12
    assert not Recording.opened


class Libraries:
    """What the system's loader finds."""

    def __init__(self, monkeypatch, *there):
        self.there, self.asked = set(there), []
        monkeypatch.setattr(libraries, "ctypes", SimpleNamespace(CDLL=self.load))
        loader = SimpleNamespace(import_module=self.asked.append)
        monkeypatch.setattr(libraries, "importlib", loader)

    def load(self, name):
        self.asked.append(name)
        if name not in self.there:
            raise OSError(f"{name}: cannot open shared object file")


@pytest.fixture
def linked(gpu, tmp_path):
    """linked(bytes, **changes): an ONNX Runtime with these bytes for its TensorRT provider."""

    def install(data, **changes):
        (tmp_path / "capi").mkdir()
        file = tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"
        file.write_bytes(data)
        return gpu(__file__=str(tmp_path / "__init__.py"), **changes)

    return install


TABLE = b"\0libcublas.so.13\0libnvinfer.so.10\0libnvonnxparser.so.10\0libnvinfer_plugin.so.9\0"


def test_the_tensorrt_that_a_provider_was_linked_with(tmp_path):
    for data, want in (
        (TABLE, {"libnvinfer.so.10": 10, "libnvonnxparser.so.10": 10}),
        (b"x\0nvinfer_10.dll\0y", {"nvinfer_10.dll": 10}),
        (b"\0libnvinfer.so.11\0", {"libnvinfer.so.11": 11}),
        (b"libnvinfer.so.10 is text", {}),
        (b"", {}),
    ):
        file = tmp_path / "library"
        file.write_bytes(data)
        assert libraries.needed_tensorrt(file) == want


def test_tensorrts_own_loader_comes_first(make_artifact, linked, monkeypatch, tmp_path):
    on_gpu(linked(TABLE), {"TensorrtExecutionProvider": ["Conv"]})
    found = Libraries(monkeypatch, "libnvinfer.so.10", "libnvonnxparser.so.10")
    with load(make_artifact(), "ort-tensorrt", cache=tmp_path):
        assert found.asked[:3] == ["tensorrt_libs", "libnvinfer.so.10", "libnvonnxparser.so.10"]


@pytest.mark.parametrize(
    ("cuda", "major", "advice"),
    [
        ("13.0", 10, ('"tensorrt>=10.13,<11"', '"sigcam[ort-tensorrt]"')),
        ("12.8", 10, ('"tensorrt-cu12>=10.13,<11"', '"sigcam[ort-tensorrt-cu12]"')),
        ("13.0", 11, ('"tensorrt>=11,<12"', '"sigcam[ort-tensorrt]"')),
    ],
)
def test_a_tensorrt_of_another_version(
    make_artifact, linked, monkeypatch, tmp_path, cuda, major, advice
):
    module = linked(TABLE.replace(b".10", f".{major}".encode()), cuda_version=cuda)
    opened = []
    module.InferenceSession = lambda *args, **kwargs: opened.append(args)
    Libraries(monkeypatch, "libnvinfer.so.9")
    installed = {"tensorrt-cu13-libs": "11.4.0.106"}

    def version(name):
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    with pytest.raises(BackendUnavailableError) as caught:
        load(make_artifact(), "ort-tensorrt", cache=tmp_path)
    text = str(caught.value)
    assert f"Provider was built for TensorRT {major}: it needs libnvinfer.so.{major}" in text
    assert "installed is tensorrt-cu13-libs 11.4.0.106" in text
    for one in advice:
        assert f"pip install {one}" in text
    assert not opened  # it isn't tried
    assert Recording.opened[0].done == ["close"]


def test_the_extras_belong_together():
    """What errors advise is what pyproject.toml names, and pip can follow."""
    tomllib = pytest.importorskip("tomllib")
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = tree["project"]["optional-dependencies"]
    for end, first in (("", "10.13.2.6"), ("-cu12", "10.13.0.35")):
        [wanted] = [Requirement(one) for one in extras[f"ort-tensorrt{end}"] if "tensorrt" in one]
        assert wanted.name == f"tensorrt{end}"
        assert wanted.specifier.contains(first)
        assert wanted.specifier.contains("10.16.1.11")
        assert not wanted.specifier.contains("11.0.0.114")
        assert not wanted.specifier.contains("10.12.0.36")
        assert f"sigcam[gpu{end}]" in extras[f"ort-tensorrt{end}"]
    [runtime] = [Requirement(one) for one in extras["gpu-cu12"] if "onnxruntime" in one]
    known = {
        one: runtime.specifier.contains(one) for one in ("1.23.2", "1.24.1", "1.26.0", "1.27.0")
    }
    assert list(known.values()) == [False, True, True, False]


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
        assert len(list(tmp_path.rglob(f"{folder}/ort-tensorrt/*-ort9.9-fp32-8-10"))) == 1


def test_engines_of_other_weights_lie_elsewhere(make_artifact):
    path = make_artifact(head="mlp")
    alone = engine_key(ModelFile(path), "1.24", "fp32", {})
    assert engine_key(ModelFile(path), "1.25", "fp32", {}) != alone
    assert engine_key(ModelFile(path), "1.24", "fp16", {}) != alone
    sizes = [{"image": Largest((size,), (3, 8, 8))} for size in (1, 8)]
    found = (engine_key(ModelFile(path), "1.24", "fp32", one) for one in sizes)
    assert len({alone, *found}) == 3
    beside = with_data_file(path)
    first = engine_key(ModelFile(path), "1.24", "fp32", {})
    beside.write_bytes(bytes(len(beside.read_bytes())))
    assert len({alone, first, engine_key(ModelFile(path), "1.24", "fp32", {})}) == 3
    with pytest.raises(ArtifactError, match="cannot read"):
        engine_key(ModelFile(path.with_name("none.onnx")), "1.24", "fp32", {})


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
