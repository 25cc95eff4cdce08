"""Builds a classifier by name or branch file: what export, demo and users start with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sigcam.classifier.branch_file import BranchInfo, read_branch
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.fresh import computed_copy
from sigcam.classifier.onnx.classes import remake_last_layer
from sigcam.classifier.onnx.load import OnnxClassifier
from sigcam.classifier.task import names_for
from sigcam.classifier.zoo import load_model, takes_num_classes
from sigcam.core.annotations import checked
from sigcam.core.errors import BranchMismatchError, ModelError, UsageError
from sigcam.core.spec import ChannelOrder, Preprocessing, Task


@dataclass(frozen=True)
class BuiltClassifier:
    """A classifier with its sigmoid branch, ready for training or export.

    Attributes:
        dual: the model. Its sigmoid branch is trained if `has_sigmoid`, else fresh.
        architecture: the name that the classifier was loaded by.
        preprocessing: how an image becomes its input.
        class_names: C names, or empty if unknown.
        info: what the branch file says about itself; None without one.
        checkpoint: the name of the file of weights that the sigmoid branch came with; None
            if it came with none, or there is a branch file.
        weights: the classifier's weights, as `load_model` was given them; None for random ones.
        loaded_classes: the number of classes that `load_model` was given; None for none.
        replaced_classes: whether the last layer was re-made, so that it needs training too.
        notes: sentences for the user: what was taken of a file of weights, or left out, and of
            what the model returns.
    """

    dual: DualBranch
    architecture: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    info: BranchInfo | None = None
    checkpoint: str | None = None
    weights: str | None = None
    loaded_classes: int | None = None
    replaced_classes: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_sigmoid(self) -> bool:
        """Returns whether the sigmoid branch is a trained one: a branch file's or the weights'."""
        return self.info is not None or self.checkpoint is not None

    @property
    def trained_on(self) -> str | None:
        """Returns what the sigmoid branch was trained on, in words; None without one."""
        if self.checkpoint is not None:
            return f"with the classifier (checkpoint file {self.checkpoint})"
        return self.info.trained_on if self.info else None


@checked
def build_classifier(
    arch: str | None = None,
    *,
    branch_file: str | Path | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    branch_layer: str | None = None,
    target_layers: Sequence[str] = (),
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float | None = None,
    new_classes: int | None = None,
    task: Task | None = None,
    channel_order: ChannelOrder | None = None,
) -> BuiltClassifier:
    """Loads a classifier and, if there is one, its trained sigmoid branch.

    The branch comes out of the branch file; without one, out of the file of weights, if that
    holds one (a checkpoint of the paper's own code). The latter is left out if the head is
    another than the branch was trained for: after a lower `branch_layer`, or re-made.

    Args:
        arch: the name of the architecture, as `load_model` takes it. A branch file knows it.
        branch_file: what `sigcam train` wrote. It names the architecture, the weights, the
            number of classes and the branch layer, so that they need not be given again.
        weights: trained weights, as `load_model` takes them; in place of those that the
            branch file names.
        num_classes: C, as `load_model` takes it. A branch file knows it.
        branch_layer: the name of the layer after which the sigmoid branch begins; found by
            itself when None. A branch file knows it.
        target_layers: the names of the layers that maps are made of; found by itself when
            empty.
        size: the side of the square input, or (height, width), in pixels; the model's own when
            None.
        mean: one number per channel of the input, whose count is thereby given, in units of
            pixel value / scale; the model's own when None. A timm model is made for as many
            channels; a callable of the user's own must return such a model.
        std: the deviation per channel, likewise.
        scale: the pixel value that counts as 1: 255 for 8 bits. See `Preprocessing`.
        new_classes: re-makes the last layer for as many classes (`replace_classes`), for
            training. Not together with a branch file, which says this itself.
        task: what the logits mean; see `Spec.task`. None: what the branch file, the source of
            the model or the model's end says (see `DualBranch`), or "single-label".
        channel_order: the order in which the network of an ONNX file takes three channels, "rgb"
            or "bgr"; mean and std are R, G, B in any case. None: what the branch file or the
            ONNX file says, or "rgb".

    Raises:
        UsageError: neither a branch file nor an architecture, or `new_classes` with a branch
            file; or another task than the model's.
        BranchMismatchError: the branch file belongs to another model.
        ModelError: the model can't be loaded or split.

    Example:
        >>> built = build_classifier("squeezenet1_1", num_classes=5, size=64)
        >>> built.dual.num_classes, built.preprocessing.height, built.has_sigmoid
        (5, 64, False)
        >>> grey = build_classifier("timm/resnet18", size=(32, 64), mean=(0.5,), std=(0.25,))
        >>> grey.dual.channels, grey.dual.input_size
        (1, (32, 64))
    """
    branch = info = None
    if branch_file is not None:
        if new_classes is not None:
            raise UsageError("a branch file says itself which classes are new; leave them out")
        branch = read_branch(branch_file)
        info = branch.info
        channels = None if mean is None else len(mean)
        _check_same_model(
            branch_file, info, arch, branch_layer, num_classes, channels, task, channel_order
        )
        channel_order = info.preprocessing.channel_order
        arch, branch_layer, task = info.architecture, info.branch_layer, info.task
        weights = weights or info.weights
        num_classes = _loaded_classes(info)
        new_classes = info.num_classes if info.replaced_classes else None
    if arch is None:
        raise UsageError("name an architecture (--arch) or a branch file (--sigmoid-branch)")
    own_channels = None if info is None else info.preprocessing.channels
    channels = own_channels if mean is None else len(mean)
    sides = (size, size) if isinstance(size, int) else size
    loaded = load_model(
        arch, weights, num_classes, channels=channels, size=sides, channel_order=channel_order
    )
    if not loaded.knows_normalisation and info is None and (mean is None or std is None):
        raise _normalisation_unknown(arch)
    model, class_names = loaded.model, loaded.class_names
    if new_classes is not None:
        task = task or (None if loaded.task == "binary" else loaded.task)
        model, class_names = replace_classes(model, new_classes, task=task), ()
    else:
        task = _agreed(task, loaded.task, arch)
    preprocessing = _renormalised(
        info.preprocessing if info else loaded.preprocessing, mean, std, scale
    )
    preprocessing = _resized(preprocessing, size)
    dual = DualBranch(
        model,
        branch_layer,
        input_size=(preprocessing.height, preprocessing.width),
        channels=preprocessing.channels,
        target_layers=target_layers,
        architecture=arch,
        task=task,
    )
    class_names = names_for(dual.task, class_names)
    checkpoint = None
    if branch is not None:
        branch.give(dual)
        class_names = branch.info.class_names or class_names
    elif new_classes is None and _load_sigmoid(dual, loaded.sigmoid_tensors):
        checkpoint = Path(str(weights)).name
    return BuiltClassifier(
        dual, arch, preprocessing, class_names, info, checkpoint, weights,
        loaded_classes=num_classes, replaced_classes=new_classes is not None,
        notes=(*loaded.notes, *dual.notes),
    )  # fmt: skip


def replace_classes(
    model: nn.Module, num_classes: int, seed: int = 0, *, task: Task | None = None
) -> nn.Module:
    """Copies a classifier and re-makes the last layer of the copy for other classes.

    The last layer is the last `nn.Linear` or 1x1 `nn.Conv2d` in the order in which the
    model's modules were registered; of an ONNX file, the linear layer that its output comes
    from. It gets fresh parameters, as torch initialises them.

    Args:
        model: the classifier; it isn't changed.
        num_classes: C of the copy, at least 2.
        seed: the seed of the fresh parameters; the global random state is left as it was.
        task: "binary" makes one logit of two classes; the others make one for each class.

    Raises:
        UsageError: fewer than 2 classes, or another number for the task binary.
        ModelError: there is no such layer, or no memory for so many classes.

    Example:
        >>> replace_classes(nn.Sequential(nn.Linear(4, 10)), 3)[0]
        Linear(in_features=4, out_features=3, bias=True)
    """
    if num_classes < 2:
        raise UsageError(f"num_classes must be at least 2, got {num_classes}")
    if task == "binary" and num_classes != 2:
        raise UsageError(f"the task binary has 2 classes, got {num_classes}")
    copied = computed_copy(model)
    num_logits = 1 if task == "binary" else num_classes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            if isinstance(copied, OnnxClassifier):
                remake_last_layer(copied, num_logits)
                return copied
            name, layer = _last_layer(copied)
            new = _remade(layer, num_logits)
        except (RuntimeError, TypeError) as exc:  # torch's words for too large a tensor
            raise ModelError(
                f"a last layer for {num_classes} classes can't be made: too large; look at the "
                "class ids of the data"
            ) from exc
    new.train(layer.training)
    if not name:
        return new
    parent, _, attribute = name.rpartition(".")
    setattr(copied.get_submodule(parent), attribute, new)
    return copied


def _check_same_model(
    branch_file: str | Path,
    info: BranchInfo,
    arch: str | None,
    branch_layer: str | None,
    num_classes: int | None,
    channels: int | None,
    task: Task | None,
    channel_order: ChannelOrder | None,
) -> None:
    """Refuses what was given beside a branch file and contradicts it."""
    if info.task == "binary" and num_classes == 1:  # as the model has it, with one logit
        num_classes = info.num_classes
    for what, given, own in (
        ("for the architecture", arch, info.architecture),
        ("at the layer", branch_layer, info.branch_layer),
        ("for the number of classes", num_classes, info.num_classes),
        ("for the number of channels", channels, info.preprocessing.channels),
        ("for the task", task, info.task),
        ("for the channel order", channel_order, info.preprocessing.channel_order),
    ):
        if given is not None and given != own:
            raise BranchMismatchError(
                f"{branch_file} was trained {what} {own}, not {given}; leave that option out, or "
                "give the branch file of that model"
            )


def _normalisation_unknown(arch: str) -> UsageError:
    """Makes the error for a model that doesn't say how its input is normalised."""
    usual = "; ".join(f"{options} ({what})" for what, options in USUAL.items())
    return UsageError(
        f"{arch} doesn't say how its input is normalised, so mean and std must be given. Usual "
        f"are {usual}: look at how the model was trained"
    )


_FROM_255 = "0.00392157,0.00392157,0.00392157"

USUAL = {
    "ImageNet's: torchvision, timm": "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
    "from -1 to 1: Keras's mode tf, many transformers": "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
    "from 0 to 1": "--mean 0,0,0 --std 1,1,1",
    "from 0 to 255": f"--mean 0,0,0 --std {_FROM_255}",
    "Caffe's, in the order B, G, R: Keras's ResNet and VGG": f"--mean 0.48502,0.45795,0.40761 "
    f"--std {_FROM_255} --channel-order bgr",
}
"""How classifiers' inputs are usually normalised, and the options that say so."""


def _agreed(asked: Task | None, found: Task | None, arch: str) -> Task | None:
    """Returns the task that was asked for, or that the source of the model says."""
    if asked is not None and found is not None and asked != found:
        raise UsageError(
            f"the task {asked} was asked for, but {arch} says that it is {found}; leave the task "
            "out"
        )
    return asked or found


def _loaded_classes(info: BranchInfo) -> int | None:
    """Returns the number of classes with which the classifier of a branch file is loaded."""
    if info.replaced_classes:
        # A re-made last layer comes out of the branch file; the weights fit the model before.
        return info.loaded_classes
    own = 1 if info.task == "binary" else info.num_classes
    return own if takes_num_classes(info.architecture) else None


def _renormalised(
    preprocessing: Preprocessing,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    scale: float | None,
) -> Preprocessing:
    """Changes how pixels are normalised; None leaves the model's own value."""
    if mean is None and std is None and scale is None:
        return preprocessing
    return replace(
        preprocessing,
        mean=preprocessing.mean if mean is None else tuple(mean),
        std=preprocessing.std if std is None else tuple(std),
        scale=preprocessing.scale if scale is None else scale,
        layout=None,
    )


def _resized(preprocessing: Preprocessing, size: int | tuple[int, int] | None) -> Preprocessing:
    """Changes the input size, with the crop's margin kept in proportion."""
    if size is None:
        return preprocessing
    height, width = (size, size) if isinstance(size, int) else size
    resize = preprocessing.resize
    if resize is not None:
        shorter, longer = sorted((preprocessing.height, preprocessing.width))
        margin = resize / (longer if resize >= longer else shorter)
        resize = round(margin * min(height, width))
    return replace(preprocessing, height=height, width=width, resize=resize)


def _load_sigmoid(dual: DualBranch, tensors: Mapping[str, Tensor] | None) -> bool:
    """Loads the branch that came with the weights, if it is a clone of this very head."""
    if tensors is None or tensors.keys() != dual.sigmoid_head.named_tensors().keys():
        return False
    dual.sigmoid_head.load_tensors(tensors)
    return True


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
