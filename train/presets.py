"""Holds the settings that "Beyond Softmax" trains its networks with, by data set and method.

From the paper: Adam in batches of 32, a learning rate for each network and method, up to 10
epochs (CUB-200-2011: 12), fresh parameters by PyTorch's defaults, images of 224x224, a random
crop and a flip. What it leaves to Choe et al. ("Evaluating Weakly Supervised Object Localization
Methods Right", CVPR 2020) is taken from there: a weight decay of 5e-4, images resized whatever
their aspect, and crops of 224 out of 256 pixels. Crops are drawn anew in each epoch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing, ResizeRule
from sigcam.train.augment import Augmentation
from sigcam.train.settings import TrainSettings

PresetName = Literal["paper-cub", "paper-cars", "paper-imagenet", "paper-openimages"]
PresetMethod = Literal["cam", "gradcam"]

EPOCHS: dict[PresetName, int] = {
    "paper-cub": 12,
    "paper-cars": 10,
    "paper-imagenet": 10,
    "paper-openimages": 10,
}

LEARNING_RATES: dict[str, dict[PresetMethod, float]] = {
    "VGG-16": {"cam": 3e-3, "gradcam": 1e-4},
    "ResNet-50": {"cam": 1e-4, "gradcam": 5e-3},
    "InceptionV3": {"cam": 5e-4, "gradcam": 5e-4},
}

NETWORKS: dict[str, str] = {
    "vgg16": "VGG-16",
    "resnet50": "ResNet-50",
    "inception_v3": "InceptionV3",
    "wsol-vgg16": "VGG-16",
    "wsol-vgg16-mlp": "VGG-16",
    "wsol-resnet50": "ResNet-50",
    "wsol-inceptionv3": "InceptionV3",
}
"""Name of an architecture to the network of the paper that it is a form of."""

_DEEP_HEADS = ("vgg16", "wsol-vgg16-mlp")

_CROP_AREA = (224 / 256) ** 2


@dataclass(frozen=True)
class Preset:
    """What a branch is trained with.

    Attributes:
        settings: of `train_branch`.
        augmentation: of `train_branch`. A crop has the area of 224x224 out of 256x256 pixels;
            its aspect varies, which the paper's doesn't.
        size: side of the square input in pixels, for `build_classifier`.
        rule: how images are fitted to it.
    """

    settings: TrainSettings
    augmentation: Augmentation
    size: int = 224
    rule: ResizeRule = "stretch"

    def preprocessing(self, own: Preprocessing) -> Preprocessing:
        """Returns a model's preprocessing with the preset's size and rule.

        Args:
            own: the model's; its mean, deviation and layout are kept.

        Example:
            >>> changed = preset("paper-cars", "resnet50").preprocessing(Preprocessing(224, 224))
            >>> changed.height, changed.width, changed.rule, changed.resize
            (224, 224, 'stretch', None)
        """
        size = self.size
        return replace(own, height=size, width=size, rule=self.rule, resize=None)


def preset(
    name: PresetName, architecture: str, method: PresetMethod = "cam", seed: int = 0
) -> Preset:
    """Returns the paper's settings for a data set, a network and a method.

    The positive weight is C - 1 by rule. The paper names 999 for ImageNet, which is that, and
    199 for OpenImages, which has 100 classes: there the rule gives 99, and 199 can be set by
    `dataclasses.replace(chosen.settings, positive_weight=199)`.

    Args:
        name: "paper-" and the data set.
        architecture: the name that the classifier is loaded by, one of `NETWORKS`.
        method: "cam", or "gradcam" for all methods other than CAM. CAM needs a head of pooling
            and one linear layer, so in the paper VGG-16 has another one for it ("wsol-vgg16").
        seed: of settings and augmentation.

    Raises:
        UsageError: an unknown name or method; an architecture that the paper doesn't have, or
            has no CAM of.

    Example:
        >>> chosen = preset("paper-cub", "wsol-resnet50", "gradcam")
        >>> chosen.settings.steps, chosen.settings.weight_decay, chosen.settings.cached
        ((0.005, 12, 32), 0.0005, False)
    """
    if name not in EPOCHS:
        raise UsageError(f"the preset must be one of {', '.join(EPOCHS)}, got {name!r}")
    if method not in get_args(PresetMethod):
        raise UsageError(f"the method of a preset must be cam or gradcam, got {method!r}")
    if architecture not in NETWORKS:
        raise UsageError(
            f"the paper has no {architecture}; {name} is for {', '.join(NETWORKS)}. Give the "
            "numbers as options (learning rate, epochs, batch size, weight decay, init)"
        )
    if method == "cam" and architecture in _DEEP_HEADS:
        raise UsageError(
            f"CAM needs a head of pooling and one linear layer, {architecture} has a deeper one; "
            "take the method gradcam, or the architecture wsol-vgg16"
        )
    settings = TrainSettings(
        optimizer="adam",
        learning_rate=LEARNING_RATES[NETWORKS[architecture]][method],
        weight_decay=5e-4,
        epochs=EPOCHS[name],
        batch_size=32,
        init="paper",
        seed=seed,
        cached=False,
    )
    return Preset(settings, Augmentation(crop_scale=(_CROP_AREA, _CROP_AREA), seed=seed))
