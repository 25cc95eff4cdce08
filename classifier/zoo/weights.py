"""Loads a classifier's weights from a file, never by unpickling objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sigcam.core.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."
_AUXILIARY = ("AuxLogits", "aux1", "aux2")

SIGMOID_NAMES = {"fc2": "fc", "classifier_2": "classifier", "SPG_A4_2": "SPG_A4"}
"""The sigmoid branch's layer in checkpoints of the paper's code, and the head it is a clone of."""


def load_weights(model: nn.Module, path: Path) -> dict[str, Tensor] | None:
    """Loads a file of weights into a model.

    A checkpoint of the paper's own code holds two heads: the classifier's, and beside it
    the sigmoid branch's under a name of its own (`SIGMOID_NAMES`). The latter is taken out
    and returned, if the model has no such layer itself.

    Args:
        model: the classifier; it is changed only if the file fits.
        path: a .safetensors file, or what `torch.save` wrote of a state dict, alone or under the
            key "state_dict", "model_state_dict" or "model". Names may begin with
            "module.", as DistributedDataParallel leaves them. Auxiliary training heads
            (torchvision's InceptionV3 and GoogLeNet) are left out if the model has none.

    Returns:
        The sigmoid branch's tensors by the names of the classifier's head, so "fc2.weight"
        as "fc.weight"; None if the file has none.

    Raises:
        ModelError: the file is missing or damaged; objects that would have to be unpickled; other
            names or shapes than the model's, of either head; values that aren't finite.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(2, 1)
        >>> state = {"module.weight": torch.ones(1, 2), "module.bias": torch.zeros(1)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": state}, Path(folder, "model.pth"))
        ...     branch = load_weights(model, Path(folder, "model.pth"))
        >>> model.weight.tolist(), branch
        ([[1.0, 1.0]], None)
    """
    wanted = model.state_dict()
    state = _without_auxiliary(_plain(_read(path), path), wanted)
    branch = None
    for name, head in SIGMOID_NAMES.items():
        own = _part(wanted, head)
        if own and _part(state, name) and not _part(wanted, name):
            branch = _part(state, name)
            state = {n: value for n, value in state.items() if n not in branch}
            break
    _check(path, state, wanted)
    if branch is not None:
        _check(path, branch, {name + n.removeprefix(head): value for n, value in own.items()})
        branch = {head + n.removeprefix(name): value for n, value in branch.items()}
    model.load_state_dict(state, strict=False)
    return branch


def _part(state: Mapping[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(f"{layer}.")}


def _without_auxiliary(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    surplus = [layer for layer in _AUXILIARY if not _part(wanted, layer)]
    left_out = {name for layer in surplus for name in _part(state, layer)}
    return {name: value for name, value in state.items() if name not in left_out}


def _check(path: Path, state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    # Old checkpoints lack the counters of batch norm, which inference doesn't use.
    needed = {name for name in wanted if not name.endswith("num_batches_tracked")}
    missing, extra = sorted(needed - state.keys()), sorted(state.keys() - wanted.keys())
    if missing or extra:
        raise ModelError(
            f"{path} doesn't fit the model: missing {_few(missing)}, unexpected {_few(extra)}; "
            "look at the architecture and the number of classes"
        )
    for name, value in state.items():
        if value.shape != wanted[name].shape:
            raise ModelError(
                f"{path} doesn't fit the model: {name} is {list(value.shape)}, the model's is "
                f"{list(wanted[name].shape)}; look at the architecture and the number of classes"
            )
        if not _all_finite(value):
            raise ModelError(f"{name} in {path} has values that are not finite")


def _all_finite(value: Tensor) -> bool:
    # What isn't finite makes the sum not finite; that is quicker than to look at each value,
    # which is needed only where finite values overflow.
    return bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())


def _read(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file of weights {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, EOFError, ValueError) as exc:
        raise ModelError(f"{path} is damaged or of another kind: {exc}") from exc
    except Exception as exc:  # pickle and zip errors of torch.load
        raise ModelError(
            f"{path} can't be read with weights_only=True ({type(exc).__name__}); save the model's "
            "state_dict() alone, best as .safetensors"
        ) from exc


def _plain(content: Any, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds no state dict but {type(content).__name__}")
    strange = [str(k) for k, v in content.items() if not isinstance(v, Tensor)]
    if strange:
        raise ModelError(f"{path} holds more than tensors: {_few(strange)}; save a state dict")
    state = {str(name): value for name, value in content.items()}
    while all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return state


def _few(names: list[str]) -> str:
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "-"
