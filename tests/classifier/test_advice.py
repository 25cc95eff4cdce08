"""What an error advises works: each case triggers one and then follows it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.split import split
from sigcam.core.errors import ModelError

pytestmark = pytest.mark.slow

IMAGES = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """Two stages; the second is joined by the first at the end, if `beside`."""

    def __init__(self, beside=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)
        self.pool, self.fc, self.beside = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 5), beside

    def forward(self, x):
        low = self.first(x).relu()
        out = self.pool(self.second(low)).flatten(1)
        return self.fc(out + low.mean((2, 3)) if self.beside else out)


class Pair(nn.Module):
    """A stage that returns a tuple, and a recurrent layer that does."""

    def __init__(self):
        super().__init__()
        self.stage, self.rnn = Stage(), nn.GRU(6, 4, batch_first=True)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.rnn(self.stage(x)[1].flatten(2).transpose(1, 2))[0].mean(1))


class Stage(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x):
        return x, self.conv(x)


class Mean(nn.Module):
    """Two networks and the mean of their logits."""

    def __init__(self):
        super().__init__()
        self.one, self.two = Net(), Net()

    def forward(self, x):
        return (self.one(x) + self.two(x)) / 2


CASES = {
    "a branch layer that others go around": (
        lambda: Net(beside=True),
        {"branch_layer": "second"},
        "a branch can begin at 'forward:relu': leave the branch layer out",
        {},
    ),
    "nothing to train": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.AdaptiveAvgPool2d(1),
                              nn.Flatten()),
        {"branch_layer": "1"},
        "a branch can begin at '0': leave the branch layer out",
        {},
    ),
    "no branch layer anywhere": (
        Mean,
        {"branch_layer": "one.second"},
        "leave the branch layer out and name target layers instead",
        {"target_layers": ["one.second"]},
    ),
    "no target layer": (
        Mean, {}, "such as one.second or two.second", {"target_layers": ["two.second"]},
    ),
    "a target layer after the branch layer": (
        lambda: Net(beside=True),
        {"branch_layer": "forward:relu", "target_layers": ["second"]},
        "leave the branch layer out .*, and the head begins after the target layer",
        {"target_layers": ["second"]},
    ),
    "a target layer after the branch layer, left out": (
        lambda: Net(beside=True),
        {"branch_layer": "forward:relu", "target_layers": ["second"]},
        "or leave the target layer out",
        {"branch_layer": "forward:relu"},
    ),
    "no grid": (
        Net, {"target_layers": ["pool"]}, "name an earlier layer", {"target_layers": ["second"]}
    ),
    "a tuple": (
        Pair, {"target_layers": ["stage"]}, "name a layer inside it",
        {"target_layers": ["stage.conv"]},
    ),
    "a tuple of a layer without others inside": (
        Pair, {"target_layers": ["rnn"]}, "name a layer before it",
        {"target_layers": ["stage.conv"]},
    ),
    "a name that isn't there": (
        Net, {"target_layers": ["secnd"]}, "did you mean second", {"target_layers": ["second"]}
    ),
    "a run that isn't there": (
        Net, {"target_layers": ["second#2"]}, "of its runs they depend on #1",
        {"target_layers": ["second#1"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_advice_works(case):
    build, wrong, words, right = CASES[case]
    torch.manual_seed(0)
    model = build()
    with pytest.raises(ModelError, match=words):
        split(model, IMAGES, **wrong)
    parts = split(model, IMAGES, **right)
    wanted = right.get("target_layers")
    assert wanted is None or [one.layer for one in parts.targets] == wanted
