"""OpenVINO: shapes, precisions, inputs, the head graph."""

import builtins
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.spec import ClassSelection
from sigcam.runtime.backends import backend_class
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino.backend import output_name
from sigcam.runtime.session import load
from tests.support.openvino_cases import computes_in, feeds_of, opened, same
from tests.support.tiny import with_data_file

openvino = pytest.importorskip("openvino")

MODES = ["latency", "throughput"]
OFFERED = [
    name
    for name in ("fp16", "bf16")
    if name.upper() in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
]


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


def test_compiled_for_single_images(make_artifact, tmp_path):
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


def test_a_session_for_single_images(make_artifact):
    path = make_artifact(head="mlp", head_input="features")
    images = list(feeds_of(3, 1)["image"])
    with load(path, "openvino", batch_size=1) as one, load(path, "ort", batch_size=1) as other:
        for method in (None, "scorecam", "ablationcam", "eigencam"):
            got, wanted = (
                [found for [found] in session.explain(images, classes=2, method=method)]
                for session in (one, other)
            )
            got += [found.for_classes(1)[0] for found in got if method != "scorecam"]
            wanted += [found.for_classes(1)[0] for found in wanted if method != "scorecam"]
            for a, b in zip(got, wanted, strict=True):
                assert a.class_id == b.class_id
                np.testing.assert_allclose(a.cam, b.cam, atol=1e-5)


# Precision


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
    # A processor with bf16 and without fp16 takes the one where the other is asked for.
    instead = "bf16" if "bf16" in OFFERED else "f32"
    with pytest.raises(
        BackendError, match=f"asked to compute in {missing[0]} and computes in {instead}"
    ):
        opened(make_artifact(), precision=missing[0])


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
    image = feeds_of(1, 1)["image"][0]
    with load(path, "openvino", mode="throughput") as session:
        [first] = session.explain(image)
        later = first.for_classes([0, 1, 3])
        at_once = session.explain(image, classes=[0, 1, 3])
        assert session._model.head_graph._backend.name == "openvino"
        ablated = session.explain(image, classes=1, method="ablationcam")
    for got, wanted in zip(later, at_once, strict=True):
        np.testing.assert_allclose(got.cam, wanted.cam, atol=1e-5)
        assert got.evidence == pytest.approx(wanted.evidence, rel=1e-5)
    assert ablated[0].class_id == 1


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
    with pytest.raises(ArtifactError, match=r"lie in .*onnx\.data, which isn't there"):
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


def test_signals_arrive_after_backends_are_closed_in_the_order_of_loading(make_artifact):
    """Each with a Core of its own, that would be a segmentation fault."""
    code = f"""
import gc, os, pathlib, signal
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.backends.openvino.backend import OpenVinoBackend

signal.signal(signal.SIGTERM, lambda *_: print("handled"))
path = pathlib.Path({str(make_artifact())!r})
backends = [OpenVinoBackend.open(path, BackendOptions()) for _ in range(2)]
while backends:
    backends.pop(0).close()
    gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "handled\n"), done.stderr
