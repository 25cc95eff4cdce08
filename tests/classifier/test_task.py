"""What the logits mean: found, asked for, or refused; and one logit as two."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier import build
from sigcam.classifier.branch_file import BranchInfo, load_branch, read_branch_info, save_branch
from sigcam.classifier.build import build_classifier, replace_classes
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.head import Head
from sigcam.classifier.task import names_for, task_of
from sigcam.classifier.zoo.base import LoadedModel
from sigcam.core.errors import BranchMismatchError, ModelError, SigcamError, UsageError
from sigcam.core.spec import Preprocessing


def net(num_logits, hidden=False):
    torch.manual_seed(2)
    head = [nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, num_logits)]
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        *(head if hidden else [nn.Linear(6, num_logits)]),
    )


class PointwiseHead(nn.Module):
    """One logit by a 1x1 convolution before the pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 1, 1)

    def forward(self, x):
        return self.last(self.conv(x).relu()).mean((2, 3))


@pytest.mark.parametrize(
    ("asked", "num_logits", "squashing", "task"),
    [
        (None, 5, None, "single-label"),
        (None, 5, "softmax", "single-label"),
        (None, 5, "log_softmax", "single-label"),
        (None, 2, "sigmoid", "multi-label"),
        (None, 1, "sigmoid", "binary"),
        (None, 1, None, "binary"),
        ("binary", 1, None, "binary"),
        ("multi-label", 5, None, "multi-label"),
        ("multi-label", 5, "sigmoid", "multi-label"),
        ("single-label", 2, None, "single-label"),
    ],
)
def test_a_task_is_found_or_taken_as_asked(asked, num_logits, squashing, task):
    assert task_of(asked, num_logits, squashing) == task


@pytest.mark.parametrize(
    ("asked", "num_logits", "squashing", "error", "words"),
    [
        ("multi-label", 5, "softmax", UsageError, "ends in softmax"),
        ("multi-label", 5, "log_softmax", UsageError, "ends in log_softmax"),
        ("single-label", 5, "sigmoid", UsageError, "ends in sigmoid"),
        ("binary", 2, None, UsageError, "has 2"),
        ("binary", 5, "sigmoid", UsageError, "has 5"),
        ("multi-label", 1, None, UsageError, "one logit"),
        ("single-label", 1, None, UsageError, "one logit"),
        (None, 1, "softmax", ModelError, "softmax over one logit"),
    ],
)
def test_a_task_that_contradicts_the_model_is_refused(asked, num_logits, squashing, error, words):
    with pytest.raises(error, match=words):
        task_of(asked, num_logits, squashing)


def test_one_name_becomes_two_for_a_binary_network_only():
    assert names_for("binary", ("nodule",)) == ("not nodule", "nodule")
    assert names_for("binary", ("benign", "malignant")) == ("benign", "malignant")
    assert names_for("multi-label", ("nodule",)) == ("nodule",)
    assert names_for("binary", ()) == ()


@pytest.mark.parametrize("model", [net(1), net(1, hidden=True), PointwiseHead()])
def test_one_logit_becomes_its_negation_and_itself(model):
    images = torch.randn(3, 3, 12, 12)
    dual = DualBranch(model, input_size=12)
    assert (dual.task, dual.num_classes) == ("binary", 2)
    with torch.no_grad():
        want = model(images)
        logits = dual(images).logits
    assert torch.allclose(logits, torch.cat([-want, want], 1), atol=1e-6)
    assert torch.equal(logits[:, 0], -logits[:, 1])


@pytest.mark.parametrize("hidden", [False, True])
def test_the_branch_of_one_logit_stays_tied(hidden):
    dual = DualBranch(net(1, hidden), input_size=12)
    tensors = dual.sigmoid_head.named_tensors()
    last = "6" if hidden else "4"
    assert tensors[f"{last}.weight"].shape == (1, 5 if hidden else 6)
    assert tensors[f"{last}.bias"].shape == (1,)
    with torch.no_grad():
        for parameter in dual.sigmoid_head.parameters():
            parameter.add_(torch.rand_like(parameter))
        logits = dual(torch.randn(2, 3, 12, 12)).sigmoid_logits
    assert torch.equal(logits[:, 0], -logits[:, 1])


@pytest.mark.parametrize("model", [net(1), PointwiseHead()])
def test_linear_weights_of_one_logit_are_both_rows(model):
    head = DualBranch(model, input_size=12).sigmoid_head
    W, b = head.linear_weights()
    (own,) = [v for n, v in head.named_tensors().items() if n.endswith("weight")]
    assert torch.equal(W, torch.cat([-own.flatten(1), own.flatten(1)]))
    assert torch.equal(b[0], -b[1])
    features = torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        assert torch.allclose(head(features), features.mean((2, 3)) @ W.T + b, atol=1e-6)


def test_a_start_from_the_classifier_is_centred_for_a_softmax_only():
    for num_logits, centred, kept in ((4, True, False), (4, False, True), (1, True, True)):
        dual = DualBranch(net(num_logits), input_size=12)
        dual.sigmoid_head.start_from(dual.softmax_head, centred=centred)
        own, other = (h.named_tensors()["4.weight"] for h in (dual.sigmoid_head, dual.softmax_head))
        assert torch.equal(own, other) == kept
        assert own.abs().sum() > 0


class Ending(nn.Module):
    """A network that ends in a function of its logits."""

    def __init__(self, num_logits, end):
        super().__init__()
        self.net, self.end = net(num_logits), end

    def forward(self, x):
        return self.end(self.net(x))


@pytest.mark.parametrize(
    ("num_logits", "end", "task"),
    [
        (3, torch.sigmoid, "multi-label"),
        (3, lambda z: z.sigmoid().clamp(1e-7, 1 - 1e-7), "multi-label"),
        (3, lambda z: z.softmax(1), "single-label"),
        (3, lambda z: z.log_softmax(1), "single-label"),
        (1, torch.sigmoid, "binary"),
        (1, lambda z: z.sigmoid().squeeze(1), "binary"),
        (1, lambda z: z.flatten(), "binary"),
        (3, lambda z: z, "single-label"),
    ],
)
def test_the_end_of_a_model_says_its_task(num_logits, end, task):
    images = torch.randn(2, 3, 12, 12)
    model = Ending(num_logits, end)
    dual = DualBranch(model, input_size=12)
    assert dual.task == task
    with torch.no_grad():
        want = model.net(images)
        logits = dual(images).logits
    assert torch.allclose(logits[:, 1:] if num_logits == 1 else logits, want, atol=1e-6)
    if task != "binary":
        other = {"single-label": "multi-label", "multi-label": "single-label"}[task]
        if dual.squashing is None:
            assert DualBranch(model, input_size=12, task=other).task == other
        else:
            with pytest.raises(UsageError, match=f"ends in {dual.squashing}"):
                DualBranch(model, input_size=12, task=other)


def test_a_softmax_over_one_logit_is_refused():
    with pytest.raises(ModelError):
        DualBranch(Ending(1, lambda z: z.softmax(1)), input_size=12)


def test_two_classes_by_softmax_stay_single_label():
    dual = DualBranch(net(2), input_size=12)
    assert (dual.task, dual.num_classes) == ("single-label", 2)
    assert dual.sigmoid_head.named_tensors()["4.weight"].shape == (2, 6)


def saved(path, num_logits, task=None):
    dual = DualBranch(net(num_logits), input_size=12, task=task)
    info = BranchInfo(
        "nets:small", dual.branch_layer, dual.num_classes, Preprocessing(12, 12), "noise",
        task=dual.task,
    )  # fmt: skip
    save_branch(path, dual, info)
    return dual


def test_the_branch_file_records_the_task(tmp_path):
    path = tmp_path / "branch.safetensors"
    dual = saved(path, 1)
    info = read_branch_info(path)
    assert (info.task, info.num_classes) == ("binary", 2)
    other = DualBranch(net(1), input_size=12)
    load_branch(path, other)
    assert other.branch_sha256() == dual.branch_sha256()


def test_a_branch_of_another_task_is_refused(tmp_path):
    path = tmp_path / "branch.safetensors"
    saved(path, 3, "multi-label")
    with pytest.raises(BranchMismatchError, match="whose task is multi-label"):
        load_branch(path, DualBranch(net(3), input_size=12))
    load_branch(path, DualBranch(net(3), input_size=12, task="multi-label"))


def built(monkeypatch, model, found=None, names=(), **options):
    loaded = LoadedModel(model, "small", Preprocessing(12, 12), names, task=found)
    monkeypatch.setattr(build, "load_model", lambda *_, **__: loaded)
    return build_classifier("small", **options)


def test_the_source_of_a_model_says_its_task(monkeypatch):
    assert built(monkeypatch, net(3), "multi-label").dual.task == "multi-label"
    with pytest.raises(UsageError, match="small says that it is multi-label"):
        built(monkeypatch, net(3), "multi-label", task="single-label")
    one = built(monkeypatch, net(1), names=("nodule",))
    assert (one.dual.task, one.class_names) == ("binary", ("not nodule", "nodule"))


def test_new_classes_of_a_binary_task_are_one_logit(monkeypatch):
    made = built(monkeypatch, net(5), new_classes=2, task="binary")
    assert (made.dual.num_classes, made.dual.task) == (2, "binary")
    assert made.dual.softmax_head.named_tensors()["4.weight"].shape == (1, 6)
    with pytest.raises(UsageError, match="2 classes, got 3"):
        replace_classes(net(5), 3, task="binary")


def test_a_branch_file_rebuilds_a_binary_network(monkeypatch, tmp_path):
    path = tmp_path / "branch.safetensors"
    saved(path, 1)
    asked = []
    loaded = LoadedModel(net(1), "nets:small", Preprocessing(12, 12), ())
    monkeypatch.setattr(build, "load_model", lambda *a, **_: asked.append(a) or loaded)
    monkeypatch.setattr(build, "takes_num_classes", lambda arch: True)
    for num_classes in (None, 1, 2):
        made = build_classifier(branch_file=path, num_classes=num_classes)
        assert (made.dual.task, made.has_sigmoid) == ("binary", True)
        assert asked.pop() == ("nets:small", None, 1)
    for wrong in ({"num_classes": 3}, {"task": "multi-label"}):
        with pytest.raises(BranchMismatchError, match="leave that option out"):
            build_classifier(branch_file=path, **wrong)


def test_a_head_without_a_linear_end_works_for_one_logit():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.scale = net(1), nn.Parameter(torch.tensor(2.0))

        def forward(self, x):
            return self.net(x) * self.scale

    model, images = Scaled(), torch.randn(2, 3, 12, 12)
    head = DualBranch(model, input_size=12).softmax_head
    assert isinstance(head, Head)
    with pytest.raises(SigcamError, match="one linear layer"):
        head.linear_weights()
    with torch.no_grad():
        want = model(images)
        assert torch.allclose(DualBranch(model, input_size=12)(images).logits[:, 1:], want)
