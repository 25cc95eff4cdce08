"""What all sources of classifiers share: the result, class names, refusals."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing

FILES = (".safetensors", ".pth", ".pt", ".tar")
"""Endings by which a file of weights is known although it isn't there; ".pth.tar" is one."""


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and what goes with it.

    Attributes:
        model: in inference mode, on the CPU.
        architecture: the name that it was loaded by.
        preprocessing: how an image becomes its input. Where the network's makers resize
            bicubically or with another antialiasing, the rule here is still sigcam's own,
            the one that training and the runtime share.
        class_names: C names, or empty if unknown.
        sigmoid_tensors: the sigmoid branch that the file of weights holds beside the
            classifier, by the names of the classifier's own head ("fc.weight"), as
            `DualBranch.sigmoid_head.load_tensors` takes them; None without one.
    """

    model: nn.Module
    architecture: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    sigmoid_tensors: Mapping[str, Tensor] | None = None


def imagenet_names() -> tuple[str, ...]:
    """ImageNet-1k's 1,000 class names in their usual order; nothing is downloaded."""
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def check_count(arch: str, name: str, asked: int | None, have: int) -> None:
    """Refuses trained weights of another number of classes than was asked for.

    Raises:
        UsageError: `asked` is given and differs from `have`.
    """
    if asked is not None and asked != have:
        raise UsageError(
            f"the weights {name} of {arch} are for {have} classes, not {asked}; leave num_classes "
            "out, or replace the last layer"
        )


def unknown(what: str, name: str, known: Sequence[str], other: str) -> UsageError:
    """The error for a name that isn't known; lists near ones, else the first few."""
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known[:8]
    listed = "".join(f"{n}, " for n in near) + ("..., " if len(near) < len(known) else "")
    return UsageError(f"unknown {what} {name!r}; known are {listed}{other}")
