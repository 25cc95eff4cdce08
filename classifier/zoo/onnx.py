"""Loads a classifier out of a bare ONNX file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sigcam.classifier.onnx.front import Input
from sigcam.classifier.zoo.base import LoadedModel
from sigcam.core.errors import UsageError
from sigcam.core.spec import ChannelOrder, Preprocessing

SUFFIX = ".onnx"
_MARGIN = 256 / 224  # the shorter side is resized to as much more than the input


def is_file(arch: str) -> bool:
    """Returns whether an architecture's name means an ONNX file, with an output or without.

    Example:
        >>> is_file("nets/model.onnx"), is_file("model.onnx#logits"), is_file("resnet50")
        (True, True, False)
    """
    return arch.partition(f"{SUFFIX}#")[0] != arch or arch.endswith(SUFFIX)


def file_and_output(arch: str) -> tuple[Path, str | None]:
    """Takes an architecture's name apart: the file, and the output behind a "#".

    Example:
        >>> file_and_output("nets/model.onnx#logits")[1], file_and_output("model.onnx")[1]
        ('logits', None)
    """
    file, mark, output = arch.partition(f"{SUFFIX}#")
    return Path(f"{file}{SUFFIX}" if mark else file).expanduser(), output or None


def load(
    arch: str,
    name: str | None,
    num_classes: int | None,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    channel_order: ChannelOrder | None = None,
) -> LoadedModel:
    """Reads a file, and compares what was read with it in ONNX Runtime.

    Args:
        arch: "path/to/model.onnx"; behind a "#" the output to take, where there are several:
            "model.onnx#logits".
        name: must be None: the weights are the file's own.
        num_classes: must be None or the file's.
        channels: must be None or the file's.
        size: height and width, for a file that takes any; 224 when None.
        channel_order: in which the file takes three channels; None for what it says, or RGB.

    Raises:
        UsageError: weights, or other channels or classes than the file's.
        ModelError, ParityError: see `sigcam.classifier.onnx.load.read_classifier`.

    Example:
        load("resnet50.onnx", None, None).knows_normalisation  # False
    """
    from sigcam.classifier.onnx.load import read_classifier

    if name is not None:
        raise UsageError(f"{arch} holds its weights itself, got {name!r}; leave the weights out")
    found = read_classifier(*file_and_output(arch), size, channel_order)
    if num_classes is not None and num_classes != found.num_classes:
        raise UsageError(
            f"{arch} has {found.num_classes} classes, not {num_classes}; leave the number out"
        )
    if channels is not None and channels != found.takes.channels:
        raise UsageError(
            f"{arch} takes images of {found.takes.channels} channels, got a mean and std of "
            f"{channels}; give {found.takes.channels} numbers each"
        )
    preprocessing = known_preprocessing(found.takes, found.size)
    return LoadedModel(
        found.model, arch, preprocessing or _plain(found.takes, found.size), (), notes=found.notes,
        knows_normalisation=preprocessing is not None,
    )  # fmt: skip


def known_preprocessing(takes: Input, size: tuple[int, int]) -> Preprocessing | None:
    """Returns the preprocessing that a file says: by its nodes in front, type or metadata.

    Pixels arrive as the graph's own normalisation takes them, from 0 to 1, or to 255.

    Args:
        takes: what the file takes.
        size: height and width of its input.

    Returns:
        None where the file says nothing, so that mean and deviation must be given.
    """
    if takes.range == 255 or takes.is_bytes:
        low, high = 0.0, 255.0
    elif takes.range is not None:
        low, high = 0.0, 1.0
    elif takes.front.values is not None:
        low, high = takes.front.values
    else:
        return None
    n, width = takes.channels, high - low
    return replace(_plain(takes, size), mean=(-low / width,) * n, std=(1 / width,) * n)


def _plain(takes: Input, size: tuple[int, int]) -> Preprocessing:
    n = takes.channels
    return Preprocessing(
        *size, "crop", round(min(size) * _MARGIN), (0.0,) * n, (1.0,) * n,
        channel_order=takes.order,
    )  # fmt: skip
