"""Holds what all sources of classifiers share: the result, class names, refusals."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing, Task

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
"""Endings that files of weights usually have; ".pth.tar" is one."""


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
        task: what the logits mean, where the source of the model says so; None where it doesn't.
        notes: sentences for the user: what was taken of a file of weights, or left out.
        knows_normalisation: whether mean and std of `preprocessing` are the model's own; a bare
            file may not say them, and none is assumed.
    """

    model: nn.Module
    architecture: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    sigmoid_tensors: Mapping[str, Tensor] | None = None
    task: Task | None = None
    notes: tuple[str, ...] = ()
    knows_normalisation: bool = True


def imagenet_names() -> tuple[str, ...]:
    """Returns ImageNet-1k's 1,000 class names in their usual order; nothing is downloaded.

    Example:
        >>> imagenet_names()[0]
        'tench'
    """
    from torchvision.models import ResNet50_Weights

    return tuple(ResNet50_Weights.DEFAULT.meta["categories"])


def check_num_classes(arch: str, name: str, asked: int | None, have: int) -> None:
    """Refuses trained weights of another number of classes than was asked for.

    Args:
        arch: the name of the architecture, for the message.
        name: the name of the weights, for the message.
        asked: the number of classes that was asked for; None if none was.
        have: the number of classes of the weights.

    Raises:
        UsageError: `asked` is given and differs from `have`.

    Example:
        >>> check_num_classes("resnet18", "DEFAULT", 1000, 1000)
        >>> check_num_classes("resnet18", "DEFAULT", 10, 1000)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: the weights DEFAULT of resnet18 are for 1000 classes, ...
    """
    if asked is not None and asked != have:
        raise UsageError(
            f"the weights {name} of {arch} are for {have} classes, not {asked}; leave num_classes "
            "out, or replace the last layer"
        )


def unknown_name(what: str, name: str, known: Sequence[str], other: str) -> UsageError:
    """Makes the error for a name that isn't known; it lists near ones, else the first few.

    Args:
        what: what the name should have named.
        name: the name that was given.
        known: the names that there are.
        other: what else could be given.

    Example:
        >>> print(unknown_name("architecture", "resnet51", ["resnet50", "vgg16"], "a file"))
        unknown architecture 'resnet51'; known are resnet50, ..., a file
    """
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known[:8]
    listed = "".join(f"{n}, " for n in near) + ("..., " if len(near) < len(known) else "")
    return UsageError(f"unknown {what} {name!r}; known are {listed}{other}")


def unknown_weights(arch: str, name: str, known: Sequence[str]) -> UsageError:
    """Makes the error for weights that are neither a known name nor a file.

    Args:
        arch: the architecture that they should have been of.
        name: the name that was given.
        known: the names of the trained weights that there are.

    Example:
        >>> print(unknown_weights("resnet18", "best", ["DEFAULT"]))
        unknown weights of resnet18 'best'; known are DEFAULT, or a file (there is no file best)
    """
    return unknown_name(f"weights of {arch}", name, known, f"or a file (there is no file {name})")
