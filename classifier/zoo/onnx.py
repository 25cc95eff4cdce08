"""Loads a classifier out of a bare ONNX file."""

from __future__ import annotations

from pathlib import Path

from sigcam.classifier.onnx.front import Input
from sigcam.classifier.zoo.base import LoadedModel
from sigcam.core.errors import UsageError
from sigcam.core.spec import Preprocessing

SUFFIX = ".onnx"
_MARGIN = 256 / 224  # the shorter side is resized to as much more than the input


def is_file(arch: str) -> bool:
    """Returns whether an architecture's name means an ONNX file, with an output or without.

    Example:
        >>> is_file("nets/model.onnx"), is_file("model.onnx#logits"), is_file("resnet50")
        (True, True, False)
    """
    return arch.partition(f"{SUFFIX}#")[0] != arch or arch.endswith(SUFFIX)


def load(
    arch: str,
    name: str | None,
    num_classes: int | None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
) -> LoadedModel:
    """Reads a file, and compares what was read with it in ONNX Runtime.

    Args:
        arch: "path/to/model.onnx"; behind a "#" the output to take, where there are several:
            "model.onnx#logits".
        name: must be None: the weights are the file's own.
        num_classes: must be None or the file's.
        channels: must be None or the file's.
        size: height and width, for a file that takes any; 224 when None.

    Raises:
        UsageError: weights, or other channels or classes than the file's.
        ModelError, ParityError: see `sigcam.classifier.onnx.load.read_classifier`.

    Example:
        load("resnet50.onnx", None, None).knows_normalisation  # False
    """
    from sigcam.classifier.onnx.load import read_classifier

    if name is not None:
        raise UsageError(f"{arch} holds its weights itself, got {name!r}; leave the weights out")
    file, mark, output = arch.partition(f"{SUFFIX}#")
    path = Path(f"{file}{SUFFIX}" if mark else file).expanduser()
    found = read_classifier(path, output or None, size)
    if num_classes is not None and num_classes != found.num_classes:
        raise UsageError(
            f"{arch} has {found.num_classes} classes, not {num_classes}; leave the number out"
        )
    if channels is not None and channels != found.takes.channels:
        raise UsageError(
            f"{arch} takes images of {found.takes.channels} channels, got a mean and std of "
            f"{channels}; give {found.takes.channels} numbers each"
        )
    return LoadedModel(
        found.model, arch, _preprocessing(found.takes, found.size), (), notes=found.notes,
        knows_normalisation=found.takes.range is not None or found.takes.is_bytes,
    )  # fmt: skip


def _preprocessing(takes: Input, size: tuple[int, int]) -> Preprocessing:
    """Returns the pixels as the graph's own normalisation takes them: from 0 to 1, or to 255."""
    raw = takes.is_bytes or takes.range == 255
    mean, std = (0.0,) * takes.channels, (1 / 255 if raw else 1.0,) * takes.channels
    return Preprocessing(*size, "crop", round(min(size) * _MARGIN), mean, std)
