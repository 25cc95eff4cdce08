"""Engines built by TensorRT-RTX on the CPU, and what is refused before and while building."""

import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from sigcam.convert.tensorrt.build import Build, build_engine
from sigcam.convert.tensorrt.options import BuildOptions, Range
from sigcam.convert.tensorrt.timing_cache import TimingCache
from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    StorageError,
    UsageError,
)
from sigcam.core.sidecar import parse_capability, read_sidecar
from sigcam.core.spec import ClassSelection
from sigcam.core.verify import engine_bytes
from sigcam.runtime.backends.tensorrt import package
from sigcam.runtime.backends.tensorrt.package import choose
from tests.support.fake_tensorrt import FakeCuda
from tests.support.tiny import artifact_graph, head_graph, seal_to, tiny_spec, write

trt = pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
RTX = "tensorrt_rtx"


def rtx(**changes):
    return BuildOptions(package=RTX, **changes)


def tiny(folder, head="mlp", **changes):
    spec = tiny_spec(**changes)
    return write(onnx, artifact_graph(onnx, spec, head=head), folder / "model.onnx", spec.to_json())


@pytest.fixture
def model(tmp_path):
    return tiny(tmp_path, profile="split")


def quantised(path):
    """The same artifact with its image's features quantised to int8 and back."""
    loaded = onnx.load(str(path))
    graph, node = loaded.graph, onnx.helper.make_node
    for one in graph.node:
        one.input[:] = ["deq" if name == "pooled" else name for name in one.input]
    graph.initializer.extend(
        [
            onnx.numpy_helper.from_array(np.float32(1 / 127), "step"),
            onnx.numpy_helper.from_array(np.int8(0), "middle"),
        ]
    )
    at = next(i for i, one in enumerate(graph.node) if "pooled" in one.output) + 1
    graph.node.insert(at, node("QuantizeLinear", ["pooled", "step", "middle"], ["q"]))
    graph.node.insert(at + 1, node("DequantizeLinear", ["q", "step", "middle"], ["deq"]))
    made = path.with_name("quantised.onnx")
    seal_to(loaded, made)
    return made


def test_an_engine_and_its_sidecar(model):
    made = build_engine(model, options=rtx(batches=Range(1, 2, 4), classes=Range(1, 1, 3)))
    assert made == model.with_name("model.rtx.engine")
    found = read_sidecar(made)
    assert engine_bytes(made, found) == made.read_bytes()
    assert found.spec == tiny_spec(profile="split")
    assert (found.package, found.version) == (RTX, trt.__version__)
    assert (found.precision, found.tf32, found.capabilities) == ("float32", False, ())
    assert found.shapes["image"] == ((1, 56, 56, 3), (2, 56, 56, 3), (4, 56, 56, 3))
    assert found.shapes["class_ids"] == ((1, 1), (2, 1), (4, 3))
    command = f"sigcam build-engine model.onnx --package {RTX} --opt-batch 2 --max-batch 4"
    assert found.command(made) == f"{command} --classes 1/1/3"
    assert found.gpu is None


@pytest.mark.parametrize("capability", [*choose(RTX).capabilities])
def test_every_capability(model, capability):
    made = build_engine(model, options=rtx(precision="float16", capabilities=(capability,)))
    found = read_sidecar(made)
    assert found.capabilities == (capability,)
    assert found.command(made).endswith(f"--classes 1/1/10 --capability {capability}")


def test_float32_products_on_turing_are_refused_with_advice(model):
    with pytest.raises(BackendError, match=r"FP32 GEMM is not supported.*add --fp16"):
        build_engine(model, options=rtx(capabilities=("7.5",)))
    assert [p.name for p in model.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("capability", ["9.0", "10.0", "8.7", "11.0"])
def test_gpus_that_are_not_in_the_packages_list_are_refused(model, capability):
    with pytest.raises(UsageError) as caught:
        build_engine(model, options=rtx(capabilities=("8.6", capability)))
    text = str(caught.value)
    assert (
        f"supports the compute capabilities 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, not {capability}"
        in text
    )
    assert 'pip install "sigcam[tensorrt]"' in text
    assert "--package tensorrt" in text


def test_options_reach_the_builder(model, monkeypatch):
    seen = {}
    original = trt.Builder.build_serialized_network

    def build(self, network, config):
        flags = trt.BuilderFlag
        seen["tf32"] = config.get_flag(flags.TF32)
        seen["own memory"] = config.get_flag(flags.REQUIRE_USER_ALLOCATION)
        seen["workspace"] = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
        seen["capabilities"] = [
            config.get_compute_capability(i).name for i in range(config.num_compute_capabilities)
        ]
        return original(self, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    build_engine(model, options=rtx(workspace=1 << 26, capabilities=("8.6", "12.0")))
    assert seen == {
        "tf32": False, "own memory": True, "workspace": 1 << 26, "capabilities": ["SM86", "SM120"],
    }  # fmt: skip
    made = build_engine(model, options=rtx(tf32=True))
    assert seen["tf32"]
    assert read_sidecar(made).command(made).endswith("--tf32 --classes 1/1/10")
    with pytest.raises(BackendError, match="within workspace limit"):
        build_engine(model, options=rtx(workspace=1))


def test_float16_is_smaller(model):
    assert read_sidecar(build_engine(model, options=rtx(precision="float16"))).precision == (
        "float16"
    )
    assert {"onnx", "onnxruntime"} <= read_sidecar(
        model.with_name("model.rtx.engine")
    ).versions.keys()


def test_a_quantised_graph(model):
    other = quantised(model)
    made = build_engine(other, options=rtx(precision="int8"))
    assert read_sidecar(made).precision == "int8"
    with pytest.raises(UsageError, match="say that this is meant with --int8"):
        build_engine(other, options=rtx())
    with pytest.raises(UsageError, match=r"no QuantizeLinear nodes.*sigcam quantize"):
        build_engine(model, options=rtx(precision="int8"))


def test_what_is_refused(model, tmp_path):
    for options, message in [
        (rtx(timing_cache=tmp_path / "t"), "no effect with the package 'tensorrt_rtx'"),
    ]:
        with pytest.raises(UsageError, match=message):
            build_engine(model, options=options)
    with pytest.raises(UsageError, match=r"must end in \.engine, got model\.trt"):
        build_engine(model, tmp_path / "model.trt", rtx())
    with pytest.raises(UsageError, match="an engine already"):
        build_engine(tmp_path / "model.engine", options=rtx())
    with pytest.raises(StorageError, match="is a folder"):
        (tmp_path / "a.engine").mkdir()
        build_engine(model, tmp_path / "a.engine", rtx())
    assert not list(tmp_path.glob("*.json"))


def test_classes_without_class_ids(tmp_path):
    path = tiny(tmp_path, classes=ClassSelection("topk", 2))
    with pytest.raises(UsageError, match="without `--classes input`"):
        build_engine(path, options=rtx(classes=Range(1, 1, 2)))
    assert read_sidecar(build_engine(path, options=rtx())).shapes.keys() == {"image"}


def test_a_head_graph_is_no_network(tmp_path):
    spec = tiny_spec(kind="head", head_input="features")
    path = tmp_path / "model.head.onnx"
    write(onnx, head_graph(onnx, spec), path, spec.to_json())
    with pytest.raises(UsageError, match="is a head graph"):
        build_engine(path, options=rtx())


def test_the_parsers_reasons_name_the_node(model):
    loaded = onnx.load(str(model))
    [pool] = [node for node in loaded.graph.node if "features" in node.output]
    pool.op_type, pool.name = "NoSuchPool", "the pool"
    del pool.attribute[:]
    seal_to(loaded, model)
    with pytest.raises(ArtifactError, match=r"can't parse .*node the pool \(NoSuchPool\)"):
        build_engine(model, options=rtx())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1, 1), "1 <= min <= opt <= max"), ((2, 1, 4), "1 <= min <= opt <= max"),
        ((1, 5, 4), "got 1, 5, 4"),
    ],
)  # fmt: skip
def test_ranges(arguments, message):
    with pytest.raises(UsageError, match=message):
        Range(*arguments)


def test_option_values():
    assert Range.parse("1/2/8") == Range(1, 2, 8)
    for text in ("1/2", "1/2/x", "", "1//2", "-1/1/1"):
        with pytest.raises(UsageError, match="min/opt/max"):
            Range.parse(text)
    assert parse_capability("12.0") == (12, 0)
    for text in ("86", "8.", "8.6a", ""):
        with pytest.raises(UsageError, match=r"like 8\.6"):
            parse_capability(text)
    for wrong in ({"precision": "half"}, {"package": "trt"}, {"workspace": 0}):
        with pytest.raises(UsageError):
            BuildOptions(**wrong)
    with pytest.raises(UsageError, match="given twice"):
        BuildOptions(capabilities=("8.6", "8.6"))


def test_which_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert choose().name == RTX
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.3.9"))
    assert choose().name == "tensorrt"
    assert choose(RTX).name == RTX
    for name in ("tensorrt", RTX):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match=r"tensorrt \(.*; tensorrt_rtx \("):
        choose()
    with pytest.raises(UsageError, match="package must be one of"):
        choose("trt")


def test_a_package_that_is_there_but_broken(monkeypatch):
    """Its libraries are loaded by ctypes, whose error is another one."""

    def broken(name):
        raise OSError(f"lib{name}.so: cannot open shared object file")

    monkeypatch.setattr(package.importlib, "import_module", broken)
    with pytest.raises(BackendUnavailableError, match=r"libtensorrt\.so.*libtensorrt_rtx\.so"):
        choose()


@pytest.mark.parametrize("version", ["8.6.1", "10.9.0.34", "10.12"])
def test_an_old_tensorrt_is_refused(monkeypatch, version):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
    with pytest.raises(BackendUnavailableError, match=rf"10\.13 or later, installed is {version}"):
        choose()


def refused(monkeypatch, method, result):
    """The builder's configuration answers `result` without doing what it was asked for."""
    monkeypatch.setattr(trt.IBuilderConfig, method, lambda *arguments: result)


@pytest.mark.parametrize(
    ("method", "result", "options", "error", "message"),
    [
        ("set_compute_capability", False, {"capabilities": ("8.6",)}, BackendError,
         r"refuses the compute capability 8\.6"),
        ("add_optimization_profile", -1, {}, BackendError, "refuses the sizes"),
        ("set_memory_pool_limit", None, {"workspace": 12345}, UsageError,
         "doesn't take a workspace of 12345 bytes and stays with"),
    ],
)  # fmt: skip
def test_what_the_configuration_refuses(
    model, monkeypatch, method, result, options, error, message
):
    refused(monkeypatch, method, result)
    with pytest.raises(error, match=message):
        build_engine(model, options=rtx(**options))
    assert [p.name for p in model.parent.iterdir()] == ["model.onnx"]


def test_a_timing_cache_that_cannot_be_written_is_refused_before_the_build(model, monkeypatch):
    monkeypatch.setattr("sigcam.convert.tensorrt.build.Build", None)  # isn't come to
    with pytest.raises(StorageError, match="is a folder"):
        build_engine(model, options=rtx(timing_cache=model.parent))


def test_one_logger_tells_each_thread_its_own():
    log = choose(RTX).logger()
    assert choose(RTX).logger() is log
    log.take_errors()
    grave = trt.ILogger.ERROR
    said, asked = threading.Event(), threading.Event()
    taken = []

    def other():
        log.log(grave, "theirs")
        said.set()
        asked.wait(20)
        taken.append(log.take_errors())
        log.log(grave, "left behind")

    thread = threading.Thread(target=other)
    thread.start()
    assert said.wait(20)
    log.log(grave, "mine")
    log.log(trt.ILogger.WARNING, "a warning")
    assert log.take_errors() == "mine"
    assert log.take_errors() == "TensorRT gave no reason"
    asked.set()
    thread.join()
    assert taken == ["theirs"]
    assert log.take_errors() == "left behind"


def test_warnings_are_passed_on_where_they_are_wanted(caplog):
    log = choose(RTX).logger()
    for _ in range(2):
        log.log(trt.ILogger.WARNING, "not asked for")
        with log.warnings():
            log.log(trt.ILogger.WARNING, "another model of device")
            log.log(trt.ILogger.INFO, "nothing of note")
    assert [r.getMessage() for r in caplog.records] == ["TensorRT: another model of device"] * 2


class Classic(SimpleNamespace):
    """TensorRT-RTX's builder under the other package's name: what differs is what we do."""

    def __init__(self, version):
        super().__init__(**{n: getattr(trt, n) for n in dir(trt) if not n.startswith("_")})
        self.__version__ = version


@pytest.mark.parametrize(("version", "flags"), [("10.13.3.9", 1), ("11.4.0.10", 0)])
def test_the_other_package_builds_for_the_gpu_at_hand(model, monkeypatch, version, flags):
    monkeypatch.setitem(sys.modules, "tensorrt", Classic(version))
    assert choose("tensorrt").network_flags == flags << int(
        trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    )
    cuda = FakeCuda()
    for name in ("available", "retain_primary_context"):
        monkeypatch.setattr(f"sigcam.kernels.driver.{name}", getattr(cuda, name))
    if version.startswith("11"):
        made = build_engine(model, options=BuildOptions(package="tensorrt"))
        assert made.name == "model.engine"
        found = read_sidecar(made)
        assert (found.capabilities, found.gpu) == (("8.6",), "Fake GPU")
        assert cuda.contexts == 0
    with pytest.raises(UsageError, match="builds for the GPU of this machine"):
        build_engine(model, options=BuildOptions(package="tensorrt", capabilities=("8.6",)))
    cuda.missing = "there is no libcuda"
    with pytest.raises(BackendUnavailableError, match=r"no libcuda.*--package tensorrt_rtx"):
        build_engine(model, options=BuildOptions(package="tensorrt"))


def test_the_build_is_on_the_gpu_that_was_named(model, monkeypatch):
    """A context is current in one thread only, and the builder works in its own."""
    monkeypatch.setitem(sys.modules, "tensorrt", Classic("11.4.0.10"))
    cuda, asked, seen = FakeCuda(), [], []

    def retain(ordinal):
        asked.append(ordinal)
        context = cuda.retain_primary_context(ordinal)
        context.device = replace(context.device, ordinal=ordinal, name=f"GPU {ordinal}")
        asked.append(context)
        return context

    original = trt.Builder.build_serialized_network

    def builder(log):
        seen.append(asked[1].depth.value)
        return trt.Builder(log)

    def build(self, network, config):
        seen.append(getattr(asked[1].depth, "value", 0))
        return original(self, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", build)
    sys.modules["tensorrt"].Builder = builder
    monkeypatch.setattr("sigcam.kernels.driver.available", cuda.available)
    monkeypatch.setattr("sigcam.kernels.driver.retain_primary_context", retain)
    made = build_engine(model, options=BuildOptions(package="tensorrt", device=3))
    assert asked[0] == 3
    assert seen == [1, 1]
    assert asked[1].depth.value == 0
    assert cuda.contexts == 0
    assert read_sidecar(made).gpu == "GPU 3"


def test_engines_for_more_gpus_and_later_versions(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", Classic("11.4.0.10"))
    cuda, seen = FakeCuda(), {}
    for name in ("available", "retain_primary_context"):
        monkeypatch.setattr(f"sigcam.kernels.driver.{name}", getattr(cuda, name))

    class Config:
        """TensorRT-RTX, which stands for the other package here, takes no level."""

        def __setattr__(self, name, value):
            seen["level"] = value.name

        def set_flag(self, flag):
            seen["versions"] = flag == trt.BuilderFlag.VERSION_COMPATIBLE

    original = Build._make_compatible

    def make_compatible(self):
        seen.update(level="NONE", versions=False)
        kept, self._config = self._config, Config()
        original(self)
        self._config = kept

    monkeypatch.setattr(Build, "_make_compatible", make_compatible)
    monkeypatch.setattr(trt.Builder, "build_serialized_network", lambda *given: b"an engine")
    for hardware, level in (
        ("gpu", "NONE"), ("capability", "SAME_COMPUTE_CAPABILITY"), ("ampere", "AMPERE_PLUS"),
    ):  # fmt: skip
        for versions in (False, True):
            options = BuildOptions(
                package="tensorrt", hardware=hardware, version_compatible=versions
            )
            made = build_engine(model, options=options)
            assert seen == {"level": level, "versions": versions}
            found = read_sidecar(made)
            assert (found.hardware, found.version_compatible) == (hardware, versions)
            command = found.command(made)
            assert ("--version-compatible" in command) == versions
            assert (f"--hardware {hardware}" in command) == (hardware != "gpu")
    monkeypatch.setattr(Build, "_make_compatible", original)
    for wrong in ({"hardware": "ampere"}, {"version_compatible": True}):
        with pytest.raises(UsageError, match="are for the package 'tensorrt'"):
            build_engine(model, options=rtx(**wrong))
    with pytest.raises(UsageError, match="one of gpu, capability, ampere, got 'all'"):
        BuildOptions(hardware="all")


def test_a_device_for_a_package_that_needs_none():
    with pytest.raises(UsageError, match="use capabilities"):
        BuildOptions(package=RTX, device=1)
    with pytest.raises(UsageError, match="device must be at least 0, got -1"):
        BuildOptions(device=-1)


class FakeConfig:
    """A configuration whose timing caches are b"mine" and more of it."""

    def create_timing_cache(self, data):
        return data if data in (b"", b"mine", b"other") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache
        return cache != b"other"

    def get_timing_cache(self):
        return SimpleNamespace(serialize=lambda: b"mine")


def test_a_timing_cache_is_read_and_kept(tmp_path):
    package, path, config = (
        SimpleNamespace(is_rtx=False, version="10"),
        tmp_path / "t",
        FakeConfig(),
    )
    TimingCache(path, package, config).save()
    assert path.read_bytes() == b"mine"
    again = FakeConfig()
    TimingCache(path, package, again)
    assert again.cache == b"mine"
    for foreign in (b"other", b"rubbish"):
        path.write_bytes(foreign)
        with pytest.warns(UserWarning, match="is not a timing cache of this TensorRT"):
            cache = TimingCache(path, package, config)
        assert config.cache == b""
        cache.save()
        assert path.read_bytes() == b"mine"
    with pytest.raises(ArtifactError, match="cannot read"):
        TimingCache(tmp_path, package, config)
