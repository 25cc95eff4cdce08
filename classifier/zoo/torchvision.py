"""Loads torchvision's classifiers."""

from __future__ import annotations

from typing import Any

from sigcam.classifier.zoo.base import LoadedModel, check_num_classes, unknown_weights
from sigcam.core.errors import ModelError
from sigcam.core.spec import Preprocessing


def names() -> list[str]:
    """Lists the names of torchvision's classification models.

    Example:
        >>> "resnet50" in names(), "fcn_resnet50" in names()
        (True, False)
    """
    from torchvision import models

    return list(models.list_models(module=models))


def load(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    """Loads one of `names()`.

    Args:
        arch: the model's name.
        name: the name of trained weights, as torchvision calls them; None for fresh
            parameters.
        num_classes: C; 1000 when None.

    Raises:
        UsageError: unknown weights, or weights of another number of classes.
        ModelError: the weights can't be downloaded.

    Example:
        >>> loaded = load("shufflenet_v2_x0_5", None, 10)
        >>> loaded.model.fc.out_features, loaded.preprocessing.resize, loaded.class_names
        (10, 256, ())
    """
    from torchvision import models

    enum = models.get_model_weights(arch)
    chosen = None
    if name is not None:
        if name not in enum.__members__:
            raise unknown_weights(arch, name, list(enum.__members__))
        chosen = enum[name]
        check_num_classes(arch, name, num_classes, len(chosen.meta["categories"]))
    # Auxiliary training heads would only make the exported graph longer.
    options = {} if num_classes is None or chosen is not None else {"num_classes": num_classes}
    if chosen is None and arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model = models.get_model(arch, weights=chosen, **options)
    except OSError as exc:  # no network, a broken download
        raise ModelError(
            f"torchvision can't get the weights {name} of {arch}: {exc}; download them elsewhere "
            "and give the file"
        ) from exc
    class_names = tuple(chosen.meta["categories"]) if chosen is not None else ()
    return LoadedModel(model, arch, _preprocessing(chosen or enum.DEFAULT), class_names)


def _preprocessing(weights: Any) -> Preprocessing:
    preset = weights.transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    return Preprocessing(
        size, size, "crop", max(size, resize), tuple(preset.mean), tuple(preset.std)
    )
