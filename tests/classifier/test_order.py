"""The positions of a grid must lie as the image's do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ModelError


class Tokens(nn.Module):
    """Patches as tokens in a given order, put back in order before the norm."""

    def __init__(self, order):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.early = nn.LayerNorm(8)
        self.late = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(self.late(self.early(tokens[:, self.order])[:, self.back]).mean(1))


def windows(side, window):
    """The order that keeps the tokens of a window together."""
    index = torch.arange(side * side).reshape(side // window, window, side // window, window)
    return index.permute(0, 2, 1, 3).flatten()


@pytest.mark.parametrize("order", [windows(6, 3), torch.arange(36).reshape(6, 6).T.flatten()])
def test_tokens_in_another_order_are_refused(order):
    dual = DualBranch(Tokens(order), input_size=24)
    assert (dual.branch.layer, dual.branch.layout.kind) == ("late", "tokens")
    with pytest.raises(ModelError, match=r"'early' must lie as the image's do"):
        DualBranch(Tokens(order), input_size=24, target_layers=["early"])
    with pytest.raises(ModelError, match=r"'early' must lie as the image's do"):
        DualBranch(Tokens(order), "early", input_size=24)


def test_the_image_s_order_passes_everywhere():
    plain = Tokens(torch.arange(36))
    assert DualBranch(plain, input_size=24, target_layers=["early"]).targets[0].layer == "early"


def test_a_network_that_ignores_the_image_passes():
    silent = Tokens(windows(6, 3))
    nn.init.zeros_(silent.patches.weight)
    dual = DualBranch(silent, input_size=24, target_layers=["early"])
    assert dual.targets[0].layer == "early"
