"""Loads timm's classifiers, as "timm/NAME"."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Any

from sigcam.classifier.zoo.base import (
    LoadedModel,
    check_num_classes,
    imagenet_names,
    unknown_name,
    unknown_weights,
)
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import Preprocessing

PREFIX = "timm/"

_IMAGENET_CLASSES = 1000
# The output of an image-text model is an embedding. timm says so nowhere, but keeps its
# length as the number of classes: 384, 512, 640, ... No label set of timm's has such a size.
_EMBEDDING_MULTIPLE = 64


def load(arch: str, name: str | None, num_classes: int | None, channels: int = 3) -> LoadedModel:
    """Loads a timm classifier.

    Class names are given for trained weights whose tag says that they were last trained
    on ImageNet-1k ("in1k"), and for nothing else.

    Args:
        arch: "timm/", the model's name and perhaps a pretrained tag: "timm/resnet50.a1_in1k".
        name: "DEFAULT" (the tag in `arch`, else timm's default) or a pretrained tag;
            None for fresh parameters.
        num_classes: C; that of the tag's weights when None.
        channels: of the images. For another number than 3 timm adapts trained weights; mean and
            std are then those of all channels of the tag's, to be replaced by the data's own.

    Raises:
        UsageError: an unknown model or tag, or trained weights of another number of classes.
        ModelError: timm isn't installed, the model is no classifier or can't be built, or
            the weights can't be had.

    Example:
        loaded = load("timm/resnet50.a1_in1k", "DEFAULT", None)
        loaded.preprocessing.height, loaded.class_names[0]  # (224, "tench")
    """
    timm = _timm()
    model_name, _, tag = arch.removeprefix(PREFIX).partition(".")
    if model_name not in timm.list_models():
        known = [PREFIX + known for known in timm.list_models()]
        raise unknown_name("architecture", arch, known, "see timm.list_models()")
    full_name = _tagged(timm, model_name, tag, name)
    config = timm.get_pretrained_cfg(full_name)
    if not _is_classifier(config) and (name is not None or num_classes is None):
        raise ModelError(
            f"{PREFIX}{full_name} is no classifier: it gives {_outputs(config)}; name a model "
            "that has classes, or give num_classes and a file of weights"
        )
    if name is not None:
        check_num_classes(arch, config.tag or "DEFAULT", num_classes, config.num_classes)
    model = _create(timm, full_name, num_classes, channels, pretrained=name is not None)
    preprocessing = _preprocessing(timm.data.resolve_model_data_config(model), channels)
    named = name is not None and config.num_classes == _IMAGENET_CLASSES
    named = named and (config.tag or "").split("_")[-1] == "in1k"
    return LoadedModel(model, arch, preprocessing, imagenet_names() if named else ())


def knows(name: str) -> bool:
    """Returns whether timm is installed and has a model of this name.

    Example:
        knows("resnet50.a1_in1k"), knows("resnet49")  # (True, False)
    """
    if importlib.util.find_spec("timm") is None:
        return False
    return name.partition(".")[0] in _timm().list_models()


def _timm() -> Any:
    try:
        import timm
        import timm.data
    except ImportError as exc:
        raise ModelError(
            f'{PREFIX}NAME needs the package timm: pip install "sigcam[timm]"'
        ) from exc
    return timm


def _tagged(timm: Any, model_name: str, tag: str, name: str | None) -> str:
    """Returns the model's name with the pretrained tag that `arch` or `weights` chose, if any."""
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{model_name}.*")]
    asked = name if name not in (None, "DEFAULT") else ""
    if tag and asked and tag != asked:
        raise UsageError(
            f"{PREFIX}{model_name}.{tag} has the weights {tag}, not {asked}; leave one of them out"
        )
    chosen = tag or asked
    if chosen and chosen not in tags:
        raise unknown_weights(PREFIX + model_name, chosen, tags)
    if name is not None and not tags:
        raise UsageError(f"timm has no trained weights of {model_name}; give a file, or random")
    return f"{model_name}.{chosen}" if chosen else model_name


def _is_classifier(config: Any) -> bool:
    return bool(config.num_classes > 0 and config.num_classes % _EMBEDDING_MULTIPLE != 0)


def _outputs(config: Any) -> str:
    if config.num_classes == 0:
        return "features"
    return f"an embedding of {config.num_classes} numbers"


def _create(
    timm: Any, full_name: str, num_classes: int | None, channels: int, *, pretrained: bool
) -> Any:
    options = {} if num_classes is None else {"num_classes": num_classes}
    if channels != 3:
        options["in_chans"] = channels
    what = "get the weights of" if pretrained else "build"
    try:
        return timm.create_model(full_name, pretrained=pretrained, **options)
    # timm, the model hub and its HTTP client each have errors of their own.
    except Exception as exc:
        advice = "; download them elsewhere and give the file" if pretrained else ""
        raise ModelError(
            f"timm can't {what} {full_name}: {type(exc).__name__}: {exc}{advice}"
        ) from exc


def _preprocessing(config: Mapping[str, Any], channels: int = 3) -> Preprocessing:
    """Returns the preprocessing that a data config of timm's stands for.

    Its crop mode "center" becomes "crop", "squash" becomes "stretch", "border" becomes
    "letterbox". Where timm stretches or pads to a margin that it then cuts off (`crop_pct`
    under 1), the whole image is kept here; where it resizes to less than the input and
    pads (over 1), the input is filled. For an input that isn't square, "crop" resizes the
    shorter side to the longer of the two.
    """
    own, height, width = config["input_size"]
    if own not in (3, channels):
        raise ModelError(
            f"the model must take images of {channels} channels, it takes {own} channels; "
            f"give a mean and std of {own} numbers"
        )
    mean, std = tuple(config["mean"]), tuple(config["std"])
    if channels != len(mean) or channels != len(std):
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    if config["crop_mode"] == "squash":
        return Preprocessing(height, width, "stretch", None, mean, std)
    if config["crop_mode"] == "border":
        return Preprocessing(height, width, "letterbox", None, mean, std)
    side = max(height, width)
    resize = max(side, math.floor(side / config["crop_pct"]))
    return Preprocessing(height, width, "crop", resize, mean, std)
