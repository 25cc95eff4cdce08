import builtins

import numpy as np
import pytest

from sigcam.core.errors import (
    ArtifactError,
    BackendError,
    BackendUnavailableError,
    UsageError,
)
from sigcam.core.spec import ClassSelection
from sigcam.runtime.backends import AUTO_ORDER, BACKENDS, backend_class, open_backend
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.session import load
from tests.support.device_doubles import CpuStream, bound_on_cpu

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), dtype=np.uint8)
IDS = np.array([[-1, 2], [0, -4]])


FROM_ONNX = [name for name in BACKENDS if name != "tensorrt"]  # which takes built backends


def open_or_skip(name, path, options):
    try:
        return backend_class(name).open(path, options)
    except BackendUnavailableError as exc:
        if name in ("ort", "openvino"):  # the tests' environment has these
            raise
        pytest.skip(str(exc))


@pytest.fixture(params=[*FROM_ONNX, "bound"])
def opened(request, make_artifact, monkeypatch):
    if request.param == "bound":
        backend = bound_on_cpu(make_artifact(), CpuStream(monkeypatch))
    else:
        backend = open_or_skip(request.param, make_artifact(), BackendOptions(threads=1))
    yield backend
    backend.close()


def features_of(image):
    return image.reshape(-1, 7, 8, 7, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2) / 255


def test_every_backend_computes_the_graph(opened):
    got = opened.infer({"image": IMAGE, "class_ids": IDS})
    features = features_of(IMAGE)
    weights = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, -1]])
    logits = features.mean((2, 3)) @ weights.T
    np.testing.assert_allclose(got["logits"], logits, atol=1e-5)
    order = np.argsort(-logits, 1)
    chosen = np.array([[order[0, 0], 2], [0, order[1, 3]]])
    np.testing.assert_array_equal(got["class_ids_out"], chosen)
    cams = np.einsum("bkn,bnhw->bkhw", np.maximum(weights[chosen], 0), features)
    np.testing.assert_allclose(got["cams"], cams, atol=1e-5)


def test_every_backend_describes_its_tensors(opened):
    assert {info.name: info.shape for info in opened.inputs} == {
        "image": (None, 56, 56, 3),
        "class_ids": (None, None),
    }
    outputs = {info.name: str(info) for info in opened.outputs}
    assert outputs["cams"] == "float32 [?, ?, 7, 7]"
    assert outputs["class_ids_out"] == "int64 [?, ?]"


def test_every_backend_gives_arrays_of_the_callers_own(opened):
    first = opened.infer({"image": IMAGE, "class_ids": IDS})
    kept = {name: array.copy() for name, array in first.items()}
    opened.infer({"image": 255 - IMAGE, "class_ids": IDS})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])


def test_every_backend_returns_what_is_wanted(opened):
    assert list(opened.infer({"image": IMAGE, "class_ids": IDS}, ["cams"])) == ["cams"]


def test_bad_feeds_are_refused(opened):
    with pytest.raises(UsageError, match=r"takes the inputs \['class_ids', 'image'\]"):
        opened.infer({"image": IMAGE})
    with pytest.raises(UsageError, match=r"image must be uint8 \[\?, 56, 56, 3\], got float64"):
        opened.infer({"image": IMAGE / 255, "class_ids": IDS})
    with pytest.raises(UsageError, match=r"got uint8 \[2, 28, 56, 3\]"):
        opened.infer({"image": IMAGE[:, ::2], "class_ids": IDS})
    with pytest.raises(UsageError, match="not \\['heatmap'\\]"):
        opened.infer({"image": IMAGE, "class_ids": IDS}, ["heatmap"])


def test_a_failing_run_is_a_backend_error(opened, capfd):
    with pytest.raises(BackendError, match="failed while running") as caught:
        opened.infer({"image": IMAGE, "class_ids": np.array([[99], [0]])})
    assert caught.value.__cause__ is not None
    assert capfd.readouterr().err == ""


def test_closed(opened):
    opened.close()
    with pytest.raises(BackendError, match="closed"):
        opened.infer({"image": IMAGE, "class_ids": IDS})


@pytest.mark.parametrize("name", FROM_ONNX)
def test_a_file_that_the_backend_refuses(name, tmp_path, capfd):
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"\x08\x09garbage")
    with pytest.raises(ArtifactError, match=r"bad\.onnx is not a whole") as caught:
        open_or_skip(name, path, BackendOptions())
    assert caught.value.__cause__ is not None
    assert capfd.readouterr().err == ""


@pytest.fixture
def without_backends(monkeypatch):
    real = builtins.__import__

    def blocked(name, *args, **kwargs):
        if name.partition(".")[0] in ("onnxruntime", "openvino"):
            raise ImportError("blocked")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", blocked)


def test_a_missing_backend_names_the_extra(make_artifact, without_backends):
    for backend, extra in (("ort", "cpu"), ("openvino", "openvino"), ("auto", "cpu")):
        with pytest.raises(BackendUnavailableError, match=rf'pip install "sigcam\[{extra}\]"'):
            load(make_artifact(), backend=backend)


def test_unknown_backend_and_bad_options(make_artifact):
    with pytest.raises(UsageError, match=r"'auto' or one of ort, openvino, .*, got 'cuda'"):
        load(make_artifact(), backend="cuda")
    for option in ({"threads": 0}, {"batch_size": 0}, {"max_pixels": 0}):
        with pytest.raises(UsageError, match="at least 1, got 0"):
            load(make_artifact(), **option)


def test_auto_takes_the_first_that_is_there(make_artifact, monkeypatch):
    assert set(AUTO_ORDER) <= set(BACKENDS)
    kind = backend_class(AUTO_ORDER[0])
    reason = BackendUnavailableError("no such thing")

    def missing(path, options):
        raise reason

    monkeypatch.setattr(kind, "open", missing)
    with load(make_artifact()) as session:
        assert session.backend_name == AUTO_ORDER[1]
    with pytest.raises(BackendUnavailableError) as caught:
        load(make_artifact(), AUTO_ORDER[0])
    assert caught.value is reason


def test_an_engine_file_is_tensorrts(tmp_path, monkeypatch):
    path = tmp_path / "model.engine"
    with pytest.raises(UsageError, match="only the backend 'tensorrt' runs, not 'ort'"):
        open_backend(path, "ort", BackendOptions())
    monkeypatch.setattr(backend_class("tensorrt"), "open", lambda *given: given)
    assert open_backend(path, "auto", BackendOptions()) == (path, BackendOptions())


def test_auto_does_not_go_on_after_another_error(make_artifact, monkeypatch):
    def broken(path, options):
        raise ArtifactError("a bad file")

    monkeypatch.setattr(backend_class(AUTO_ORDER[0]), "open", broken)
    with pytest.raises(ArtifactError, match="a bad file"):
        load(make_artifact())


def test_options_that_a_backend_does_not_have_are_refused_by_name(make_artifact, tmp_path):
    model = make_artifact()
    with pytest.raises(UsageError, match="'ort' has no option device and no option precision; its"):
        load(model, "ort", device=1, precision="fp16")
    with pytest.raises(UsageError, match="'ort-cuda' has no option cache"):
        load(model, "ort-cuda", cache=tmp_path)
    with pytest.raises(UsageError, match=r"no backend that 'auto' tries .* options device, mode"):
        load(model, device=1, mode="throughput")
    for option in ("precision", "mode"):
        with pytest.raises(UsageError, match=rf"{option} must be one of .*, got 'half'"):
            load(model, **{option: "half"})
    with pytest.raises(UsageError, match="device must be at least 0, got -1"):
        load(model, device=-1)
    # Of those that "auto" tries, only the ones with the option count: no CPU for device=1.
    backend_options = BackendOptions(device=10**6)
    assert backend_options.given() == ["device"]
    with pytest.raises(BackendUnavailableError, match=r"no backend can be used here: .*ort-cuda"):
        load(model, device=10**6)


def test_a_graph_that_does_not_fit_its_spec(make_artifact, spec_of):
    text = spec_of(classes=ClassSelection("top1")).to_json()
    with pytest.raises(ArtifactError, match="doesn't fit its spec"):
        load(make_artifact(spec_text=text))
    text = spec_of(profile="split").to_json()
    with pytest.raises(ArtifactError, match="'features', 'cam_weights'"):
        load(make_artifact(spec_text=text))


@pytest.mark.parametrize("spinning", [True, False])
def test_onnx_runtime_spins_only_if_asked_to(make_artifact, spinning):
    pytest.importorskip("onnxruntime")
    with load(make_artifact(), "ort", spinning=spinning) as session:
        options = session._model.backend._session.get_session_options()
        entry = options.get_session_config_entry("session.intra_op.allow_spinning")
        assert entry == str(int(spinning))
