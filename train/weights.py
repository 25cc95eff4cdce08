"""A classifier's weights from a file, never by unpickling objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sigcam.runtime.errors import ModelError

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict into `model`.

    Args:
        model: is changed only if the file fits.
        path: .safetensors, or what `torch.save` wrote of a state dict, alone or under the
            key "state_dict", "model_state_dict" or "model". Names may begin with
            "module.", as DistributedDataParallel leaves them.

    Raises:
        ModelError: missing or damaged; objects that would have to be unpickled; other
            names or shapes than the model's; values that aren't finite.
    """
    state = _plain(_read(path), path)
    wanted = model.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    # Old checkpoints lack the counters of batch norm, which inference doesn't use.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    extra = sorted(state.keys() - wanted.keys())
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
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ModelError(f"{name} in {path} has values that are not finite")
    model.load_state_dict(state, strict=False)


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


def _plain(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise ModelError(f"{path} holds no state dict but {type(content).__name__}")
    strange = [str(k) for k, v in content.items() if not isinstance(v, torch.Tensor)]
    if strange:
        raise ModelError(f"{path} holds more than tensors: {_few(strange)}; save a state dict")
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return state


def _few(names: list[str]) -> str:
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")) or "-"
