"""From an image to the finished map: the Session against the NumPy oracle.

The images have the input's own size, so that no resize stands between the two.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sigcam.core.errors import BackendUnavailableError
from sigcam.core.spec import ClassSelection
from sigcam.export import ExportOptions, export_artifact
from sigcam.export.parity.inputs import sample_images
from sigcam.runtime.backends import BACKENDS
from sigcam.runtime.session import load
from tests.support import oracle as reference
from tests.support.methods import WITH_WEIGHTS

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
# The others take a backend that was built before, or compute in TF32.
FROM_ONNX = [name for name in sorted(BACKENDS) if "tensorrt" not in name]


@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("method", sorted(WITH_WEIGHTS))
def test_session_matches_the_oracle(dual, preprocessing, tmp_path, method, profile):
    path = tmp_path / "model.onnx"
    export_artifact(
        dual,
        path,
        ExportOptions(
            method=method,
            purpose="localise",
            profile=profile,
            classes=ClassSelection("topk", 2),
            preprocessing=preprocessing,
        ),
    )
    images = sample_images(preprocessing)[:3]
    answers = {}
    for backend in FROM_ONNX:
        try:
            with load(path, backend, batch_size=3) as session:
                answers[backend, 3] = session.explain(list(images), top_k=2)
                answers[backend, 1] = [session.explain(one, top_k=2) for one in images]
        except BackendUnavailableError:  # noqa: PERF203 (there are few backends)
            assert backend not in ("ort", "openvino")

    pixels = (images / 255 - preprocessing.mean) / preprocessing.std
    inputs = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float()
    with torch.no_grad():
        F = dual.features(inputs).numpy()
    softmax, sigmoid = (h.named_tensors() for h in (dual.softmax_head, dual.sigmoid_head))
    W, b = sigmoid["fc.weight"].numpy(), sigmoid["fc.bias"].numpy()
    logits = reference.linear(
        reference.global_average_pool(F), softmax["fc.weight"].numpy(), softmax["fc.bias"].numpy()
    )
    ids = reference.top_k(logits, 2)
    weights = reference.cam_weights(W, ids)
    if method != "cam":
        g = reference.pooled_linear_gradient(W, ids, *F.shape[2:])
        if method == "finercam":
            near = reference.similar_classes(logits, ids, 3)
            rest = [
                reference.pooled_linear_gradient(W, near[..., i], *F.shape[2:]) for i in (0, 1, 2)
            ]
            g = g - 0.6 * np.mean(rest, axis=0)
        weights = reference.method_weights(method, F, g)
    cams = reference.cams(F, weights)
    evidence = reference.evidence(F, W, b, ids)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    for found in answers.values():
        for i, explanations in enumerate(found):
            for k, one in enumerate(explanations):
                assert one.class_id == ids[i, k]
                assert one.probability == pytest.approx(probabilities[i, ids[i, k]], rel=TOLERANCE)
                assert one.evidence == pytest.approx(evidence[i, k], rel=TOLERANCE)
                assert np.abs(one.cam - cams[i, k]).max() <= TOLERANCE * cams[i, k].max()
                full = reference.upsample(cams[i, k], preprocessing.height, preprocessing.width)
                wanted, valid = reference.min_max(full)
                assert one.valid == valid
                assert np.abs(one.heatmap - wanted).max() <= TOLERANCE


@pytest.mark.parametrize("method", ["cam", "layercam"])
def test_openvino_runs_data_files_and_the_head_graph(make, nets, preprocessing, tmp_path, method):
    pytest.importorskip("openvino")
    path = tmp_path / "model.onnx"
    export_artifact(
        make(nets["toy" if method == "cam" else "mlp"]),
        path,
        ExportOptions(
            method=method,
            purpose="localise",
            classes=ClassSelection("input"),
            preprocessing=preprocessing,
            external_data=True,
            head_graph=True,
        ),
    )
    assert (tmp_path / "model.onnx.data").is_file()
    images = list(sample_images(preprocessing)[:3])
    found = {}
    for backend in ("ort", "openvino"):
        with load(path, backend, batch_size=3) as session:
            found[backend] = session.explain(images, classes=[4, 1])
            found[backend] += [one[0].for_classes([0, 6, 2]) for one in found[backend]]
    for got, wanted in zip(found["openvino"], found["ort"], strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert a.class_id == b.class_id
            assert a.evidence == pytest.approx(b.evidence, rel=TOLERANCE)
            np.testing.assert_allclose(a.cam, b.cam, atol=TOLERANCE * max(b.cam.max(), 1e-6))
