"""Writes and reads the trained sigmoid branch: a safetensors file with a small spec of its own.

The tensors are named "sigmoid.<name>", with the names of the original head's tensors;
a classifier whose last layer was re-made here (`replace_classes`) needs its softmax head
too, as "softmax.<name>". The metadata entry "sigcam_branch" holds the spec as JSON, and
"sigcam_digest" the file's digest (see `sigcam.core.digest`), which is compared whenever the
file is read.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from sigcam.classifier.dual_branch import DualBranch, tensors_sha256
from sigcam.core.digest import (
    BRANCH_DIGEST_FIELD,
    BRANCH_DIGEST_KEY,
    ZEROS,
    check_branch_digest,
    find_digest,
    seal,
)
from sigcam.core.errors import (
    BranchMismatchError,
    ModelError,
    SchemaError,
    UsageError,
)
from sigcam.core.files import write_bytes
from sigcam.core.schema import check_schema_version
from sigcam.core.spec import Preprocessing, Task
from sigcam.core.typed import check_types
from sigcam.core.versions import versions_of

SCHEMA_VERSION = 3
METADATA_KEY = "sigcam_branch"

BranchType = Literal["float32", "float16"]
_PACKAGES = ("sigcam", "torch", "torchvision", "safetensors")
_DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True)
class BranchInfo:
    """What a branch file says about itself.

    Attributes:
        architecture: the name that `load_model` knows the classifier by.
        branch_layer: the name of the layer whose output is F.
        num_classes: C; 2 for the task binary, whose tensors are of the one logit.
        preprocessing: how images became the input that the branch was trained on.
        trained_on: the data set, the number of images and of views, in words.
        backbone_sha256: the hash of all tensors of the classifier that aren't in the file;
            `save_branch` fills it in.
        positive_weight: the weight of the loss's positive term; None if unknown.
        weights: the classifier's weights, as `load_model` was given them; None for random
            ones.
        loaded_classes: the `num_classes` that `load_model` was given; None if it was given
            none.
        class_names: C names, or empty if unknown.
        replaced_classes: whether the softmax head was re-made and is in the file.
        settings: the settings of the training, plain JSON values.
        task: what the logits mean; see `Spec.task`.
        versions: package name to version, of what wrote the file; `save_branch` fills it in.

    Raises:
        UsageError: another number of class names than classes.
    """

    architecture: str
    branch_layer: str
    num_classes: int
    preprocessing: Preprocessing
    trained_on: str
    backbone_sha256: str = ""
    positive_weight: float | None = None
    weights: str | None = None
    loaded_classes: int | None = None
    class_names: tuple[str, ...] = ()
    replaced_classes: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    task: Task = "single-label"
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.class_names and len(self.class_names) != self.num_classes:
            raise UsageError(
                f"class_names must have {self.num_classes} entries, got {len(self.class_names)}"
            )


def save_branch(
    path: str | Path, dual: DualBranch, info: BranchInfo, dtype: BranchType = "float32"
) -> BranchInfo:
    """Writes the branch, whole or not at all.

    Args:
        path: the file, usually ending in ".safetensors".
        dual: the model whose sigmoid head is written, and its softmax head if
            `info.replaced_classes`.
        info: what the file says about itself; hash and versions are filled in.
        dtype: the type of the stored values; "float16" for a small file to ship.

    Returns:
        The info as written.

    Raises:
        UsageError: `info` is of another branch layer or number of classes.
        ModelError: a value isn't finite, or not in float16.
        StorageError: the file can't be written.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> layers = nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
        >>> dual = DualBranch(nn.Sequential(*layers), input_size=8)
        >>> info = BranchInfo("nets:small", dual.branch_layer, 2, Preprocessing(8, 8), "noise")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = save_branch(f"{folder}/branch.safetensors", dual, info)
        ...     read_branch_info(f"{folder}/branch.safetensors") == written
        ...     load_branch(f"{folder}/branch.safetensors", dual).trained_on
        True
        'noise'
    """
    if (info.branch_layer, info.num_classes) != (dual.branch_layer, dual.num_classes):
        raise UsageError(
            f"the info is of {info.num_classes} classes at {info.branch_layer!r}, the model has "
            f"{dual.num_classes} at {dual.branch_layer!r}"
        )
    info = replace(
        info,
        backbone_sha256=backbone_sha256(dual, info.replaced_classes),
        versions={"python": platform.python_version(), **versions_of(*_PACKAGES)},
    )
    if dtype not in _DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype!r}")
    tensors = {}
    for name, value in _own_tensors(dual, info.replaced_classes).items():
        stored = value.cpu().contiguous()
        stored = stored.to(_DTYPES[dtype]) if stored.is_floating_point() else stored.clone()
        if not bool(torch.isfinite(stored).all()):
            raise ModelError(f"{name} has values that are not finite as {dtype}; nothing written")
        tensors[name] = stored
    text = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(info)}, ensure_ascii=False)
    # Through bytes: safetensors' own writer makes a file that only its owner may read.
    data = save(tensors, metadata={METADATA_KEY: text, BRANCH_DIGEST_KEY: ZEROS})
    write_bytes(path, seal(data, find_digest(data, BRANCH_DIGEST_FIELD) or 0))
    return info


def read_branch_info(path: str | Path) -> BranchInfo:
    """Reads what a branch file says about itself.

    Args:
        path: the branch file.

    Raises:
        ModelError: the file is missing, not safetensors, without the metadata of a branch, or
            not what was written.
        SchemaError: malformed metadata, or written by a newer sigcam.

    Example:
        info = read_branch_info("branch.safetensors")
        info.architecture, info.num_classes, info.trained_on
    """
    return _read(Path(path))[0]


def load_branch(path: str | Path, dual: DualBranch) -> BranchInfo:
    """Loads a branch file into a model: `read_branch` and `Branch.give`.

    Args:
        path: the branch file.
        dual: the model; nothing of it changes if the file is refused.

    Returns:
        What the file says about itself.

    Raises:
        BranchMismatchError, ModelError, SchemaError: as the two.

    Example:
        classifier = build_classifier("efficientnet_lite0", weights="DEFAULT")
        info = load_branch("branch.safetensors", classifier.dual)
    """
    branch = read_branch(path)
    branch.give(dual)
    return branch.info


@dataclass(frozen=True)
class Branch:
    """A branch file that was read whole.

    Attributes:
        path: the file.
        info: what it says about itself.
        tensors: of the sigmoid head, and of a re-made softmax head.
    """

    path: Path
    info: BranchInfo
    tensors: Mapping[str, torch.Tensor]

    def give(self, dual: DualBranch) -> None:
        """Puts the tensors into a model: the sigmoid head, and a re-made softmax head.

        Args:
            dual: the model; nothing of it changes if the file is refused.

        Raises:
            BranchMismatchError: the branch was trained for another backbone, branch layer, head
                or number of classes; says for which.
            ModelError: a value isn't finite.
        """
        _check_fits(self.path, self.info, self.tensors, dual)
        dual.sigmoid_head.load_tensors(_part(self.tensors, "sigmoid."))
        if self.info.replaced_classes:
            dual.softmax_head.load_tensors(_part(self.tensors, "softmax."))


def read_branch(path: str | Path) -> Branch:
    """Reads a branch file, for who needs what it says before there is a model.

    Raises:
        ModelError: the file is missing or damaged.
        SchemaError: malformed metadata, or written by a newer sigcam.

    Example:
        branch = read_branch("branch.safetensors")
        classifier = build_classifier(branch.info.architecture)
        branch.give(classifier.dual)
    """
    return Branch(Path(path), *_read(Path(path)))


def backbone_sha256(dual: DualBranch, replaced_classes: bool = False) -> str:
    """Computes the hash of the classifier's tensors that aren't in a branch file.

    Args:
        dual: the model.
        replaced_classes: whether the softmax head was re-made, and so is in the file.

    Example:
        info = read_branch_info("branch.safetensors")
        backbone_sha256(dual, info.replaced_classes) == info.backbone_sha256  # whether it fits
    """
    if not replaced_classes:
        return dual.weights_sha256()
    return tensors_sha256(dual.features.state_dict())


def _check_fits(
    path: str | Path, info: BranchInfo, tensors: Mapping[str, torch.Tensor], dual: DualBranch
) -> None:
    wanted = (
        f"{path} was trained for {info.architecture} with {info.num_classes} classes at "
        f"{info.branch_layer!r}"
    )
    if (info.branch_layer, info.num_classes) != (dual.branch_layer, dual.num_classes):
        raise BranchMismatchError(
            f"{wanted}; this model ({dual.architecture}) has {dual.num_classes} classes at "
            f"{dual.branch_layer!r}"
        )
    if info.task != dual.task:
        raise BranchMismatchError(
            f"{wanted}, whose task is {info.task}; this model ({dual.architecture}) is "
            f"{dual.task}: give the task that the branch was trained for"
        )
    own = _own_tensors(dual, info.replaced_classes)
    if own.keys() != tensors.keys():
        raise BranchMismatchError(
            f"{wanted} and holds {sorted(tensors)}; this model ({dual.architecture}) needs "
            f"{sorted(own)}"
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise BranchMismatchError(
                f"{wanted}; its {name} is {list(value.shape)}, this model's is "
                f"{list(own[name].shape)}"
            )
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name} in {path} has values that are not finite; train it again")
    found = backbone_sha256(dual, info.replaced_classes)
    if found != info.backbone_sha256:
        raise BranchMismatchError(
            f"{wanted}, on weights with the hash {info.backbone_sha256[:12]}...; this model "
            f"({dual.architecture}) has other weights ({found[:12]}...): load the weights that it "
            "was trained on"
        )


def _own_tensors(dual: DualBranch, replaced_classes: bool) -> dict[str, torch.Tensor]:
    tensors = {f"sigmoid.{k}": v for k, v in dual.sigmoid_head.named_tensors().items()}
    if replaced_classes:
        tensors |= {f"softmax.{k}": v for k, v in dual.softmax_head.named_tensors().items()}
    return tensors


def _part(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read(path: Path) -> tuple[BranchInfo, dict[str, torch.Tensor]]:
    if not path.is_file():
        raise ModelError(f"there is no branch file {path}; `sigcam train` writes one")
    try:
        data = path.read_bytes()
        values = load(data)
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    except KeyError:
        metadata = {}
    except (SafetensorError, OSError, ValueError) as exc:
        raise ModelError(f"{path} is damaged or no safetensors file: {exc}") from exc
    if METADATA_KEY not in metadata:
        raise ModelError(
            f"{path} is a safetensors file but no branch file (it lacks the metadata "
            f"{METADATA_KEY!r}); `sigcam train` writes one"
        )
    info = _info(metadata[METADATA_KEY], path)
    check_branch_digest(data, path)
    return info, values


def _info(text: str, path: Path) -> BranchInfo:
    try:
        data = json.loads(text)
        version = data.pop("schema_version")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise SchemaError(
            f"the metadata of {path} is not a JSON object with 'schema_version'; train it again"
        ) from exc
    check_schema_version(version, SCHEMA_VERSION, str(path), "train the branch again")
    try:
        known = {k: v for k, v in data.items() if k in BranchInfo.__dataclass_fields__}
        preprocessing = {
            k: v
            for k, v in known["preprocessing"].items()
            if k in Preprocessing.__dataclass_fields__
        }
        known["preprocessing"] = Preprocessing(**preprocessing)
        known["class_names"] = tuple(known.get("class_names", ()))
        info = BranchInfo(**known)
        check_types(info)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as exc:
        raise SchemaError(
            f"the metadata of {path} has a missing or wrong field ({exc!r}); train it again"
        ) from exc
    return info
