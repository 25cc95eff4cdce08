"""From names and files to a dual-branch model: what export, demo and users start with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from sigcam.classifier.branch_file import BranchInfo, load_branch, read_branch_info
from sigcam.classifier.dual_branch import DualBranch
from sigcam.classifier.zoo import load_model, takes_num_classes
from sigcam.core.errors import BranchMismatchError, ModelError, UsageError
from sigcam.core.spec import Preprocessing


@dataclass(frozen=True)
class Assembled:
    """A model ready for export.

    Attributes:
        dual: the model; its sigmoid branch is trained if `has_sigmoid`, else fresh.
        architecture: the name that it was loaded by.
        preprocessing: how an image becomes its input.
        class_names: C names, or empty if unknown.
        info: what the branch file says; None without one.
        checkpoint: name of the file of weights that the sigmoid branch came with; None if
            it has none, or there is a branch file.
    """

    dual: DualBranch
    architecture: str
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    info: BranchInfo | None = None
    checkpoint: str | None = None

    @property
    def has_sigmoid(self) -> bool:
        """Whether the sigmoid branch is a trained one: out of a branch file, or the weights'."""
        return self.info is not None or self.checkpoint is not None

    @property
    def trained_on(self) -> str | None:
        """What the sigmoid branch was trained on, in words; None without one."""
        if self.checkpoint is not None:
            return f"with the classifier (checkpoint file {self.checkpoint})"
        return self.info.trained_on if self.info else None


def assemble(
    branch_file: str | Path | None = None,
    *,
    arch: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    branch_layer: str | None = None,
    target_layers: Sequence[str] = (),
    size: int | None = None,
    new_classes: int | None = None,
) -> Assembled:
    """Loads a classifier and, if there is one, its trained sigmoid branch.

    The branch comes out of the branch file; without one, out of the file of weights, if that
    holds one (a checkpoint of the paper's own code). The latter is left out if the head is
    another than the branch was trained for: after a lower `branch_layer`, or re-made.

    Args:
        branch_file: what `sigcam train` wrote; it names the architecture, the weights and
            the branch layer, so that they need not be given again.
        arch: see `load_model`; needed without a branch file.
        weights: see `load_model`.
        num_classes: see `load_model`.
        branch_layer: name of the branch layer; found by itself when None.
        target_layers: which maps are made of; found by itself when empty.
        size: side of the square input in pixels; the model's own when None.
        new_classes: re-makes the last layer for as many classes (`replace_classes`); for
            training only, as a branch file says this itself.

    Raises:
        UsageError: neither a branch file nor an architecture.
        BranchMismatchError: the branch file belongs to another model.
        ModelError: the model can't be loaded or split.
    """
    if branch_file is not None:
        return _with_branch(
            Path(branch_file), arch, weights, num_classes, branch_layer, target_layers, size
        )
    if arch is None:
        raise UsageError("name an architecture (--arch) or a branch file (--sigmoid-branch)")
    loaded = load_model(arch, weights, num_classes)
    model, names = loaded.model, loaded.class_names
    if new_classes is not None:
        model, names = replace_classes(model, new_classes), ()
    preprocessing = resized(loaded.preprocessing, size)
    dual = _dual(model, branch_layer, target_layers, preprocessing, loaded.architecture)
    checkpoint = None
    if new_classes is None and _load_sigmoid(dual, loaded.sigmoid_tensors):
        checkpoint = Path(str(weights)).name
    return Assembled(dual, loaded.architecture, preprocessing, names, checkpoint=checkpoint)


def resized(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    """`preprocessing` for another input size, with the crop's margin kept in proportion."""
    if size is None:
        return preprocessing
    resize = preprocessing.resize
    if resize is not None:
        resize = round(resize * size / max(preprocessing.height, preprocessing.width))
    return replace(preprocessing, height=size, width=size, resize=resize)


def _with_branch(
    branch_file: Path,
    arch: str | None,
    weights: str | None,
    num_classes: int | None,
    branch_layer: str | None,
    target_layers: Sequence[str],
    size: int | None,
) -> Assembled:
    info = read_branch_info(branch_file)
    for what, given, own in (
        ("for the architecture", arch, info.architecture),
        ("at the layer", branch_layer, info.branch_layer),
        ("for the number of classes", num_classes, info.num_classes),
    ):
        if given is not None and given != own:
            raise BranchMismatchError(
                f"{branch_file} was trained {what} {own}, not {given}; leave that option out, or "
                "give the branch file of that model"
            )
    if info.replaced_classes:
        # A re-made last layer comes out of the branch file; the weights fit the model before.
        own_classes = info.loaded_classes
    else:
        own_classes = info.num_classes if takes_num_classes(info.architecture) else None
    loaded = load_model(info.architecture, weights or info.weights, own_classes)
    model, names = loaded.model, loaded.class_names
    if info.replaced_classes:
        model, names = replace_classes(model, info.num_classes), ()
    preprocessing = resized(info.preprocessing, size)
    dual = _dual(model, info.branch_layer, target_layers, preprocessing, info.architecture)
    load_branch(branch_file, dual)
    return Assembled(dual, info.architecture, preprocessing, info.class_names or names, info)


def _load_sigmoid(dual: DualBranch, tensors: Mapping[str, Tensor] | None) -> bool:
    """Loads the branch that came with the weights, if it is a clone of this very head."""
    if tensors is None or tensors.keys() != dual.sigmoid_head.named_tensors().keys():
        return False
    dual.sigmoid_head.load_tensors(tensors)
    return True


def _dual(
    model: nn.Module,
    branch_layer: str | None,
    target_layers: Sequence[str],
    preprocessing: Preprocessing,
    architecture: str,
) -> DualBranch:
    return DualBranch(
        model,
        branch_layer,
        input_size=(preprocessing.height, preprocessing.width),
        target_layers=target_layers,
        architecture=architecture,
    )


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
