"""From names and files to a dual-branch model: what export, demo and users start with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sigcam.runtime.errors import BranchMismatchError, UsageError
from sigcam.runtime.spec import Geometry
from sigcam.train.branch_file import BranchInfo, load_branch, read_branch_info
from sigcam.train.dual_branch import DualBranch
from sigcam.train.models import load_model, takes_num_classes
from sigcam.train.transfer import replace_classes


@dataclass(frozen=True)
class Assembled:
    """A model ready for export.

    Attributes:
        dual: the model; its sigmoid branch is trained if `info` is there, else fresh.
        architecture: the name that it was loaded by.
        geometry: how a picture becomes its input.
        class_names: C names, or empty if unknown.
        info: what the branch file says; None without one.
    """

    dual: DualBranch
    architecture: str
    geometry: Geometry
    class_names: tuple[str, ...]
    info: BranchInfo | None = None

    @property
    def trained_on(self) -> str | None:
        """What the sigmoid branch was trained on, in words; None without one."""
        return self.info.trained_on if self.info else None


def assemble(
    branch_file: str | Path | None = None,
    *,
    arch: str | None = None,
    weights: str | None = None,
    num_classes: int | None = None,
    target_layer: str | None = None,
    size: int | None = None,
    new_classes: int | None = None,
) -> Assembled:
    """Loads a classifier and, if there is one, its trained sigmoid branch.

    Args:
        branch_file: what `sigcam train` wrote; it names the architecture, the weights and
            the target layer, so that they need not be given again.
        arch: see `load_model`; needed without a branch file.
        weights: see `load_model`.
        num_classes: see `load_model`.
        target_layer: name of the target layer; found by itself when None.
        size: side of the square input in pixels; the model's own when None.
        new_classes: re-makes the last layer for as many classes (`replace_classes`); for
            training only, as a branch file says this itself.

    Raises:
        UsageError: neither a branch file nor an architecture.
        BranchMismatchError: the branch file belongs to another model.
        ModelError: the model can't be loaded or split.
    """
    if branch_file is not None:
        return _with_branch(Path(branch_file), arch, weights, num_classes, target_layer, size)
    if arch is None:
        raise UsageError("name an architecture (--arch) or a branch file (--sigmoid-branch)")
    loaded = load_model(arch, weights, num_classes)
    model, names = loaded.model, loaded.class_names
    if new_classes is not None:
        model, names = replace_classes(model, new_classes), ()
    geometry = resized(loaded.geometry, size)
    dual = _dual(model, target_layer, geometry, loaded.architecture)
    return Assembled(dual, loaded.architecture, geometry, names)


def resized(geometry: Geometry, size: int | None) -> Geometry:
    """`geometry` for another input size, with the crop's margin kept in proportion."""
    if size is None:
        return geometry
    resize = geometry.resize
    if resize is not None:
        resize = round(resize * size / max(geometry.height, geometry.width))
    return replace(geometry, height=size, width=size, resize=resize)


def _with_branch(
    branch_file: Path,
    arch: str | None,
    weights: str | None,
    num_classes: int | None,
    target_layer: str | None,
    size: int | None,
) -> Assembled:
    info = read_branch_info(branch_file)
    for what, given, own in (
        ("for the architecture", arch, info.architecture),
        ("at the layer", target_layer, info.target_layer),
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
    geometry = resized(info.geometry, size)
    dual = _dual(model, info.target_layer, geometry, info.architecture)
    load_branch(branch_file, dual)
    return Assembled(dual, info.architecture, geometry, info.class_names or names, info)


def _dual(
    model: nn.Module, target_layer: str | None, geometry: Geometry, architecture: str
) -> DualBranch:
    size = (geometry.height, geometry.width)
    return DualBranch(model, target_layer, input_size=size, architecture=architecture)
