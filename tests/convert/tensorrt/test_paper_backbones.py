"""TensorRT-RTX's builder takes each method on each of the paper's backbones.

Images are small here: the graph is the same. The profiles alternate, so that each meets each
method and each backbone; benchmarks/coverage/tensorrt.py has all of them, and whole.
"""

import dataclasses

import pytest

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.convert.tensorrt.build import build_engine
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.sidecar import read_sidecar
from sigcam.core.spec import ClassSelection
from sigcam.export import METHODS, ExportOptions, export_artifact
from sigcam.export.parity import verify as parity

pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")

SIZES = {"wsol-resnet50": 64, "wsol-vgg16": 64, "wsol-inceptionv3": 80}
LATER = ("8.0", "8.6", "8.9", "12.0", "12.1")


@pytest.fixture(scope="module", params=SIZES)
def backbone(request):
    size = SIZES[request.param]
    loaded = load_model(request.param, num_classes=20)
    dual = DualBranch(loaded.model, None, input_size=(size, size), architecture=request.param)
    preprocessing = dataclasses.replace(loaded.preprocessing, height=size, width=size)
    return dual, preprocessing, list(SIZES).index(request.param)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_on_a_backbone(backbone, method, tmp_path, monkeypatch):
    # What the graph computes is tested elsewhere; verifying it would double the time.
    monkeypatch.setattr(parity, "verify", lambda *rest: None)
    dual, preprocessing, number = backbone
    profile = ("fused", "split")[(number + list(METHODS).index(method)) % 2]
    path = tmp_path / "model.onnx"
    classes = ClassSelection("input")
    export_artifact(
        dual,
        path,
        ExportOptions(method=method, profile=profile, classes=classes, preprocessing=preprocessing),
    )
    for precision, capabilities in (("float32", LATER), ("float16", ("7.5", *LATER))):
        options = BuildOptions(
            package="tensorrt_rtx", precision=precision, capabilities=capabilities
        )
        found = read_sidecar(build_engine(path, options=options))
        assert found.spec.method == method
        assert found.capabilities == capabilities
        assert found.size > 10e6
