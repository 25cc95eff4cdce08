"""Builds the localisation networks of the paper out of torchvision's parts.

"Beyond Softmax" (Oh and Noh, BMVC 2025), Section 4 and Table 3, takes the three networks
of Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right" (CVPR
2020): classifiers whose last feature map is 14x14 for a 224x224 image. The names of the
layers are those of that code, so that its checkpoints fit as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.inception import BasicConv2d, InceptionA, InceptionB, InceptionC
from torchvision.models.resnet import Bottleneck, ResNet, ResNet50_Weights
from torchvision.models.vgg import VGG, cfgs, make_layers

from sigcam.classifier.zoo import torchvision as torchvision_models
from sigcam.classifier.zoo.base import LoadedModel, check_num_classes, unknown_weights
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing

# Choe et al. test on images resized to 224x224 whatever their aspect.
_PREPROCESSING = Preprocessing(224, 224, "stretch")


def resnet50(num_classes: int = 1000) -> nn.Module:
    """Builds ResNet-50 without the stride of layer4; that has no parameters of its own.

    It maps images float32 [B, 3, H, W] to logits [B, C]; F is layer4's [B, 2048, H/16, W/16].

    Args:
        num_classes: C.

    Example:
        >>> with torch.device("meta"):  # shapes alone
        ...     features = nn.Sequential(*list(resnet50(200).children())[:-2])
        ...     features(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 2048, 14, 14])
    """
    model: nn.Module = ResNet(Bottleneck, [3, 4, 6, 3], num_classes=num_classes)
    first: Any = model.get_submodule("layer4.0")
    for layer in (first.conv2, first.downsample[0]):
        layer.stride = (1, 1)
    return model


class LocalisationVgg(nn.Sequential):
    """VGG-16 without its last max-pool, a 3x3 convolution to 1,024 channels, a linear layer.

    It maps images float32 [B, 3, H, W] to logits [B, C]; F is relu's [B, 1024, H/16, W/16].
    """

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__(
            OrderedDict(
                features=_vgg16_features(),
                conv6=nn.Conv2d(512, 1024, 3, padding=1),
                relu=nn.ReLU(),
                avgpool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(),
                fc=nn.Linear(1024, num_classes),
            )
        )


def vgg16_mlp(num_classes: int = 1000) -> nn.Module:
    """Builds VGG-16 with its MLP head but without its last max-pool.

    It is the form that the paper's code takes for gradient CAMs. Its tensors have torchvision's
    names and shapes, but average pooling alone leads from 14x14 to the head's 7x7. It
    maps images float32 [B, 3, H, W] to logits [B, C]; F is features' [B, 512, H/16, W/16].

    Args:
        num_classes: C.

    Example:
        >>> with torch.device("meta"):  # shapes alone
        ...     vgg16_mlp(200).features(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 512, 14, 14])
    """
    model: nn.Module = VGG(_vgg16_features(), num_classes=num_classes, init_weights=False)
    return model


class LocalisationInception(nn.Sequential):
    """InceptionV3 up to Mixed_6e, two 3x3 convolutions, and a 1x1 convolution to the classes.

    Conv2d_1a_3x3 and the pools are padded; a third pool stands before Mixed_6a, which has
    no stride. It maps images float32 [B, 3, H, W] to logits [B, C]; F is SPG_A3_2b's [B, 1024,
    14, 14] for 224x224.
    """

    def __init__(self, num_classes: int = 1000) -> None:
        layers: list[tuple[str, nn.Module]] = [
            ("Conv2d_1a_3x3", BasicConv2d(3, 32, kernel_size=3, stride=2, padding=1)),
            ("Conv2d_2a_3x3", BasicConv2d(32, 32, kernel_size=3)),
            ("Conv2d_2b_3x3", BasicConv2d(32, 64, kernel_size=3, padding=1)),
            ("maxpool1", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
            ("Conv2d_3b_1x1", BasicConv2d(64, 80, kernel_size=1)),
            ("Conv2d_4a_3x3", BasicConv2d(80, 192, kernel_size=3)),
            ("maxpool2", nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)),
            ("Mixed_5b", InceptionA(192, pool_features=32)),
            ("Mixed_5c", InceptionA(256, pool_features=64)),
            ("Mixed_5d", InceptionA(288, pool_features=64)),
            ("maxpool3", nn.MaxPool2d(3, 2, ceil_mode=True)),
            ("Mixed_6a", _InceptionBWithoutStride(288)),
            ("Mixed_6b", InceptionC(768, channels_7x7=128)),
            ("Mixed_6c", InceptionC(768, channels_7x7=160)),
            ("Mixed_6d", InceptionC(768, channels_7x7=160)),
            ("Mixed_6e", InceptionC(768, channels_7x7=192)),
            ("dropout1", nn.Dropout()),
            ("SPG_A3_1b", nn.Sequential(nn.Conv2d(768, 1024, 3, padding=1), nn.ReLU())),
            ("dropout2", nn.Dropout()),
            ("SPG_A3_2b", nn.Sequential(nn.Conv2d(1024, 1024, 3, padding=1), nn.ReLU())),
            ("dropout3", nn.Dropout()),
            ("SPG_A4", nn.Conv2d(1024, num_classes, 1)),
            ("avgpool", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
        ]
        super().__init__(OrderedDict(layers))


class _InceptionBWithoutStride(InceptionB):  # type: ignore[misc]  # torchvision is untyped
    """torchvision's InceptionB with padding in place of its stride; the same tensors."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels)
        self.branch3x3 = BasicConv2d(in_channels, 384, kernel_size=3, padding=1)
        self.branch3x3dbl_3 = BasicConv2d(96, 96, kernel_size=3, padding=1)
        self.pool = nn.MaxPool2d(3, 1, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Returns [B, 480 + N, h, w] for float [B, N, h, w]."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, self.pool(x)], 1)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "wsol-resnet50": resnet50,
    "wsol-vgg16": LocalisationVgg,
    "wsol-inceptionv3": LocalisationInception,
    "wsol-vgg16-mlp": vgg16_mlp,
}
"""Name to what builds it from the number of classes."""


def load(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    """Loads one of `NETWORKS`.

    Args:
        arch: the network's name.
        name: the name of torchvision's ResNet-50 weights, for "wsol-resnet50" only: strides
            have no parameters, so they fit, though that network was trained with the stride.
            None for fresh parameters.
        num_classes: C; 1000 when None.

    Raises:
        UsageError: other trained weights, or weights of another number of classes.
        ModelError: the weights can't be downloaded.

    Example:
        load("wsol-resnet50", "IMAGENET1K_V1", None).model.layer4[0].conv2.stride  # (1, 1)
    """
    build = NETWORKS[arch]
    if name is None:
        return LoadedModel(build(num_classes or 1000), arch, _PREPROCESSING, ())
    if build is not resnet50:
        raise UsageError(
            f"there are no published weights of {arch}, so {name!r} can't be had; give a file "
            "(a checkpoint of the paper's code fits), or random"
        )
    members = list(ResNet50_Weights.__members__)
    if name not in members:
        raise unknown_weights(arch, name, members)
    check_num_classes(arch, name, num_classes, 1000)
    trained = torchvision_models.load("resnet50", name, None)
    model = build(1000)
    model.load_state_dict(trained.model.state_dict())
    return LoadedModel(model, arch, _PREPROCESSING, trained.class_names)


def _vgg16_features() -> nn.Sequential:
    features: nn.Sequential = make_layers(cfgs["D"][:-1])
    return features
