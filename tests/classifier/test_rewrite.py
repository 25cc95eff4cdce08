"""Folding batch norms keeps the function and leaves what can't be folded."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision import models

from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.rewrite import BATCH_NORM, fold_batch_norms

pytestmark = pytest.mark.slow


def norms(graph_module):
    return len(graph_module.graph.find_nodes(op="call_function", target=BATCH_NORM))


class Shared(nn.Module):
    """A convolution that is read with and without its batch norm."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc(torch.relu(self.norm(x) + x).mean((2, 3)))


def randomised(model):
    """Batch norms as training leaves them; fresh ones are all but the identity."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model


@pytest.mark.parametrize(
    ("model", "left"),
    [(models.resnet18(), 0), (models.mobilenet_v3_small(), 0), (Shared(), 1)],
    ids=["resnet18", "mobilenet_v3_small", "shared"],
)
def test_the_folded_backbone_computes_the_same(model, left):
    dual = DualBranch(randomised(model), input_size=64)
    before = norms(dual.features)
    folded = fold_batch_norms(dual.features)
    assert before >= max(left, 1)
    assert norms(folded) == left
    assert norms(dual.features) == before  # the original is left alone
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        want, got = dual.features(images), folded(images)
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
