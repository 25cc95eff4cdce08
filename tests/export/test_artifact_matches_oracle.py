"""The exported graph against the NumPy oracle, for every method and option."""

from __future__ import annotations

import copy
import dataclasses
import itertools

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sigcam.core.spec import METADATA_KEY, ClassSelection, Spec
from sigcam.export import METHODS, ExportOptions, export_artifact, export_classifier
from sigcam.export.parity.inputs import sample_images
from tests.support import oracle as reference
from tests.support.methods import WITH_WEIGHTS

pytestmark = pytest.mark.slow

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


def normalised(images, preprocessing):
    pixels = (images.astype(np.float64) / 255 - preprocessing.mean) / preprocessing.std
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def images_of(preprocessing, batch):
    pool = sample_images(preprocessing)
    return np.concatenate([pool, pool[::-1]])[1 : 1 + batch]


def oracle(dual, preprocessing, images, class_ids, branch, nwc=True, method="cam", signed=False):
    """Every output from the features on, in NumPy."""
    with torch.no_grad():
        F = dual.features(torch.from_numpy(normalised(images, preprocessing)).float()).numpy()
    heads = {"softmax": dual.softmax_head, "sigmoid": dual.sigmoid_head}
    tensors = {
        name: {k.removeprefix("fc."): v.numpy() for k, v in head.named_tensors().items()}
        for name, head in heads.items()
    }
    last = "weight" if "weight" in tensors["softmax"] else "2.weight"
    W = tensors["softmax"][last]
    rows = reference.centred(W.reshape(len(W), -1)).reshape(W.shape)
    tensors["centred"] = {**tensors["softmax"], last: rows}
    pooled = reference.global_average_pool(F)
    logits = {name: head_logits(pooled, values) for name, values in tensors.items()}
    ids = reference.resolve(class_ids, logits["softmax"])
    weights = oracle_weights(method, F, tensors[branch], ids, logits["softmax"])
    return {
        "logits": logits["softmax"],
        "class_ids_out": ids,
        "evidence_logits": np.take_along_axis(logits["sigmoid"], ids, 1),
        "sigmoid_logits": logits["sigmoid"],
        "features": F,
        "cam_weights": weights,
        "cams": reference.cams(F, weights, nwc, signed),
    }


def head_logits(pooled, values):
    if "weight" in values:
        W = values["weight"]
        return reference.linear(pooled, W.reshape(len(W), -1), values["bias"])
    hidden = np.maximum(reference.linear(pooled, values["0.weight"], values["0.bias"]), 0)
    return reference.linear(hidden, values["2.weight"], values["2.bias"])


def oracle_weights(method, F, values, ids, logits):
    h, w = F.shape[2:]

    def gradient(ids):
        if "weight" in values:
            W = values["weight"]
            return reference.pooled_linear_gradient(W.reshape(len(W), -1), ids, h, w)
        names = ("0.weight", "0.bias", "2.weight")
        return reference.pooled_mlp_gradient(F, *(values[name] for name in names), ids)

    if method == "cam":
        W = values["weight"]
        return reference.cam_weights(W.reshape(len(W), -1), ids)
    g = gradient(ids)
    if method == "finercam":
        near = reference.similar_classes(logits, ids, 3)
        others = [gradient(near[:, :, column]) for column in range(3)]
        g = g - 0.6 * np.mean(others, axis=0)
    return reference.method_weights(method, F, g)


def cases():
    """cam with every option; the others with each selection, profile and branch.

    The methods differ in sums over one gradient, so not each meets all of them.
    """
    for selection in SELECTIONS:
        for profile in ("fused", "split"):
            for branch in ("sigmoid", "softmax"):
                yield "toy", "cam", selection, profile, branch
    for net, method in (
        ("toy", "cam"),
        ("toy", "gradcam++"),
        ("mlp", "gradcam"),
        ("mlp", "finercam"),
    ):
        yield net, method, "input", "fused", "centred"
        yield net, method, "top1", "split", "centred"
    for net, method in itertools.product(("toy", "mlp"), [m for m in WITH_WEIGHTS if m != "cam"]):
        yield net, method, "top1", "fused", "sigmoid"
        yield net, method, "input", "split", "softmax"
        if net == "mlp" and method in ("gradcam++", "layercam", "finercam"):
            yield net, method, "top3", "split", "sigmoid"


@pytest.mark.parametrize(("net", "method", "selection", "profile", "branch"), list(cases()))
def test_graph_and_torch_match_the_oracle(
    tmp_path, make, nets, preprocessing, net, method, selection, profile, branch
):
    # The remaining options alternate, so that each meets each profile and branch.
    dual = make(nets[net])
    odd = (profile == "fused") == (branch == "softmax")
    layout = "float32_nchw" if odd else "uint8_nhwc"
    preprocessing = dataclasses.replace(preprocessing, layout=layout)
    path = tmp_path / "model.onnx"
    nwc = not odd if selection == "top1" else odd
    nwc = nwc and METHODS[method].clamps
    every, signed = selection == "top3", not nwc and branch != "sigmoid"
    spec = export_artifact(
        dual,
        path,
        ExportOptions(
            method=method,
            branch=branch,
            nwc=nwc,
            signed=signed,
            profile=profile,
            classes=SELECTIONS[selection],
            preprocessing=preprocessing,
            sigmoid_logits=every,
        ),
    )
    asked = {"top1": [-1], "top3": [-1, -2, -3], "input": [4, -1, 0, -7]}[selection]
    for batch in BATCHES:
        images = images_of(preprocessing, batch)
        request = np.tile(np.array(asked, np.int64), (batch, 1))
        image = images if not odd else normalised(images, preprocessing).astype(np.float32)
        got = run(path, image, request if selection == "input" else None)
        want = oracle(dual, preprocessing, images, request, branch, nwc, method, signed)
        names = ["logits", "class_ids_out", "evidence_logits"]
        names += ["sigmoid_logits"] if every else []
        names += ["cams"] if profile == "fused" else ["features", "cam_weights"]
        assert list(got) == names
        np.testing.assert_array_equal(got["class_ids_out"], want["class_ids_out"])
        for name in names:
            assert relative(got[name], want[name]) < 1e-4, (name, batch)
        assert got["logits"].dtype == np.float32
        with torch.no_grad():
            output = dual(torch.from_numpy(normalised(images, preprocessing)).float())
        assert relative(output.logits.numpy(), want["logits"]) < 1e-4
        assert relative(output.sigmoid_logits.numpy(), want["sigmoid_logits"]) < 1e-4
    assert max(error.max_rel for error in spec.parity.outputs.values()) < 1e-4
    assert spec.parity.left_out == 0


def test_without_a_sigmoid_branch(tmp_path, dual, preprocessing):
    path = tmp_path / "model.onnx"
    spec = export_artifact(
        dual, path, ExportOptions(branch="softmax", has_sigmoid=False, preprocessing=preprocessing)
    )
    assert spec.source.branch_sha256 is None
    got = run(path, images_of(preprocessing, 3))
    assert list(got) == ["logits", "class_ids_out", "cams"]
    # The untrained branch isn't in the file, not even unused.
    names = {i.name for i in onnx.load(path).graph.initializer}
    assert not any("sigmoid" in name for name in names)


def test_a_convolution_before_the_pooling_is_a_linear_head(tmp_path, make, nets, preprocessing):
    dual = make(nets["conv"], "relu")
    path = tmp_path / "model.onnx"
    export_artifact(dual, path, ExportOptions(purpose="localise", preprocessing=preprocessing))
    images = images_of(preprocessing, 3)
    want = oracle(dual, preprocessing, images, np.full((3, 1), -1), "sigmoid")
    got = run(path, images)
    for name in got:
        assert relative(got[name], want[name]) < 1e-4, name


def test_the_bare_classifier_has_the_same_logits_and_no_spec(tmp_path, dual, preprocessing):
    export_artifact(dual, tmp_path / "a.onnx", ExportOptions(preprocessing=preprocessing))
    export_classifier(dual, tmp_path / "c.onnx", ExportOptions(preprocessing=preprocessing))
    images = images_of(preprocessing, 3)
    got = run(tmp_path / "c.onnx", images)
    assert list(got) == ["logits"]
    assert relative(got["logits"], run(tmp_path / "a.onnx", images)["logits"]) < 1e-6
    assert not onnx.load(tmp_path / "c.onnx").metadata_props


def test_the_file_carries_its_spec(tmp_path, dual, preprocessing):
    path = tmp_path / "model.onnx"
    names = [f"class {i}" for i in range(7)]
    spec = export_artifact(
        dual,
        path,
        ExportOptions(preprocessing=preprocessing, class_names=names, trained_on="seven things"),
    )
    props = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert set(props) == {METADATA_KEY}
    assert Spec.from_json(props[METADATA_KEY]) == spec
    assert spec.target_layers == ("relu",)
    assert spec.feature_shapes == ((10, 6, 8),)
    assert spec.source.architecture == "toy"
    assert spec.source.weights_sha256 == dual.weights_sha256()
    assert spec.source.branch_sha256 == dual.branch_sha256()
    assert spec.source.trained_on == "seven things"
    assert spec.parity.batch_sizes == BATCHES


def test_the_caller_s_module_stays_as_it_is(tmp_path, make, preprocessing):
    dual = make()
    dual.train()
    before = {name: value.clone() for name, value in dual.state_dict().items()}
    export_artifact(dual, tmp_path / "model.onnx", ExportOptions(preprocessing=preprocessing))
    assert dual.sigmoid_head.training
    assert all(p.requires_grad for p in dual.sigmoid_head.parameters())
    for name, value in dual.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("net", "method"), [("toy", "cam"), ("toy", "gradcam++"), ("mlp", "gradcam")]
)
@pytest.mark.parametrize("nwc", [False, True])
def test_no_shift_of_the_softmax_weights_moves_the_centred_branch(
    tmp_path, make, nets, preprocessing, net, method, nwc
):
    dual = make(nets[net])
    head = dual.softmax_head
    shifted = copy.deepcopy(dual)
    last = [name for name, value in head.named_tensors().items() if value.ndim > 1][-1]
    vector = 20 * torch.randn(head.named_tensors()[last].shape[1], generator=torch.Generator())
    moved = {k: v + vector if k == last else v for k, v in head.named_tensors().items()}
    shifted.softmax_head.load_tensors(moved)
    images = images_of(preprocessing, 3)
    found = {}
    for name, model in (("plain", dual), ("shifted", shifted)):
        for branch in ("centred", "softmax"):
            path = tmp_path / f"{name}-{branch}.onnx"
            options = ExportOptions(
                method=method, branch=branch, nwc=nwc, preprocessing=preprocessing
            )
            export_artifact(model, path, options)
            found[name, branch] = run(path, images)["cams"]
    assert found["plain", "centred"].max() > 0
    # The shift itself is rounded to float32 in every weight.
    assert relative(found["shifted", "centred"], found["plain", "centred"]) < 2e-4
    assert relative(found["shifted", "softmax"], found["plain", "softmax"]) > 0.1


def test_centred_weights_cost_one_row_and_no_second_matrix(tmp_path, dual, preprocessing):
    sizes = {}
    for branch in ("softmax", "centred"):
        path = tmp_path / f"{branch}.onnx"
        export_artifact(
            dual,
            path,
            ExportOptions(branch=branch, has_sigmoid=False, preprocessing=preprocessing),
        )
        sizes[branch] = sum(
            int(np.prod(tensor.dims)) for tensor in onnx.load(path).graph.initializer
        )
    N = dual.targets[0].layout.shape[0]
    assert sizes["centred"] - sizes["softmax"] <= N + 2


def test_signed_cams_reach_below_zero_and_are_the_sum_itself(tmp_path, dual, preprocessing):
    images, found = images_of(preprocessing, 3), {}
    for signed in (False, True):
        path = tmp_path / f"{signed}.onnx"
        options = ExportOptions(nwc=False, signed=signed, preprocessing=preprocessing)
        assert export_artifact(dual, path, options).signed is signed
        found[signed] = run(path, images)["cams"]
    assert found[True].min() < 0
    np.testing.assert_array_equal(np.maximum(found[True], 0), found[False])
