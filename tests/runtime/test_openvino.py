"""OpenVINO: precisions, modes, callers at once, and the cache of compiled models."""

import builtins
import hashlib
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino import OpenVinoBackend, output_name
from sigcam.runtime.backends.openvino_requests import Requests
from sigcam.runtime.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    StorageError,
    UsageError,
)
from sigcam.runtime.session import load
from sigcam.runtime.spec import ClassSelection

openvino = pytest.importorskip("openvino")

RNG = np.random.default_rng(3)
MODES = ["latency", "throughput"]
OFFERED = [
    name
    for name in ("fp16", "bf16")
    if name.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
]


def opened(path, **options):
    return OpenVinoBackend.open(path, BackendOptions(threads=1, **options))


def feeds_of(batch, k):
    image = RNG.integers(0, 256, (batch, 56, 56, 3), dtype=np.uint8)
    return {"image": image, "class_ids": RNG.integers(-4, 4, (batch, k))}


def same(got, wanted):
    assert got.keys() == wanted.keys()
    for name, array in got.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6)


def of_onnx_runtime(path, feeds):
    pytest.importorskip("onnxruntime")
    return backend_class("ort").open(path, BackendOptions(threads=1)).infer(feeds)


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("mode", MODES)
def test_any_batch_and_any_number_of_classes(make_artifact, profile, mode):
    path = make_artifact(profile=profile, emit={"sigmoid_logits", "head_input"})
    backend = opened(path, mode=mode)
    for batch, k in ((1, 1), (3, 2), (1, 4), (8, 1), (1, 1)):
        feeds = feeds_of(batch, k)
        same(backend.infer(feeds), of_onnx_runtime(path, feeds))


def test_compiled_for_single_pictures(make_artifact, tmp_path):
    path = make_artifact()
    single = opened(path, batch_size=1, cache=tmp_path)
    assert [str(info) for info in single.inputs] == ["uint8 [1, 56, 56, 3]", "int64 [1, ?]"]
    for k in (1, 3):
        feeds = feeds_of(1, k)
        same(single.infer(feeds), of_onnx_runtime(path, feeds))
    with pytest.raises(UsageError, match=r"image must be uint8 \[1, 56, 56, 3\]"):
        single.infer(feeds_of(2, 1))
    again = opened(path, batch_size=1, cache=tmp_path)
    assert again.from_cache
    assert again.inputs == single.inputs
    assert not opened(path, batch_size=2, cache=tmp_path).from_cache


def test_a_session_for_single_pictures(make_artifact):
    path = make_artifact(head="mlp", head_input="features")
    pictures = list(feeds_of(3, 1)["image"])
    with load(path, "openvino", batch_size=1) as one, load(path, "ort", batch_size=1) as other:
        for method in (None, "scorecam", "ablationcam", "eigencam"):
            got, wanted = (
                [found for [found] in session.explain(pictures, classes=2, method=method)]
                for session in (one, other)
            )
            got += [found.for_classes(1)[0] for found in got if method != "scorecam"]
            wanted += [found.for_classes(1)[0] for found in wanted if method != "scorecam"]
            for a, b in zip(got, wanted, strict=True):
                assert a.class_id == b.class_id
                np.testing.assert_allclose(a.grid, b.grid, atol=1e-5)


# Precision


def computes_in(backend):
    hint = backend._requests._compiled.get_property("INFERENCE_PRECISION_HINT")
    return hint.get_type_name()


def test_fp32_is_set_not_left_to_openvino(make_artifact, monkeypatch):
    asked = []
    compile_model = openvino.Core.compile_model

    def spy(core, model, device, config):
        asked.append(config)
        return compile_model(core, model, device, config)

    monkeypatch.setattr(openvino.Core, "compile_model", spy)
    assert computes_in(opened(make_artifact())) == "f32"
    assert asked[0]["INFERENCE_PRECISION_HINT"] == "f32"
    assert asked[0]["DYNAMIC_QUANTIZATION_GROUP_SIZE"] == "0"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_half_precision_is_there_or_refused(make_artifact, precision):
    path = make_artifact()
    if precision in OFFERED:
        found = opened(path, precision=precision)
        assert computes_in(found) == {"fp16": "f16", "bf16": "bf16"}[precision]
        feeds = feeds_of(2, 1)
        wanted = of_onnx_runtime(path, feeds)["logits"]
        np.testing.assert_allclose(found.infer(feeds)["logits"], wanted, atol=0.02)
        return
    with pytest.raises(BackendUnavailableError, match=rf"no instructions for {precision}.*fp32"):
        load(path, "openvino", precision=precision)


def test_a_precision_that_openvino_does_not_keep_is_an_error(make_artifact, monkeypatch):
    missing = sorted({"fp16", "bf16"} - set(OFFERED))
    if not missing:
        pytest.skip("this processor has all precisions")
    get_property = openvino.Core.get_property

    def boasting(core, device, name):
        if name == "OPTIMIZATION_CAPABILITIES":
            return ["FP32", "FP16", "BF16"]
        return get_property(core, device, name)

    monkeypatch.setattr(openvino.Core, "get_property", boasting)
    with pytest.raises(BackendError, match=f"asked to compute in {missing[0]} and computes in f32"):
        opened(make_artifact(), precision=missing[0])


# Callers at once


@pytest.mark.parametrize("mode", MODES)
def test_many_threads_share_a_model(make_artifact, mode):
    backend = opened(make_artifact(), mode=mode)
    calls = [feeds_of(batch, k) for batch in (1, 2, 5) for k in (1, 3)]
    alone = [backend.infer(feeds) for feeds in calls]
    gate = threading.Barrier(8)

    def work(thread):
        gate.wait()
        which = [(thread + i) % len(calls) for i in range(40)]
        return [(one, backend.infer(calls[one])) for one in which]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for one, outputs in (pair for pairs in found for pair in pairs):
        same(outputs, alone[one])  # after all of them: none was overwritten
    requests = backend._requests
    assert 1 <= len(requests._idle) <= 8 * requests._parts


def test_throughput_divides_the_threads(make_artifact):
    backend = OpenVinoBackend.open(make_artifact(), BackendOptions(mode="throughput"))
    compiled = backend._requests._compiled
    streams = compiled.get_property("NUM_STREAMS")
    assert streams == compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    assert 1 <= streams <= compiled.get_property("INFERENCE_NUM_THREADS")


@pytest.mark.parametrize("mode", MODES)
def test_threads_are_counted_and_free_to_move(make_artifact, mode):
    compiled = opened(make_artifact(), mode=mode)._requests._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


@pytest.mark.parametrize("mode", MODES)
def test_closed_while_it_is_used(make_artifact, mode):
    backend = opened(make_artifact(), mode=mode)
    feeds = feeds_of(2, 2)
    wanted = backend.infer(feeds)
    started = threading.Barrier(5)

    def work(_):
        started.wait()
        done = 0
        with pytest.raises(BackendError, match="closed; load"):
            while True:
                same(backend.infer(feeds), wanted)
                done += 1
        return done

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(work, range(4))
        started.wait()
        while not backend._requests._idle:
            pass
        backend.close()
        backend.close()
        assert all(done >= 0 for done in found)


class FakeRequest:
    """Stands for an infer request whose run can be made to fail or be interrupted."""

    def __init__(self, failing):
        self.failing = failing
        self.waits = 0
        self.asked = []

    def set_input_tensor(self, index, tensor):
        self.tensor = tensor

    def start_async(self):
        pass

    def wait(self):
        self.waits += 1
        if self.waits == 1 and self.failing:
            raise self.failing.pop()

    def get_output_tensor(self, index):
        self.asked.append(index)
        return SimpleNamespace(data=self.tensor.data)


class FakeCompiled:
    def __init__(self, failing=(), parts=1):
        self.made = []
        self.failing = list(failing)
        self.parts = parts

    def get_property(self, name):
        if name == "PERFORMANCE_HINT":
            return "LATENCY" if self.parts == 1 else "THROUGHPUT"
        return self.parts

    def create_infer_request(self):
        self.made.append(FakeRequest(self.failing))
        return self.made[-1]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_request_that_failed_is_waited_for_and_not_used_again(error):
    compiled = FakeCompiled([error()])
    requests = Requests(compiled)
    with pytest.raises(error):
        requests.run([np.zeros(3)], [0])
    assert compiled.made[0].waits == 2
    for _ in range(2):
        [got] = requests.run([np.ones(3)], [0])
        np.testing.assert_array_equal(got, np.ones(3))
    assert len(compiled.made) == 2


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_throughput_divides_a_batch(rows):
    compiled = FakeCompiled(parts=3)
    requests = Requests(compiled)
    array = np.arange(2.0 * rows).reshape(rows, 2)
    for _ in range(2):
        [got] = requests.run([array], [5])
        np.testing.assert_array_equal(got, array)
        assert not np.shares_memory(got, array)
    assert len(compiled.made) == min(3, rows)
    assert all(one.asked == [5, 5] for one in compiled.made)  # no output that isn't wanted
    sizes = [len(one.tensor.data) for one in compiled.made]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("mode", MODES)
def test_inputs_of_different_batches_are_an_error(make_artifact, mode):
    backend = OpenVinoBackend.open(make_artifact(), BackendOptions(mode=mode))
    feeds = {"image": feeds_of(4, 2)["image"], "class_ids": feeds_of(3, 2)["class_ids"]}
    with pytest.raises(BackendError, match="failed while running"):
        backend.infer(feeds)


# Inputs


def test_inputs_of_every_kind_of_memory(make_artifact):
    backend = opened(make_artifact())
    feeds = feeds_of(2, 2)
    wanted = backend.infer(feeds)
    frozen = {name: array.copy() for name, array in feeds.items()}
    for array in frozen.values():
        array.flags.writeable = False
    same(backend.infer(frozen), wanted)
    image = np.zeros(feeds["image"].size + 1, np.uint8)[1:].reshape(feeds["image"].shape)
    image[...] = feeds["image"]  # at an odd address
    same(backend.infer({**feeds, "image": image}), wanted)
    wide = np.repeat(feeds["class_ids"], 2, axis=1)
    same(backend.infer({**feeds, "class_ids": wide[:, ::2]}), wanted)
    same(backend.infer({**feeds, "image": np.asfortranarray(feeds["image"])}), wanted)


def test_an_output_without_its_name():
    node = SimpleNamespace(get_friendly_name=lambda: "c/sink_port_0")
    port = SimpleNamespace(names={"b", "a"}, node=node)
    with pytest.raises(ArtifactError, match=r"which output of the model \['a', 'b'\] is"):
        output_name(port)


# The head graph, external data, auto


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_further_classes_from_the_head_graph(make_artifact, head):
    path = make_artifact(head=head, head_input="features")
    picture = feeds_of(1, 1)["image"][0]
    with load(path, "openvino", mode="throughput") as session:
        [first] = session.explain(picture)
        later = first.for_classes([0, 1, 3])
        at_once = session.explain(picture, classes=[0, 1, 3])
        assert session._head._backend.name == "openvino"
        ablated = session.explain(picture, classes=1, method="ablationcam")
    for got, wanted in zip(later, at_once, strict=True):
        np.testing.assert_allclose(got.grid, wanted.grid, atol=1e-5)
        assert got.evidence == pytest.approx(wanted.evidence, rel=1e-5)
    assert ablated[0].class_id == 1


def with_data_file(path):
    import onnx

    model = onnx.load(path)
    onnx.save(
        model, path, save_as_external_data=True, location=path.name + ".data", size_threshold=90
    )
    return path.with_name(path.name + ".data")


def test_weights_in_a_file_of_their_own(make_artifact, tmp_path):
    path = make_artifact(head="mlp")
    feeds = feeds_of(3, 2)
    wanted = opened(path).infer(feeds)
    data = with_data_file(path)
    same(opened(path).infer(feeds), wanted)
    # Cached by the weights, too: other ones under the same name are other ones.
    assert not opened(path, cache=tmp_path).from_cache
    assert opened(path, cache=tmp_path).from_cache
    data.write_bytes(bytes(len(data.read_bytes())))
    changed = opened(path, cache=tmp_path)
    assert not changed.from_cache
    assert not np.ptp(changed.infer(feeds)["logits"], axis=0).any()  # the biases are left
    assert np.ptp(wanted["logits"], axis=0).all()
    data.unlink()
    with pytest.raises(ArtifactError, match=r"OpenVINO .* refuses .*model\.onnx"):
        opened(path)


def test_auto_takes_it_where_it_is_alone_or_asked_for_what_only_it_has(
    make_artifact, monkeypatch, tmp_path
):
    path = make_artifact(classes=ClassSelection("top1"))
    with load(path, mode="throughput") as session:
        assert session.backend_name == "openvino"
    with load(path, cache=tmp_path) as session:
        assert session.backend_name == "openvino"
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError("blocked")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)
    with load(path) as session:
        assert session.backend_name == "openvino"
        assert session.explain(np.full((70, 90, 3), (9, 200, 9), np.uint8))[0].label == "green"


# The cache


def test_nothing_is_cached_unless_a_folder_is_named(make_artifact, monkeypatch, tmp_path):
    monkeypatch.setenv("SIGCAM_CACHE_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert not opened(make_artifact()).from_cache
    assert not list(tmp_path.rglob("*"))


def test_the_second_load_comes_from_the_cache(make_artifact, tmp_path):
    path, folder = make_artifact(emit={"sigmoid_logits", "head_input"}), tmp_path / "a" / "b"
    feeds = feeds_of(2, 3)
    first = opened(path, cache=folder)
    second = opened(path, cache=folder)
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.inputs == second.inputs
    assert first.outputs == second.outputs
    assert computes_in(second) == "f32"
    same(second.infer(feeds), first.infer(feeds))
    moved = tmp_path / "moved.onnx"  # known by its contents, not by its place
    shutil.copy(path, moved)
    assert opened(moved, cache=folder).from_cache
    assert not opened(path, cache=folder, mode="throughput").from_cache
    assert not opened(make_artifact(nwc=False), cache=folder).from_cache
    assert len(list(folder.iterdir())) == 3


def damaged(entry, how):
    good = entry.read_bytes()
    blob, magic, checksum = good[:-83], good[-83:-64], good[-64:]
    assert magic.startswith(b"\nsigcam")
    assert checksum == hashlib.sha256(blob).hexdigest().encode()
    if how == "checksum of garbage":
        garbage = b"garbage" * 100
        return garbage + magic + hashlib.sha256(garbage).hexdigest().encode()
    middle = len(good) * 2 // 3
    return {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "one bit": good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :],
        "zeros": bytes(len(good)),
        "one byte": b"x",
        "openvino's own format": blob,
    }[how]


@pytest.mark.parametrize(
    "how",
    [
        "empty",
        "one byte",
        "truncated",
        "one bit",
        "zeros",
        "openvino's own format",
        "checksum of garbage",
    ],
)
def test_a_damaged_entry_is_told_and_made_again(make_artifact, tmp_path, how):
    path = make_artifact()
    feeds = feeds_of(2, 2)
    wanted = opened(path, cache=tmp_path).infer(feeds)
    [entry] = tmp_path.iterdir()
    good = entry.read_bytes()
    entry.write_bytes(damaged(entry, how))
    with pytest.warns(RuntimeWarning, match=r"\.blob can't be used .*compiled again"):
        again = opened(path, cache=tmp_path)
    assert not again.from_cache
    same(again.infer(feeds), wanted)
    assert len(entry.read_bytes()) == len(good)
    assert opened(path, cache=tmp_path).from_cache  # without a warning


def test_a_folder_that_cannot_be_written(make_artifact, tmp_path):
    place = tmp_path / "file"
    place.write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        opened(make_artifact(), cache=place)


def test_a_model_that_is_refused_leaves_nothing_in_the_cache(tmp_path):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\x08\x09garbage")
    with pytest.raises(ArtifactError, match=r"refuses .*bad\.onnx"):
        opened(path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ArtifactError, match="cannot read"):
        opened(Path("absent.onnx"), cache=tmp_path / "cache")
