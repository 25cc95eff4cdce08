"""TensorRT-RTX's builder takes each method on each of the paper's backbones.

Images are small here, and blocks that repeat one before them are left out: the graph has the
same operators. The profiles and precisions alternate, so that each meets each method and each
backbone; `python -m benchmarks.coverage.tensorrt` has all of them, and whole.
"""

import dataclasses

import pytest
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model
from sigcam.convert.tensorrt.build import build_engine
from sigcam.convert.tensorrt.options import BuildOptions
from sigcam.core.sidecar import read_sidecar
from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.parity import verify as parity
from tests.support.methods import WITH_WEIGHTS

pytestmark = pytest.mark.slow
pytest.importorskip("tensorrt_rtx", reason="the package tensorrt-rtx is not installed")

SIZES = {"wsol-resnet50": 64, "wsol-vgg16": 64, "wsol-inceptionv3": 80}
LATER = ("8.0", "8.6", "8.9", "12.0", "12.1")


def shallow(arch, net):
    """The network without the blocks that have the shapes of the one before them."""
    if arch == "wsol-resnet50":
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            del layer[1:]
    elif arch == "wsol-inceptionv3":
        for name in ("Mixed_5d", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            setattr(net, name, nn.Identity())
    else:
        features = next(module for module in net.modules() if isinstance(module, nn.Sequential)
                        and sum(isinstance(one, nn.Conv2d) for one in module) > 10)  # fmt: skip
        for index in range(len(features) - 2, -1, -1):
            one = features[index]
            if isinstance(one, nn.Conv2d) and one.in_channels == one.out_channels:
                del features[index : index + 2]  # with its ReLU
    return net


@pytest.fixture(scope="module", params=SIZES)
def backbone(request):
    size = SIZES[request.param]
    loaded = load_model(request.param, num_classes=20)
    net = shallow(request.param, loaded.model)
    dual = DualBranch(net, None, input_size=(size, size), architecture=request.param)
    preprocessing = dataclasses.replace(loaded.preprocessing, height=size, width=size)
    return dual, preprocessing, list(SIZES).index(request.param)


@pytest.mark.parametrize("method", WITH_WEIGHTS)
def test_a_method_on_a_backbone(backbone, method, tmp_path, monkeypatch):
    if backbone[2] == list(SIZES).index("wsol-inceptionv3") and method not in ("cam", "layercam"):
        # Its head is ResNet-50's, so what comes behind the backbone is the same graph; these two
        # have a weight for each channel and for each position.
        pytest.skip("the head is that of wsol-resnet50")
    # What the graph computes is tested elsewhere; verifying it would double the time.
    monkeypatch.setattr(parity, "verify", lambda *rest: None)
    dual, preprocessing, number = backbone
    turn = number + WITH_WEIGHTS.index(method)
    path = tmp_path / "model.onnx"
    options = ExportOptions(
        method=method,
        profile=("fused", "split")[turn % 2],
        classes=ClassSelection("input"),
        preprocessing=preprocessing,
    )
    export_artifact(dual, path, options)
    precision, capabilities = (("float32", LATER), ("float16", ("7.5", *LATER)))[turn // 2 % 2]
    options = BuildOptions(package="tensorrt_rtx", precision=precision, capabilities=capabilities)
    found = read_sidecar(build_engine(path, options=options))
    assert found.spec.method == method
    assert found.precision == precision
    assert found.capabilities == capabilities
    assert found.size > 1e6
