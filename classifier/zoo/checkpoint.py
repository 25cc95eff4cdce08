"""Reads files of weights into sets of tensors; no object of a user's class is ever built.

A checkpoint is a mapping in which sets of tensors lie at any depth, beside an optimiser's state,
numbers and texts: `{"state_dict": ..., "state_dict_ema": ..., "epoch": 3}`. All of them are
found here, with the keys that lead to them; `sigcam.classifier.zoo.weights` finds out which of
them fits a model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sigcam.core.errors import ModelError
from sigcam.core.inputs import keep

_DEPTH = 4  # {"ema": {"model": {"module": {name: tensor}}}}
_INDEX = ".index.json"
_IN_A_FOLDER = (
    "model.safetensors", "model.safetensors.index.json",
    "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
"""What a folder that `save_pretrained` or a trainer of transformers wrote may hold."""

_numpy_scalar = np.float64(0).__reduce__()[0]
# Training scripts keep their options and best figures beside the weights. None of these can do
# anything but hold values, so torch's restricted reader may build them.
_HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    np.dtype,
    type(np.dtype(np.float32)),
    type(np.dtype(np.float64)),
    type(np.dtype(np.int64)),
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
]


@dataclass(frozen=True)
class TensorSet:
    """One mapping of a checkpoint that holds tensors.

    Attributes:
        keys: the keys that lead to it; empty for the file's own top.
        tensors: name to tensor.
        others: the names in the same mapping whose values are no tensors.
    """

    keys: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    others: tuple[str, ...] = ()


def read_checkpoint(path: Path) -> list[TensorSet]:
    """Reads all sets of tensors that a file holds, the outer ones first.

    Args:
        path: a .safetensors file, what `torch.save` wrote, the index of a file in parts
            (.index.json), or a folder that holds one of them as transformers writes it.

    Raises:
        ModelError: the file is missing, damaged or holds no tensors; it holds objects of classes
            that would have to be unpickled.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder, "model.pth")
        ...     torch.save({"epoch": 3, "net": {"weight": torch.ones(1)}}, file)
        ...     [(found.keys, list(found.tensors)) for found in read_checkpoint(file)]
        [(('net',), ['weight'])]
    """
    path = _file_in(path)
    content = _read_parts(path) if path.name.endswith(_INDEX) else _read(path)
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds no state dict but {type(content).__name__}")
    found = list(_sets(content, ()))
    if not found:
        strange = [str(key) for key in content]
        raise ModelError(f"{path} holds more than tensors: {few(strange)}; save a state dict")
    return found


def few(names: list[str]) -> str:
    """Returns the first names of a list as text, and how many more there are.

    Example:
        >>> few(["a", "b", "c", "d", "e"]), few([])
        ('a, b, c, d and 1 more', '-')
    """
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "-"


def _sets(content: Mapping[Any, Any], keys: tuple[str, ...]) -> Iterator[TensorSet]:
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        others = tuple(str(k) for k, value in content.items() if not isinstance(value, Tensor))
        yield TensorSet(keys, tensors, others)
    if len(keys) < _DEPTH:
        for key, value in content.items():
            if isinstance(value, Mapping) and isinstance(key, str):
                yield from _sets(value, (*keys, key))


def _file_in(path: Path) -> Path:
    """Returns the file of weights that a path means: itself, or the one in a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"there is no file of weights {path}")
    for name in _IN_A_FOLDER:
        if (path / name).is_file():
            return path / name
    raise ModelError(
        f"the folder {path} holds none of {', '.join(_IN_A_FOLDER)}; name the file of weights"
    )


def _read_parts(index: Path) -> dict[str, Any]:
    """Reads a file of weights that lies in parts beside its index."""
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise ModelError(f"{index} is no index of weights in parts: {exc!r}") from exc
    wrong = [name for name in parts if not isinstance(name, str)]
    if wrong:
        raise ModelError(
            f"{index} is no index of weights in parts: a file is named {wrong[0]!r}; get it again"
        )
    state: dict[str, Any] = {}
    for name in parts:
        part = index.parent / Path(name).name  # an index names files of its own folder only
        if not _is_there(part):
            raise ModelError(f"{index} names {name}, which isn't there; copy all parts")
        state |= _read(part)
    return state


def _is_there(part: Path) -> bool:
    try:
        return part.is_file()
    except (OSError, ValueError):  # too long for a name, or with characters that none may have
        return False


def _read(path: Path) -> Any:
    keep([path])
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as exc:
        raise ModelError(f"{path} is damaged or of another kind: {exc}") from exc
    except Exception as exc:  # pickle and zip errors of torch.load
        raise ModelError(_why_unreadable(path, exc)) from exc


def _why_unreadable(path: Path, error: Exception) -> str:
    """Says why torch's restricted reader refused a file, and how to make one that it takes."""
    if "TorchScript" in str(error):
        return (
            f"{path} is a TorchScript archive; give the state dict of the model that it was made "
            "of: torch.save(torch.jit.load(file).state_dict(), 'weights.pth')"
        )
    classes = _classes_in(path)
    if not classes:
        return (
            f"{path} can't be read with weights_only=True ({type(error).__name__}); it is damaged "
            "or of another kind: save the model's state_dict() alone, best as .safetensors"
        )
    return (
        f"{path} holds objects of {few(classes)}, which would have to be unpickled, and sigcam "
        "unpickles nothing; it can't be read with weights_only=True. Where it was made, and if you "
        "trust it, keep the tensors alone: content = torch.load(file, weights_only=False); then "
        "torch.save(content['state_dict'], 'weights.pth') for a checkpoint (of Lightning, for "
        "one), or torch.save(content.state_dict(), 'weights.pth') for a whole model"
    )


def _classes_in(path: Path) -> list[str]:
    """Lists the classes and functions that a file would need to be unpickled; empty if unknown."""
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # a file of another kind has no list, and torch has an error for each
        return []
