"""The exported graph against the NumPy oracle, for every method and option."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import torch

from sigcam.export import METHODS, export_artifact, export_classifier
from sigcam.export.parity import sample_pictures
from sigcam.runtime.spec import METADATA_KEY, ClassSelection, Spec

SELECTIONS = {
    "top1": ClassSelection(),
    "top3": ClassSelection("topk", 3),
    "input": ClassSelection("input"),
}
BATCHES = (1, 3, 8)


def relative(got, want):
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def run(path, image, class_ids=None):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"image": image} if class_ids is None else {"image": image, "class_ids": class_ids}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def normalised(pictures, geometry):
    pixels = (pictures.astype(np.float64) / 255 - geometry.mean) / geometry.std
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def pictures_of(geometry, batch):
    pool = sample_pictures(geometry)
    return np.concatenate([pool, pool[::-1]])[1 : 1 + batch]


def oracle(dual, geometry, pictures, class_ids, branch, nwc):
    """Every output from the features on, in NumPy."""
    with torch.no_grad():
        F = dual.features(torch.from_numpy(normalised(pictures, geometry)).float()).numpy()
    tensors = {"softmax": dual.softmax_head, "sigmoid": dual.sigmoid_head}
    tensors = {name: head.named_tensors() for name, head in tensors.items()}
    W, b = ({k: v["fc." + kind].numpy() for k, v in tensors.items()} for kind in ("weight", "bias"))
    W = {name: matrix.reshape(len(matrix), -1) for name, matrix in W.items()}
    pooled = reference.global_average_pool(F)
    logits = reference.linear(pooled, W["softmax"], b["softmax"])
    ids = reference.resolve(class_ids, logits)
    weights = reference.cam_weights(W[branch], ids)
    return {
        "logits": logits,
        "class_ids_out": ids,
        "evidence_logits": reference.evidence_logits(F, W["sigmoid"], b["sigmoid"], ids),
        "sigmoid_logits": reference.linear(pooled, W["sigmoid"], b["sigmoid"]),
        "features": F,
        "cam_weights": weights,
        "grids": reference.grids(F, weights, nwc),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("profile", ["fused", "split"])
@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("branch", ["sigmoid", "softmax"])
def test_graph_and_torch_match_the_oracle(
    tmp_path, dual, geometry, method, profile, selection, branch
):
    # The remaining options alternate, so that each meets each profile and branch.
    odd = (profile == "fused") == (branch == "softmax")
    layout = "float32_nchw" if odd else "uint8_nhwc"
    geometry = dataclasses.replace(geometry, layout=layout)
    path = tmp_path / "model.onnx"
    nwc = not odd if selection == "top1" else odd
    every = selection == "top3"
    spec = export_artifact(
        dual,
        path,
        method=method,
        branch=branch,
        nwc=nwc,
        profile=profile,
        classes=SELECTIONS[selection],
        geometry=geometry,
        sigmoid_logits=every,
    )
    asked = {"top1": [-1], "top3": [-1, -2, -3], "input": [4, -1, 0, -7]}[selection]
    for batch in BATCHES:
        pictures = pictures_of(geometry, batch)
        request = np.tile(np.array(asked, np.int64), (batch, 1))
        image = pictures if not odd else normalised(pictures, geometry).astype(np.float32)
        got = run(path, image, request if selection == "input" else None)
        want = oracle(dual, geometry, pictures, request, branch, nwc)
        names = ["logits", "class_ids_out", "evidence_logits"]
        names += ["sigmoid_logits"] if every else []
        names += ["grids"] if profile == "fused" else ["features", "cam_weights"]
        assert list(got) == names
        np.testing.assert_array_equal(got["class_ids_out"], want["class_ids_out"])
        for name in names:
            assert relative(got[name], want[name]) < 1e-4, (name, batch)
        assert got["logits"].dtype == np.float32
        with torch.no_grad():
            output = dual(torch.from_numpy(normalised(pictures, geometry)).float())
        assert relative(output.logits.numpy(), want["logits"]) < 1e-4
        assert relative(output.sigmoid_logits.numpy(), want["sigmoid_logits"]) < 1e-4
    assert max(error.max_rel for error in spec.parity.outputs.values()) < 1e-5


def test_without_a_sigmoid_branch(tmp_path, dual, geometry):
    path = tmp_path / "model.onnx"
    spec = export_artifact(dual, path, branch="softmax", has_sigmoid=False, geometry=geometry)
    assert spec.source.branch_sha256 is None
    got = run(path, pictures_of(geometry, 3))
    assert list(got) == ["logits", "class_ids_out", "grids"]
    # The untrained branch isn't in the file, not even unused.
    names = {i.name for i in onnx.load(path).graph.initializer}
    assert not any("sigmoid" in name for name in names)


def test_a_convolution_before_the_pooling_is_a_linear_head(tmp_path, make, nets, geometry):
    dual = make(nets["conv"], "relu")
    path = tmp_path / "model.onnx"
    export_artifact(dual, path, geometry=geometry)
    pictures = pictures_of(geometry, 3)
    want = oracle(dual, geometry, pictures, np.full((3, 1), -1), "sigmoid", True)
    got = run(path, pictures)
    for name in got:
        assert relative(got[name], want[name]) < 1e-4, name


def test_the_bare_classifier_has_the_same_logits_and_no_spec(tmp_path, dual, geometry):
    export_artifact(dual, tmp_path / "a.onnx", geometry=geometry)
    export_classifier(dual, tmp_path / "c.onnx", geometry)
    pictures = pictures_of(geometry, 3)
    got = run(tmp_path / "c.onnx", pictures)
    assert list(got) == ["logits"]
    assert relative(got["logits"], run(tmp_path / "a.onnx", pictures)["logits"]) < 1e-6
    assert not onnx.load(tmp_path / "c.onnx").metadata_props


def test_the_file_carries_its_spec(tmp_path, dual, geometry):
    path = tmp_path / "model.onnx"
    names = [f"class {i}" for i in range(7)]
    spec = export_artifact(
        dual, path, geometry=geometry, class_names=names, trained_on="seven things"
    )
    props = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert set(props) == {METADATA_KEY}
    assert Spec.from_json(props[METADATA_KEY]) == spec
    assert spec.target_layers == ("relu",)
    assert spec.feature_shape == (10, 6, 8)
    assert spec.source.architecture == "toy"
    assert spec.source.weights_sha256 == dual.weights_sha256()
    assert spec.source.branch_sha256 == dual.branch_sha256()
    assert spec.source.trained_on == "seven things"
    assert spec.parity.batch_sizes == BATCHES


def test_the_caller_s_module_stays_as_it_is(tmp_path, make, geometry):
    dual = make()
    dual.train()
    before = {name: value.clone() for name, value in dual.state_dict().items()}
    export_artifact(dual, tmp_path / "model.onnx", geometry=geometry)
    assert dual.sigmoid_head.training
    assert all(p.requires_grad for p in dual.sigmoid_head.parameters())
    for name, value in dual.state_dict().items():
        assert torch.equal(value, before[name]), name
