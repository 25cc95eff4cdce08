"""Loads a classifier by name, with weights by name or from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from sigcam.classifier.zoo import efficientnet_lite, huggingface, user, wsol
from sigcam.classifier.zoo import onnx as onnx_files
from sigcam.classifier.zoo import timm as timm_models
from sigcam.classifier.zoo import torchvision as torchvision_models
from sigcam.classifier.zoo.base import LoadedModel, unknown_name, unknown_weights
from sigcam.classifier.zoo.weights import load_weights
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.spec import ChannelOrder

_LOCALISATION_FORMS = {
    "resnet50": "wsol-resnet50",
    "timm/resnet50": "wsol-resnet50",
    "vgg16": "wsol-vgg16-mlp",
}
"""Architectures, and the paper's network whose tensors have the same names and shapes."""


def load_model(
    arch: str,
    weights: str | Path | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    *,
    channels: int | None = None,
    size: tuple[int, int] | None = None,
    channel_order: ChannelOrder | None = None,
) -> LoadedModel:
    """Loads a classifier.

    A bare name is never looked up in timm, although timm has more models: which of the two
    a name means would then hang on the versions installed.

    A file of weights may hold a sigmoid branch too, under the names of the paper's own
    code; it comes back as `sigmoid_tensors` (see `sigcam.classifier.zoo.weights.load_weights`).
    That code's VGG-16 with the MLP head has no last max-pool and its ResNet-50 has no stride in
    layer4, though the tensors fit torchvision's forms: such a file with a sigmoid branch is
    refused for "vgg16" and "resnet50". Without that branch nothing in it tells the forms apart:
    name "wsol-vgg16-mlp" or "wsol-resnet50" yourself. Nor does a file say that torchvision's own
    weights of inception_v3 and googlenet expect input that their forward function normalises
    anew: named ("DEFAULT") they get that, from a file they don't, like the paper's.

    Args:
        arch: the architecture, one of
            the name of a torchvision classification model: "resnet50";
            "timm/" and the name of a timm classifier, with a pretrained tag or without:
            "timm/convnext_tiny", "timm/convnext_tiny.fb_in22k";
            "hf/" and an image classifier of transformers': a folder that `save_pretrained` wrote
            ("hf/./my-folder", "hf//abs/folder"), or a repository of the Hugging Face Hub, with a
            revision or without ("hf/google/vit-base-patch16-224@main");
            "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2";
            a localisation network of the paper: "wsol-resnet50", "wsol-vgg16",
            "wsol-inceptionv3", "wsol-vgg16-mlp";
            a callable of the user's own that returns a module: "package.module:name" or
            "path/to/file.py:name". It is called with `num_classes=...` if that is given,
            and is the user's code: it is run;
            an ONNX file, "path/to/model.onnx", which holds its weights; behind a "#" the output
            that holds the logits, where there are several: "model.onnx#logits". It is read into
            torch operators and compared with the file in ONNX Runtime.
        weights: a file (.safetensors, .pth, .pt, .ckpt, .bin, .pth.tar; read with
            `weights_only=True`), the .index.json of one in parts, or a folder with one of
            transformers'; behind a "#" the keys of the set of weights to take, where a file
            holds several: "last.pth#model_ema";
            "DEFAULT" or another name of trained weights: torchvision's for this model, or
            timm's pretrained tag (both downloaded by those packages if need be); None or
            "random" for fresh parameters. For a callable: a file, or None for the parameters
            that it comes with. For "hf/": None and "DEFAULT" are the weights of the folder or
            repository.
        num_classes: C; the architecture's own when None (usually 1000).
        seed: the seed of fresh parameters; the global random state is left as it was.
        channels: number of channels of the images; when None, as many as a network of transformers
            says, and 3 for all others. timm's models can be made for any (it adapts trained
            weights); a callable's model must have its own way; an ONNX file says its
            own number; all others take RGB.
        size: height and width at which an ONNX file is read that takes any; 224 when None. No
            other source needs it.
        channel_order: the order in which an ONNX file takes three channels; None for what it
            says itself, or RGB. Every other source is known to take RGB.

    Raises:
        UsageError: an unknown name; lists near ones. Or other channels than the model can have.
        ModelError: a missing package, a callable that fails, a model that is no
            classifier, weights that can't be had or don't fit.

    Example:
        >>> loaded = load_model("squeezenet1_1", num_classes=5)
        >>> loaded.architecture, loaded.preprocessing.height
        ('squeezenet1_1', 224)
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    if onnx_files.is_file(arch):
        given = None if weights is None else str(weights)
        return onnx_files.load(arch, given, num_classes, channels, size, channel_order)
    if channel_order == "bgr":
        raise UsageError(
            f"the channel order is a question for ONNX files, {arch} takes RGB; leave it out, or "
            "let forward turn the channels round in a module of your own (images.flip(1))"
        )
    file, chosen = weights_file(weights)
    name = None if file is not None or weights in (None, "random") else str(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if arch.startswith(huggingface.PREFIX):
            if name not in (None, "DEFAULT"):
                raise unknown_weights(arch, str(name), ["DEFAULT"])
            trained = file is None and weights != "random"
            loaded = huggingface.load(arch, num_classes, trained=trained, channels=channels)
        else:
            loaded = _by_name(arch, name, num_classes, channels or 3)
    if file is not None:
        found = load_weights(loaded.model, file, chosen)
        if found.sigmoid_tensors is not None and _untagged(arch) in _LOCALISATION_FORMS:
            raise _localisation_form(_untagged(arch), file)
        loaded = replace(loaded, sigmoid_tensors=found.sigmoid_tensors)
        loaded = replace(loaded, notes=(*loaded.notes, *found.notes))
    loaded.model.eval()
    return loaded


def takes_num_classes(arch: str) -> bool:
    """Returns whether `load_model` can be told the number of classes of an architecture.

    A callable of the user's own need not have the parameter.

    Args:
        arch: the architecture, as `load_model` takes it.

    Raises:
        UsageError, ModelError: the callable can't be had.

    Example:
        >>> takes_num_classes("resnet50"), takes_num_classes("torch.nn:ReLU")
        (True, False)
    """
    if onnx_files.is_file(arch):
        return False
    own = ":" in arch and not arch.startswith(huggingface.PREFIX)
    return not own or user.takes_num_classes(arch)


def _by_name(arch: str, name: str | None, num_classes: int | None, channels: int) -> LoadedModel:
    if ":" in arch:
        return user.load(arch, name, num_classes)
    if arch.startswith(timm_models.PREFIX):
        return timm_models.load(arch, name, num_classes, channels)
    if channels != 3:
        raise UsageError(
            f"{arch} takes RGB images, three channels, got a mean and std of {channels}; name "
            f"{timm_models.PREFIX}NAME, whose models can be made for other channels, or a callable "
            "of your own"
        )
    if arch in efficientnet_lite.SIZES:
        return efficientnet_lite.load(arch, name, num_classes)
    if arch in wsol.NETWORKS:
        return wsol.load(arch, name, num_classes)
    known = torchvision_models.names()
    if arch in known:
        return torchvision_models.load(arch, name, num_classes)
    known = [*known, *efficientnet_lite.SIZES, *wsol.NETWORKS]
    if timm_models.knows(arch):
        known = [timm_models.PREFIX + arch]
    raise unknown_name(
        "architecture", arch, known, "timm/NAME, hf/NAME, FILE.onnx or module:callable"
    )


def _untagged(arch: str) -> str:
    """Returns an architecture's name without the pretrained tag that timm's may have."""
    return arch.partition(".")[0] if arch.startswith(timm_models.PREFIX) else arch


def _localisation_form(arch: str, file: Path) -> ModelError:
    return ModelError(
        f"{file} holds a sigmoid branch beside the classifier, as checkpoints of the paper's "
        f"localisation code do; its tensors fit {arch}, but its strides or pools are others, so "
        f"the logits would be wrong: use --arch {_LOCALISATION_FORMS[arch]}. If it was trained on "
        f"torchvision's own form, use --arch torchvision.models:{arch.removeprefix('timm/')}"
    )


def weights_file(weights: str | Path | None) -> tuple[Path | None, str | None]:
    """Tells a file of weights from a name of weights.

    What has a suffix or a folder in front is a path, whether it is there or not.

    Args:
        weights: as `load_model` takes them.

    Returns:
        The file or folder, and the keys behind its "#", if there are any; (None, None) for a
        name.

    Raises:
        ModelError: a path that isn't there.

    Example:
        >>> weights_file("DEFAULT")
        (None, None)
        >>> weights_file("runs/best")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.ModelError: there is no file of weights runs/best
    """
    if weights is None or weights in ("DEFAULT", "random"):
        return None, None
    path = Path(weights).expanduser()
    if path.exists():
        return path, None
    head, mark, keys = str(path).rpartition("#")
    if mark and Path(head).exists():
        return Path(head), keys
    in_a_folder = "/" in str(weights) or "\\" in str(weights)
    if isinstance(weights, Path) or path.suffix or in_a_folder or mark:
        raise ModelError(f"there is no file of weights {head if mark else path}")
    return None, None
