"""Other classes than the classifier was trained for: a re-made last layer.

A convenience outside the paper, which starts from a trained classifier. The backbone
stays as it is; the last layer is made anew and trained by cross-entropy on the cached
features (a linear probe), then the sigmoid branch as usual on the same cache.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from sigcam.runtime.errors import ModelError, UsageError
from sigcam.train.data import ImageList
from sigcam.train.dual_branch import DualBranch
from sigcam.train.loop import train_branch
from sigcam.train.settings import TrainResult, TrainSettings


def replace_classes(model: nn.Module, num_classes: int, seed: int = 0) -> nn.Module:
    """A copy of a classifier whose last layer is re-made for `num_classes` classes.

    The last layer is the last `nn.Linear` or 1x1 `nn.Conv2d` in the order in which the
    model's modules were registered. It gets fresh parameters, as torch initialises them.

    Args:
        model: isn't changed.
        num_classes: C of the copy, at least 2.
        seed: of the fresh parameters; the global random state is left as it was.

    Raises:
        UsageError: fewer than 2 classes.
        ModelError: there is no such layer, or no memory for so many classes.
    """
    if num_classes < 2:
        raise UsageError(f"num_classes must be at least 2, got {num_classes}")
    twin = copy.deepcopy(model)
    name, layer = _last_layer(twin)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            new = _remade(layer, num_classes)
        except (RuntimeError, TypeError) as exc:  # torch's words for too large a tensor
            raise ModelError(
                f"a last layer for {num_classes} classes can't be made: too large; look at the "
                "class ids of the data"
            ) from exc
    new.train(layer.training)
    if name:
        parent, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, new)
        return twin
    return new


def train_classifier(
    dual: DualBranch, data: ImageList, settings: TrainSettings | None = None, **options: Any
) -> TrainResult:
    """Trains the softmax head of a model from `replace_classes`, by cross-entropy.

    The head is frozen again afterwards. A positive weight in the settings is refused: it
    belongs to the sigmoid branch's loss.

    Args:
        dual: whose softmax head is trained, in place.
        data: see `train_branch`.
        settings: see `train_branch`.
        **options: the other arguments of `train_branch`, without `head`.

    Raises:
        UsageError: a positive weight; and what `train_branch` raises.
    """
    settings = settings or TrainSettings()
    if settings.positive_weight is not None:
        raise UsageError("positive_weight belongs to the sigmoid branch, not to the classifier")
    return train_branch(dual, data, settings, head="softmax", **options)


def _last_layer(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    found: tuple[str, nn.Linear | nn.Conv2d] | None = None
    for name, layer in model.named_modules():
        pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
        if isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and pointwise):
            found = name, layer
    if found is None:
        raise ModelError(
            f"{type(model).__name__} has neither a linear layer nor a 1x1 convolution to re-make; "
            "give a model with the right number of classes"
        )
    return found


def _remade(layer: nn.Linear | nn.Conv2d, num_classes: int) -> nn.Linear | nn.Conv2d:
    bias, device, dtype = layer.bias is not None, layer.weight.device, layer.weight.dtype
    if isinstance(layer, nn.Linear):
        return nn.Linear(layer.in_features, num_classes, bias, device=device, dtype=dtype)
    if layer.groups != 1:
        raise ModelError("the last 1x1 convolution is grouped, so it can't be re-made")
    stride = (layer.stride[0], layer.stride[1])
    return nn.Conv2d(
        layer.in_channels, num_classes, 1, stride, bias=bias, device=device, dtype=dtype
    )
