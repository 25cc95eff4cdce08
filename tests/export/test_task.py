"""Networks of every task through export and runtime, against references made by hand."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.cli import main
from sigcam.core.artifact import read_spec
from sigcam.core.errors import ParityError, SchemaError, UsageError
from sigcam.core.spec import Preprocessing, Spec
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions
from sigcam.runtime.session import load
from tests.export.test_original import Reversed

pytestmark = pytest.mark.slow

SIZE = 8
PLAIN = Preprocessing(SIZE, SIZE, "stretch", mean=(0, 0, 0), std=(1, 1, 1))
IMAGE = np.random.default_rng(4).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


class Net(nn.Module):
    """Features that NumPy can follow: a 1x1 convolution and a ReLU, then pooling and a head."""

    def __init__(self, num_logits, hidden=False):
        super().__init__()
        random = torch.Generator().manual_seed(8)
        self.conv = nn.Conv2d(3, 5, 1)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(5, 3, 1, 1, generator=random))
            self.conv.bias.fill_(0.3)
        self.hidden = nn.Linear(5, 6) if hidden else None
        self.fc = nn.Linear(6 if hidden else 5, num_logits)
        with torch.no_grad():
            for layer in (self.fc, *([self.hidden] if hidden else [])):
                for parameter in layer.parameters():
                    parameter.copy_(3 * torch.randn(parameter.shape, generator=random))

    def forward(self, x):
        z = self.conv(x).relu().mean((2, 3))
        return self.fc(z if self.hidden is None else self.hidden(z).relu())


def tensors(net):
    return {n: p.detach().double().numpy() for n, p in net.named_parameters()}


def forward(net, image):
    """Returns features [5, h, w], logits [L] and their gradients [L, 5] for the pooled features."""
    t = tensors(net)
    x = image.transpose(2, 0, 1) / 255
    features = np.einsum("nc,chw->nhw", t["conv.weight"][:, :, 0, 0], x)
    features = np.maximum(features + t["conv.bias"][:, None, None], 0)
    z = features.mean((1, 2))
    if "hidden.weight" not in t:
        return features, t["fc.weight"] @ z + t["fc.bias"], t["fc.weight"]
    inner = t["hidden.weight"] @ z + t["hidden.bias"]
    logits = t["fc.weight"] @ np.maximum(inner, 0) + t["fc.bias"]
    return features, logits, (t["fc.weight"] * (inner > 0)) @ t["hidden.weight"]


def cam_of(method, features, row):
    """The CAM of a logit whose gradient for the pooled features is `row`."""
    positions = features[0].size
    weights = row if method == "cam" else row / positions
    weights = np.maximum(weights, 0) if method == "layercam" else weights
    return np.maximum(np.einsum("n,nhw->hw", weights, features), 0)


def with_logit(net, value):
    """Moves the bias so that the network says `value` for IMAGE."""
    logit = forward(net, IMAGE)[1][0]
    with torch.no_grad():
        net.fc.bias.add_(value - logit)
    return net


def exported(tmp_path, net, task=None, **options):
    dual = DualBranch(net, input_size=SIZE, task=task)
    options = {"branch": "softmax", "has_sigmoid": False, "preprocessing": PLAIN, **options}
    spec = export_artifact(dual, tmp_path / "m.onnx", ExportOptions(**options))
    assert read_spec(tmp_path / "m.onnx") == spec
    return spec


@pytest.mark.parametrize(
    ("method", "hidden"), [("cam", False), ("gradcam", True), ("layercam", False)]
)
def test_both_classes_of_one_logit_have_their_probability_and_map(tmp_path, method, hidden):
    net = with_logit(Net(1, hidden), -2.97)
    options = {"class_names": ("nodule",), "method": method, "classes": "input"}
    spec = exported(tmp_path, net, head_graph=True, **options)
    assert (spec.task, spec.num_classes, spec.class_names) == (
        "binary", 2, ("not nodule", "nodule"),
    )  # fmt: skip
    features, _, [row] = forward(net, IMAGE)
    with load(tmp_path / "m.onnx", "ort") as session:
        negative, positive = session.explain(IMAGE, top_k=2)
        assert (negative.label, positive.label) == ("not nodule", "nodule")
        assert round(positive.probability, 3) == 0.049
        assert round(negative.probability, 3) == 0.951
        for one, sign in ((negative, -1), (positive, 1)):
            want = cam_of(method, features, sign * row)
            np.testing.assert_allclose(one.cam, want, atol=1e-4 * np.abs(want).max() + 1e-7)
        assert np.abs(positive.cam - negative.cam).max() > 1e-4
        [later] = negative.for_classes("nodule")
        np.testing.assert_allclose(later.cam, positive.cam, atol=1e-5)
        assert later.probability == positive.probability


class Squashed(Net):
    """The same, and a sigmoid at the end."""

    def forward(self, x):
        return super().forward(x).sigmoid().squeeze(1)


def test_one_probability_is_one_logit(tmp_path):
    net = with_logit(Squashed(1), 1.25)
    assert exported(tmp_path, net, classes="top2").task == "binary"
    features, _, [row] = forward(net, IMAGE)
    with load(tmp_path / "m.onnx", "ort") as session:
        positive, negative = session.explain(IMAGE, top_k=2)
    assert positive.probability == pytest.approx(1 / (1 + np.exp(-1.25)), abs=1e-6)
    np.testing.assert_allclose(positive.cam, cam_of("cam", features, row), atol=1e-4)
    np.testing.assert_allclose(negative.cam, cam_of("cam", features, -row), atol=1e-4)


def test_the_own_gradient_of_one_logit_is_compared(tmp_path):
    class Odd(Net):
        def forward(self, x):
            return self.fc(Reversed.apply(self.conv(x).relu()).mean((2, 3)))

    with pytest.raises(ParityError, match="differs from the model's own"):
        exported(tmp_path, Odd(1), method="gradcam")


def test_the_tied_sigmoid_branch_of_one_logit(tmp_path):
    dual = DualBranch(with_logit(Net(1), 1.5), input_size=SIZE)
    with torch.no_grad():
        for parameter in dual.sigmoid_head.parameters():
            parameter.mul_(0.5).add_(0.1)
    options = ExportOptions(preprocessing=PLAIN, classes="top2", sigmoid_logits=True)
    export_artifact(dual, tmp_path / "m.onnx", options)
    W, b = (dual.sigmoid_head.named_tensors()[f"fc.{n}"].numpy() for n in ("weight", "bias"))
    assert (W.shape, b.shape) == ((1, 5), (1,))
    features, _, _ = forward(dual_net(dual), IMAGE)
    logit = float((W @ features.mean((1, 2)) + b)[0])
    with load(tmp_path / "m.onnx", "ort") as session:
        positive, negative = session.explain(IMAGE, top_k=2)
    assert (positive.class_id, negative.class_id) == (1, 0)
    assert positive.probability == pytest.approx(1 / (1 + np.exp(-1.5)), abs=1e-6)
    assert positive.evidence == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-5)
    assert negative.evidence == pytest.approx(1 - positive.evidence, abs=1e-6)
    for one, sign in ((positive, 1), (negative, -1)):
        np.testing.assert_allclose(one.cam, cam_of("cam", features, sign * W[0]), atol=1e-4)


def dual_net(dual):
    """A network with the features of a DualBranch, for `forward`."""
    net = Net(1)
    net.conv.load_state_dict(
        {n: dual.features.state_dict()[f"conv.{n}"] for n in ("weight", "bias")}
    )
    return net


def test_a_multi_label_probability_is_the_sigmoid_of_the_own_logit(tmp_path):
    net = Net(4)
    spec = exported(tmp_path, net, "multi-label", classes="top4", method="gradcam")
    assert spec.task == "multi-label"
    features, logits, rows = forward(net, IMAGE)
    with load(tmp_path / "m.onnx", "ort") as session:
        found = session.explain(IMAGE, top_k=4)
    assert [one.class_id for one in found] == np.argsort(-logits).tolist()
    for one in found:
        want = 1 / (1 + np.exp(-logits[one.class_id]))
        assert one.probability == pytest.approx(want, abs=1e-5)
        cam = cam_of("gradcam", features, rows[one.class_id])
        np.testing.assert_allclose(one.cam, cam, atol=1e-5)


def test_two_classes_stay_a_softmax(tmp_path):
    net = Net(2)
    exported(tmp_path, net, classes="top2")
    logits = forward(net, IMAGE)[1]
    with load(tmp_path / "m.onnx", "ort") as session:
        found = {one.class_id: one.probability for one in session.explain(IMAGE, top_k=2)}
    want = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    assert [found[0], found[1]] == pytest.approx(want.tolist(), abs=1e-6)


def test_the_centred_branch_of_one_logit_is_that_logit(tmp_path):
    net = with_logit(Net(1), 0.4)
    exported(tmp_path, net, branch="centred", classes="top2")
    features, _, [row] = forward(net, IMAGE)
    with load(tmp_path / "m.onnx", "ort") as session:
        positive, negative = session.explain(IMAGE, top_k=2)
    np.testing.assert_allclose(positive.cam, cam_of("cam", features, row), atol=1e-4)
    np.testing.assert_allclose(negative.cam, cam_of("cam", features, -row), atol=1e-4)


@pytest.mark.parametrize("form", ["head graph", "input", "topk"])
def test_every_class_above_a_probability(tmp_path, form):
    net = Net(6)
    how = {
        "head graph": {"classes": "top1", "head_graph": True},
        "input": {"classes": "input"},
        "topk": {"classes": "top2"},
    }[form]
    exported(tmp_path, net, "multi-label", **how)
    features, logits, rows = forward(net, IMAGE)
    ranked = np.argsort(-logits)
    probabilities = 1 / (1 + np.exp(-logits))
    least = float(probabilities[ranked[[3, 4]]].mean())  # four classes are above
    with load(tmp_path / "m.onnx", "ort") as session:
        assert session.explain(IMAGE, min_probability=1.0) == []
        one = session.explain(IMAGE, min_probability=float(probabilities[ranked[:2]].mean()))
        assert [e.class_id for e in one] == [ranked[0]]
        if form == "topk":
            with pytest.raises(UsageError, match=r"4 classes .* maps of 2 at most"):
                session.explain(IMAGE, min_probability=least)
            return
        [found, again] = session.explain([IMAGE, IMAGE], min_probability=least)
        assert [e.class_id for e in found] == ranked[:4].tolist()
        assert [e.class_id for e in again] == ranked[:4].tolist()
        for e in found:
            assert e.probability == pytest.approx(probabilities[e.class_id], abs=1e-5)
            np.testing.assert_allclose(e.cam, cam_of("cam", features, rows[e.class_id]), atol=1e-4)


def test_the_command_line_tells_the_task_and_takes_a_probability(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), IMAGE[..., ::-1])
    net = Net(5)
    exported(tmp_path, net, "multi-label", classes="input")
    logits = forward(net, IMAGE)[1]
    probabilities = 1 / (1 + np.exp(-logits))

    def run(*arguments):
        return CliRunner().invoke(main, [str(a) for a in arguments])

    shown = run("info", tmp_path / "m.onnx").stdout
    assert "multi-label: probabilities by sigmoid" in shown
    assert json.loads(run("info", tmp_path / "m.onnx", "--json").stdout)["task"] == "multi-label"
    explain = ["explain", tmp_path / "m.onnx", tmp_path / "a.png", "--backend", "ort"]
    found = json.loads(run(*explain, "--min-probability", "0.5", "--json").stdout)
    got = {e["class_id"]: e["probability"] for e in found["explanations"]}
    want = {i: p for i, p in enumerate(probabilities) if p >= 0.5}
    assert got == pytest.approx(want, abs=1e-5)
    assert "no class is probable enough" in run(*explain, "--min-probability", "1").stdout
    refused = run(*explain, "--min-probability", "0.5", "--topk", "2")
    assert refused.exit_code == 2
    assert "exclude each other" in refused.stderr


def test_a_spec_refuses_what_is_no_task(tmp_path):
    spec = exported(tmp_path, Net(1))
    data = {"schema_version": json.loads(spec.to_json())["schema_version"], **asdict(spec)}
    with pytest.raises((SchemaError, UsageError), match="task"):
        Spec.from_json(json.dumps({**data, "task": "regression"}))
    with pytest.raises((SchemaError, UsageError), match="2 classes"):
        Spec.from_json(json.dumps({**data, "num_classes": 3}))
