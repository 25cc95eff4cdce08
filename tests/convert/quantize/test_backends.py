"""Other backends take what was written."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from sigcam.convert.quantize import QuantizeOptions, quantize_artifact
from sigcam.convert.quantize.images import feeds
from sigcam.convert.tensorrt.build import build_engine
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.artifact import read_spec
from sigcam.core.sidecar import read_sidecar
from sigcam.runtime.session import load

WAYS = [
    {"activations": "uint8"},
    {"activations": "int8"},
    {"precision": "fp16"},
    {"precision": "bf16"},
]


@pytest.fixture(scope="module", params=WAYS, ids=lambda way: "-".join(way.values()))
def written(request, artifacts, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "new.onnx"
    options = QuantizeOptions(
        calibration=16, held_out=8, threads=1, min_agreement=0, min_correlation=-1, **request.param
    )
    spec, _ = quantize_artifact(artifacts(method="cam"), images, out, options)
    return out, spec, request.param


def test_openvino_computes_the_same(written, images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        openvino = pytest.importorskip("openvino")
    path, spec, _ = written
    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    from sigcam.runtime.backends import open_backend
    from sigcam.runtime.backends.base import BackendOptions

    ort = open_backend(path, "ort", BackendOptions(threads=1))
    paths = sorted(images.iterdir())[:8]
    pairs = []
    for image in feeds(paths, spec.preprocessing):
        inputs = {**image, "class_ids": np.array([[-1]])}
        want = ort.infer(inputs, ["logits", "evidence_logits", "cams"])
        got = compiled(inputs)
        pairs.append([(got[name], values) for name, values in want.items()])
    ort.close()
    for outputs in zip(*pairs, strict=True):
        got, want = (np.concatenate([pair[side].ravel() for pair in outputs]) for side in (0, 1))
        # Two ways to round a tie move a value by a step of 8 bits now and then.
        limit = 0.03 if spec.fidelity.precision == "int8" else 1e-5
        assert np.linalg.norm(got - want) < limit * np.linalg.norm(want)


def test_tensorrt_builds_symmetric_ones(written, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")
    path, spec, way = written
    if way.get("activations") == "uint8":
        pytest.skip("TensorRT takes symmetric int8 only, as --help says")
    precision = "int8" if "activations" in way else "float32"
    options = BuildOptions(package="tensorrt_rtx", capabilities=("8.9",), precision=precision)
    engine = build_engine(path, tmp_path / "new.engine", options)
    assert read_sidecar(engine).spec == spec == read_spec(engine)


def test_a_session_explains(written, images):
    path, _, _ = written
    with load(path, "ort") as session:
        [one] = session.explain(sorted(images.iterdir())[0])
    assert one.valid
    assert 0 < one.evidence < 1
