"""The paper's settings by name."""

from __future__ import annotations

from typing import get_args

import pytest

from sigcam.classifier.zoo import wsol
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing
from sigcam.train.augment import Augmentation
from sigcam.train.presets import EPOCHS, NETWORKS, PresetName, preset
from sigcam.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("architecture", "method", "rate"),
    [
        ("wsol-vgg16", "cam", 3e-3),
        ("wsol-vgg16", "gradcam", 1e-4),
        ("wsol-vgg16-mlp", "gradcam", 1e-4),
        ("vgg16", "gradcam", 1e-4),
        ("resnet50", "cam", 1e-4),
        ("resnet50", "gradcam", 5e-3),
        ("wsol-resnet50", "cam", 1e-4),
        ("wsol-resnet50", "gradcam", 5e-3),
        ("inception_v3", "cam", 5e-4),
        ("inception_v3", "gradcam", 5e-4),
        ("wsol-inceptionv3", "cam", 5e-4),
        ("wsol-inceptionv3", "gradcam", 5e-4),
    ],
)
@pytest.mark.parametrize(
    ("name", "epochs"),
    [("paper-cub", 12), ("paper-cars", 10), ("paper-imagenet", 10), ("paper-openimages", 10)],
)
def test_the_papers_numbers(name, epochs, architecture, method, rate) -> None:
    chosen = preset(name, architecture, method, seed=4)
    assert chosen.settings == TrainSettings(
        optimizer="adam", learning_rate=rate, epochs=epochs, batch_size=32, weight_decay=5e-4,
        positive_weight=None, init="paper", schedule="constant", cached=False, seed=4,
    )  # fmt: skip
    assert chosen.augmentation == Augmentation(
        crop_scale=(0.765625, 0.765625), flip=True, seed=4
    )  # 224 x 224 of 256 x 256
    assert (chosen.size, chosen.rule) == (224, "stretch")


def test_cam_is_the_default() -> None:
    assert preset("paper-cub", "resnet50") == preset("paper-cub", "resnet50", "cam")


def test_names() -> None:
    assert set(EPOCHS) == set(get_args(PresetName))
    assert wsol.NETWORKS.keys() <= NETWORKS.keys()


def test_the_whole_image_is_the_input_and_the_rest_is_the_models() -> None:
    own = Preprocessing(299, 299, "crop", 342, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "float32_nchw")
    changed = preset("paper-cub", "inception_v3").preprocessing(own)
    assert changed == Preprocessing(
        224, 224, "stretch", None, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), "float32_nchw"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("paper-dogs", "resnet50"), "paper-cub, paper-cars, .* got 'paper-dogs'"),
        (("paper-cub", "resnet50", "layercam"), "cam or gradcam, got 'layercam'"),
        (("paper-cub", "resnet18"), "no resnet18.* vgg16, resnet50, .*numbers as options"),
        (("paper-cub", "vgg16", "cam"), "deeper one; take the method gradcam, or .* wsol-vgg16"),
        (("paper-cub", "wsol-vgg16-mlp"), "deeper one"),
    ],
)
def test_what_the_paper_does_not_have(arguments, words) -> None:
    with pytest.raises(UsageError, match=words):
        preset(*arguments)
