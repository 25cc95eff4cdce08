"""Models that end in a softmax, a log-softmax or a sigmoid: their logits are found, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.split import split
from sigcam.classifier.squashing import check_not_probabilities
from sigcam.classifier.trace import trace
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 8, 8)
B = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 3


class Net(nn.Module):
    """A convolution, average pooling and a linear layer; `end` makes the outputs."""

    def __init__(self, end, num_classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 6, 3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(6, num_classes)
        nn.init.normal_(self.fc.weight, std=3)
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.end = end

    def logits(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))

    def forward(self, x):
        return self.end(self, self.logits(x))


def grid(z):
    return z[:, :, None, None]


def dropped(s, z):
    return s.drop(z.softmax(1))


# What a model does with its logits; what is said; the logits that must come out, if others.
STRIPPED = {
    "softmax": (lambda s, z: z.softmax(1), "softmax", None),
    "softmax, last axis": (lambda s, z: functional.softmax(z, -1), "softmax", None),
    "a module": (lambda s, z: nn.Softmax(dim=1)(z), "softmax", None),
    "a 1x1 grid": (lambda s, z: grid(z).softmax(1).view(z.size(0), -1), "softmax", None),
    "Softmax2d": (lambda s, z: nn.Softmax2d()(grid(z)).squeeze(), "softmax", None),
    "a 1x1 grid that stays": (lambda s, z: grid(z).softmax(1), "softmax", None),
    "another axis, moved back": (
        lambda s, z: z.t().softmax(0).transpose(0, 1).contiguous(), "softmax", None,
    ),
    "dropout after it": (dropped, "softmax", None),
    "clamped": (lambda s, z: z.softmax(1).clamp(1e-7, 1 - 1e-7), "softmax", None),
    "a cast": (lambda s, z: z.double().softmax(1).float(), "softmax", None),
    "cast to double": (lambda s, z: z.softmax(1).double(), "softmax", None),
    "in half precision": (lambda s, z: z.half().softmax(1), "softmax", None),
    "in bfloat16": (lambda s, z: z.bfloat16().softmax(1).float(), "softmax", None),
    "sigmoid in bfloat16": (lambda s, z: (z * 4).bfloat16().sigmoid(), "sigmoid",
                            lambda s, z: z * 4),
    "log_softmax in bfloat16": (lambda s, z: z.bfloat16().log_softmax(1), "log_softmax", None),
    "cast to bfloat16 afterwards": (lambda s, z: z.softmax(1).bfloat16(), "softmax", None),
    "logits in half precision": (lambda s, z: z.half(), None, None),
    "logits in bfloat16": (lambda s, z: z.bfloat16(), None, None),
    "of classes": (lambda s, z: z[:, 1:4].softmax(1), "softmax", lambda s, z: z[:, 1:4]),
    "temperature": (lambda s, z: (z / 2.5).softmax(1), "softmax", lambda s, z: z / 2.5),
    "a learned temperature": (
        lambda s, z: (z / s.temperature).softmax(1), "softmax", lambda s, z: z / s.temperature,
    ),
    "softmin": (lambda s, z: functional.softmin(z, 1), "softmax", lambda s, z: -z),
    "classes in another order": (
        lambda s, z: z.softmax(1)[:, [4, 3, 2, 1, 0]], "softmax",
        lambda s, z: z[:, [4, 3, 2, 1, 0]],
    ),
    "classes flipped": (lambda s, z: z.softmax(1).flip(1), "softmax", lambda s, z: z.flip(1)),
    "of a log-softmax": (lambda s, z: z.log_softmax(1).softmax(1), "softmax", None),
    "log_softmax": (lambda s, z: z.log_softmax(1), "log_softmax", None),
    "log of softmax": (lambda s, z: z.softmax(1).log(), "log_softmax", None),
    "log of softmax and a little": (lambda s, z: (z.softmax(1) + 1e-9).log(), "log_softmax", None),
    "exp of log_softmax": (lambda s, z: z.log_softmax(1).exp(), "softmax", None),
    "sigmoid": (lambda s, z: z.sigmoid(), "sigmoid", None),
    "expit": (lambda s, z: torch.special.expit(z).detach(), "sigmoid", None),
    "sigmoid of classes": (lambda s, z: z.sigmoid()[:, :3], "sigmoid", lambda s, z: z[:, :3]),
    "logsigmoid": (lambda s, z: functional.logsigmoid(z), "sigmoid", None),
    "log of sigmoid": (lambda s, z: z.sigmoid().clamp_(min=1e-12).log(), "sigmoid", None),
    "nothing": (lambda s, z: z, None, None),
    "a clamp": (lambda s, z: z.clamp(-1, 1), None, lambda s, z: z.clamp(-1, 1)),
    "a softmax inside": (lambda s, z: (z.softmax(1) * z) @ s.fc.weight @ s.fc.weight.t(), None,
                         lambda s, z: (z.softmax(1) * z) @ s.fc.weight @ s.fc.weight.t()),
}  # fmt: skip


@pytest.mark.parametrize("case", STRIPPED)
def test_the_logits_before_it_are_used(case):
    end, squashing, logits = STRIPPED[case]
    model = Net(end).eval()
    dual = DualBranch(model, example=IMAGES)
    assert dual.squashing == squashing
    assert [line for line in dual.notes if "its logits before it are used" in line] == (
        list(dual.notes) if squashing else []
    )
    with torch.no_grad():
        want = model.logits(B) if logits is None else logits(model, model.logits(B))
        got = dual(B).logits
        alone = dual(B[:1]).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone, want[:1], rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32


REFUSED = {
    "clamp that bites": (lambda s, z: z.softmax(1).clamp(0.1, 0.9), "softmax and then clamp"),
    "one of two classes": (lambda s, z: z[:, :2].softmax(1)[:, 1], "all classes from forward"),
    "some of the classes": (lambda s, z: z.log_softmax(1)[:, :3], "log_softmax and then slice"),
    "over the batch": (lambda s, z: z.softmax(0), "isn't taken over the classes"),
    "twice": (lambda s, z: z.softmax(1).softmax(1), "one after the other"),
    "percent": (lambda s, z: z.softmax(1) * 100, "softmax and then mul"),
    "hardsigmoid": (lambda s, z: functional.hardsigmoid(z), "hardsigmoid"),
    "one less": (lambda s, z: 1 - z.sigmoid(), "sigmoid and then rsub"),
    "a mean of two": (
        lambda s, z: (z.softmax(1) + (z * 2).softmax(1)) / 2, "each row sums to 1",
    ),
    "by hand": (lambda s, z: z.exp() / z.exp().sum(1, keepdim=True), "each row sums to 1"),
    "logarithm by hand": (
        lambda s, z: z - z.logsumexp(1, keepdim=True), "exponentials of each row sum to 1",
    ),
    "both classes of one sigmoid": (
        lambda s, z: torch.stack([z[:, 0].sigmoid(), 1 - z[:, 0].sigmoid()], 1),
        "each row sums to 1",
    ),
    "a sigmoid by hand": (lambda s, z: (z.tanh() + 1) / 2, "with random weights"),
    "two sigmoids": (lambda s, z: z.sigmoid() * (z * 3).sigmoid(), "with random weights"),
    "largest of two": (
        lambda s, z: torch.maximum(z.sigmoid(), z.roll(1, 1).sigmoid()), "with random weights",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case):
    end, words = REFUSED[case]
    with pytest.raises(ModelError, match=words):
        split(Net(end), IMAGES)


def test_half_precision_inside_is_refused_by_name():
    def autocast(s, z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return s.fc(z @ s.fc.weight)

    for end in (autocast, lambda s, z: z.half().float() * 2):
        with pytest.raises(ModelError, match=r"\[B, \d\].* is torch\.b?float16 \(autocast"):
            split(Net(end), IMAGES)


def test_logits_that_happen_to_lie_in_the_unit_interval_are_logits():
    positive = Net(lambda s, z: z)
    nn.init.zeros_(positive.fc.weight)
    nn.init.constant_(positive.fc.bias, 0.5)
    rectified = Net(lambda s, z: z.relu())
    nn.init.normal_(rectified.fc.weight, std=1e-3)
    for model in (positive, rectified):
        assert split(model, IMAGES).squashing is None


@pytest.mark.parametrize("shape", [(-1,), (-1, 1), (-1, 1, 1, 1)])
def test_one_value_per_image_is_traced_as_one_column(shape):
    model = Net(lambda s, z: z.sigmoid().reshape(shape), num_classes=1).eval()
    traced = trace(model, IMAGES)
    assert traced.squashing == "sigmoid"
    assert list(traced.logits.meta["val"].shape)[1:] == [1]
    torch.testing.assert_close(
        traced.original(B), traced.squashed(model.logits(B)), rtol=1e-5, atol=1e-5
    )
    dual = DualBranch(model, example=IMAGES)
    with torch.no_grad():
        want = model.logits(B)
        torch.testing.assert_close(dual(B).logits, torch.cat([-want, want], 1))


def test_the_comparison_with_the_model_is_of_what_the_model_returns():
    calls = []

    def end(s, z):
        # Another function than the one that was traced.
        calls.append(1)
        return (z + len(calls) * 0.5 * torch.arange(5)).softmax(1)

    with pytest.raises(ModelError, match="must be deterministic"):
        split(Net(end), IMAGES)


def test_a_head_without_parameters_is_tried_too():
    """Logits that lie in [0, 1] by accident, behind a head that only adds."""
    logits = torch.tensor([[0.2, 0.9], [0.4, 0.1]])
    check_not_probabilities(logits, nn.Identity(), (2,))
    with pytest.raises(ModelError, match="as they do with random weights"):
        check_not_probabilities(logits, nn.Hardsigmoid(), (2,))
