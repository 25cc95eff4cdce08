from __future__ import annotations

import pytest
import torch
from torch import nn

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.spec import Preprocessing


class ToyNet(nn.Module):
    """A small network whose head is global average pooling and a linear layer."""

    def __init__(self, num_classes=7):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 10, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(10, num_classes)

    def forward(self, x):
        x = self.relu(self.bn(self.conv1(x)))
        x = self.relu(self.conv2(x))
        return self.fc(self.drop(self.pool(x).flatten(1)))


class ConvHead(ToyNet):
    """The same with a 1x1 convolution before the pooling as its head."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(10, 7, 1)

    def forward(self, x):
        x = self.relu(self.bn(self.conv1(x)))
        x = self.relu(self.conv2(x))
        return self.pool(self.fc(x)).flatten(1)


class MlpHead(ToyNet):
    """A head that cam can't express."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 7))


SIZE = (24, 32)


def make_dual(net=ToyNet, branch_layer=None):
    torch.manual_seed(3)
    model = net()
    with torch.no_grad():
        model.conv1.weight *= 3  # so that features and logits differ between images
        model.conv2.weight *= 3
    return DualBranch(model, branch_layer, input_size=SIZE, architecture="toy")


@pytest.fixture(scope="session")
def dual():
    return make_dual()


@pytest.fixture(scope="session")
def make():
    return make_dual


@pytest.fixture(scope="session")
def nets():
    return {"conv": ConvHead, "mlp": MlpHead, "toy": ToyNet}


@pytest.fixture
def preprocessing():
    return Preprocessing(*SIZE, rule="stretch", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
