"""Target layers that the logits don't depend on, and models that are no fixed computation."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ModelError


class Tokens(nn.Module):
    """A class token attends to patches; it alone is classified."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.before = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.after = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)

    def between(self, x):
        return x

    def forward(self, x):
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], 1)
        normed = self.between(self.before(tokens))
        found, _ = self.attention(normed, normed, normed, need_weights=False)
        return self.fc(self.after(found)[:, 0])


def made(between):
    torch.manual_seed(0)
    return type("Made", (Tokens,), {"between": lambda self, x: between(x)})()


def split(model, *target_layers):
    return DualBranch(model, "after", input_size=16, target_layers=target_layers)


@pytest.mark.slow
def test_the_layer_behind_the_last_attention_is_refused():
    assert split(Tokens()).targets[0].layer == "before"
    assert split(Tokens(), "before").targets[0].layer == "before"
    # The class token's own gradient isn't the grid's.
    with pytest.raises(ModelError, match=r"grid of the target layer 'after', but their gradient"):
        split(Tokens(), "after")


def test_one_dead_layer_of_two_is_named():
    with pytest.raises(ModelError, match="target layer 'after'"):
        split(Tokens(), "before", "after")


@pytest.mark.parametrize("cut", [torch.round, torch.Tensor.detach])
def test_a_layer_that_is_cut_off(cut):
    with pytest.raises(ModelError, match="target layer 'before', but their gradient there is zero"):
        split(made(cut), "before")


class Conditional(Tokens):
    """Chooses its way in the graph."""

    def forward(self, x):
        x = torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y + 1, (x,))
        return super().forward(x)


class Branching(Tokens):
    """Chooses its way in Python."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


def test_control_flow_is_refused_and_nothing_is_printed(capfd):
    with pytest.raises(ModelError, match=r"one fixed computation, it has control flow \(cond\)"):
        split(Conditional())
    with pytest.raises(ModelError, match="chooses its way by the values of tensors"):
        split(Branching())
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_torchscript_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; people have such models
        scripted = torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    with pytest.raises(ModelError, match="it is a TorchScript module"):
        DualBranch(scripted, input_size=16)
