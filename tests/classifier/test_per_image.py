"""What a model computes for the whole batch, or by its size, is refused by its name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.split import split
from sigcam.core.errors import ModelError

IMAGES = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def features(self, x):
        return self.conv(x).relu()

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


def made(forward):
    return type("Made", (Net,), {"forward": forward})()


def of_the_features(s, x):
    f = s.features(x)
    return s.fc(f.mean((2, 3)) * f.max().item())


def of_the_images(s, x):
    return s.fc(s.features(x).mean((2, 3)) * x.max().item())


def before_the_features(s, x):
    return Net.forward(s, x / x.abs().max().item())


def in_a_list(s, x):
    return s.fc(s.features(x).mean((2, 3)) + x.mean((0, 2, 3)).tolist()[0])


@pytest.mark.parametrize(
    "forward", [of_the_features, of_the_images, before_the_features, in_a_list]
)
def test_a_number_out_of_all_images(forward):
    with pytest.raises(ModelError, match=r"forward:item.* is one Python number for all .*x.amax"):
        split(made(forward), IMAGES)


def test_a_number_that_is_kept_or_comes_from_the_weights_passes():
    def as_advised(s, x):
        return Net.forward(s, x / x.abs().amax((1, 2, 3), keepdim=True))

    def noted(s, x):
        s.largest = s.features(x).max().item()
        return Net.forward(s, x)

    def scaled(s, x):
        return Net.forward(s, x) * s.fc.bias[0].item()

    for forward in (as_advised, noted, scaled):
        assert split(made(forward), IMAGES).branch.layout.shape == (6, 14, 14)


class CondConv(nn.Module):
    """A convolution whose kernel is a mixture, with shares that each image has for itself."""

    def __init__(self):
        super().__init__()
        self.route = nn.Linear(6, 4)
        self.kernels = nn.Parameter(torch.randn(4, 8 * 6 * 3 * 3))

    def forward(self, x):
        B, C, H, W = x.shape
        kernels = self.route(x.mean((2, 3))).sigmoid() @ self.kernels
        kernels = kernels.view(B * 8, C, 3, 3)
        y = functional.conv2d(x.reshape(1, B * C, H, W), kernels, padding=1, groups=B)
        return y.reshape(B, 8, H, W)


def test_kernels_of_the_image():
    layers = nn.Conv2d(3, 6, 3), CondConv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    with pytest.raises(ModelError, match=r"1:conv2d .* kernel of its own \(as CondConv does\)"):
        split(nn.Sequential(*layers, nn.Linear(8, 5)), IMAGES)


@pytest.mark.slow
def test_timm_s_condconv():
    timm = pytest.importorskip("timm")
    with pytest.raises(ModelError, match="convolves each image with a kernel of its own"):
        split(timm.create_model("tf_efficientnet_cc_b0_4e"), torch.zeros(1, 3, 64, 64))
