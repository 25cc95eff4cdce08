"""RefineCAM: the product of Grad-CAM++'s CAMs at several target layers."""

from __future__ import annotations

import re

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.core.spec import ClassSelection
from sigcam.export import METHODS, ExportOptions, export_artifact
from sigcam.runtime.session import load
from tests.export.test_target_layers import (
    PREPROCESSING,
    Averaged,
    ChannelsLast,
    Residual,
    by_hooks,
    made,
    run,
)
from tests.support import oracle as reference


def export(dual, path, **options):
    chosen = {"branch": "softmax", "has_sigmoid": False, "preprocessing": PREPROCESSING, **options}
    return export_artifact(dual, path, ExportOptions(method="refinecam", **chosen))


@pytest.mark.slow
@pytest.mark.parametrize(
    "layers", [["down", "stem"], ["stem", "one", "down"], ["two", "norm"]], ids=str
)
@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
@pytest.mark.parametrize("nwc", [False, True])
def test_equals_the_definition(tmp_path, layers, branch, nwc):
    dual = made(Residual, layers)
    path = tmp_path / "m.onnx"
    spec = export(
        dual, path, branch=branch, has_sigmoid=True, nwc=nwc, classes=ClassSelection("input")
    )
    assert (spec.method, spec.target_layers) == ("refinecam", tuple(layers))
    ids = np.tile(np.array([[3, 0]]), (5, 1))
    got = run(path, ["cams"], ids)["cams"]
    found = by_hooks(dual, Residual, layers, branch, ids, lambda x: x)
    cams = [
        reference.cams(F, reference.method_weights("gradcam++", F, g), nwc)
        for F, g in found.values()
    ]
    want = reference.refine(cams)
    assert got.shape[2:] == spec.cam_shape == want.shape[2:]
    assert want.max() > 0.1
    assert np.abs(got - want).max() < 1e-4
    assert spec.parity.left_out == 0


@pytest.mark.slow
def test_one_layer_is_too_few_and_the_layers_advised_will_do(tmp_path):
    with pytest.raises(UsageError, match="refinecam multiplies the CAMs of several") as caught:
        export(made(Residual, ["two"]), tmp_path / "m.onnx")
    layers = re.findall(r"--target-layer (\S+)", str(caught.value).replace(",", " "))
    assert layers == ["one", "two"]  # stem's grid is one's; the input has no module
    spec = export(made(Residual, layers), tmp_path / "m.onnx")
    assert spec.target_layers == ("one", "two")
    with load(tmp_path / "m.onnx") as session:
        image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
        [one] = session.explain(image)
    assert one.method == "refinecam"
    assert one.cam.shape == (12, 16)


@pytest.mark.parametrize("net", [Averaged, ChannelsLast])
def test_networks_of_one_resolution_get_advice_without_names(tmp_path, net):
    with pytest.raises(UsageError, match="name two or more of different depths, or choose"):
        export(made(net), tmp_path / "m.onnx")


def test_what_it_cannot_have():
    with pytest.raises(UsageError, match=r"refinecam has none.*use the profile fused"):
        ExportOptions(method="refinecam", profile="split")
    assert not METHODS["refinecam"].gives_weights
