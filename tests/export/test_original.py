"""The graph's gradients against the model's own, with its hooks and backward passes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ParityError
from sigcam.core.spec import Preprocessing
from sigcam.export.export import export_artifact
from sigcam.export.options import ExportOptions
from sigcam.export.parity.original import check_original
from tests.support.versioned import Versioned


class Guided(torch.autograd.Function):
    """A ReLU that lets only positive gradients pass."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.relu()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient.relu() * (x > 0)


class Reversed(torch.autograd.Function):
    """An identity that reverses gradients (domain adaptation)."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def hooked(x):
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient.clamp(min=0))
    return x * 1


class Net(nn.Module):
    """Two convolutions and a perceptron; something after the first and after the second."""

    def __init__(self, early=None, late=None):
        super().__init__()
        torch.manual_seed(0)
        self.early, self.late = early, late
        self.first, self.second = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)
        self.lift, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

    def forward(self, x):
        x = self.first(x)
        x = self.second(x.relu() if self.early is None else self.early(x))
        x = self.lift(x.relu())
        x = x.relu() if self.late is None else self.late(x)
        return self.fc(x.mean((2, 3)))


def check(model, **options):
    dual = DualBranch(model, options.pop("branch_layer", "second"), input_size=32, **options)
    check_original(dual, Preprocessing(32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("change", [Guided.apply, Reversed.apply, hooked])
def test_a_backward_pass_of_its_own_behind_the_target_is_refused(change):
    with pytest.raises(ParityError, match=r"at the layer 'second' differs from the model's own"):
        check(Net(late=change))


@pytest.mark.slow
@pytest.mark.parametrize("change", [Guided.apply, Reversed.apply])
def test_before_the_target_it_does_not_matter(change):
    check(Net(early=change))


@pytest.mark.slow
def test_a_backward_hook_on_a_module_is_refused():
    model = Net()
    model.lift.register_full_backward_hook(lambda m, i, o: (i[0] * 0.5 + 1e-3,))
    with pytest.raises(ParityError, match="a backward hook"):
        check(model)


@pytest.mark.slow
def test_the_advice_can_be_followed():
    """Without the rule of its own, and with a target layer behind it."""
    check(Net())
    check(Net(early=Guided.apply), branch_layer="lift")


@pytest.mark.slow
def test_a_value_without_a_module_is_compared_at_the_images():
    dual = DualBranch(Net(late=Reversed.apply), "forward:relu", input_size=32)
    with pytest.raises(ParityError, match="with respect to the images"):
        check_original(dual, Preprocessing(32, 32))


@pytest.mark.slow
def test_nothing_is_written(tmp_path):
    dual = DualBranch(Net(late=Guided.apply), "second", input_size=32)
    with pytest.raises(ParityError, match="nothing was written"):
        export_artifact(dual, tmp_path / "model.onnx", ExportOptions(method="gradcam"))
    assert not list(tmp_path.iterdir())


def test_the_model_keeps_no_hooks():
    dual = DualBranch(Net(), "second", input_size=32)
    check_original(dual, Preprocessing(32, 32))
    assert not any(m._forward_hooks for m in dual.softmax_head.traced.model.modules())


class InPlace(nn.Module):
    """Changes what its own backward pass would need."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = Net(), change

    def forward(self, x):
        return self.change(self.net(x).softmax(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.clamp_(1e-6, 1.0),
        lambda p: p.log().exp_().mul_(1.0),
        lambda p: torch.from_numpy(p.numpy()) if not torch.compiler.is_exporting() else p,
    ],
)
def test_a_model_without_a_backward_pass_of_its_own_has_nothing_to_compare(change):
    model = InPlace(change).eval()
    dual = DualBranch(model, "net.second", input_size=32)
    check_original(dual, Preprocessing(32, 32))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(dual(x).logits, model.net(x), rtol=1e-5, atol=1e-5)


class VersionedConv(Versioned, nn.Conv2d):
    pass


@pytest.mark.slow
def test_layers_that_ask_for_their_version_are_checked():
    net = Net()
    net.second = VersionedConv(6, 8, 3, 2, 1)
    check(net)
