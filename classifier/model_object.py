"""Takes the classifier out of its wrappers, and refuses what isn't a float module to trace."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.optim.swa_utils import AveragedModel

from sigcam.classifier.fresh import computed_copy
from sigcam.core.errors import ModelError

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")
_OBSERVING = {"FakeQuantizeBase", "ObserverBase"}
_WANTED = "the model must be an instance of torch.nn.Module"


def plain_model(model: object) -> nn.Module:
    """Returns a classifier without what only wraps it, and refuses what is none.

    Wrappers are `DataParallel`, `DistributedDataParallel`, `AveragedModel` and what
    `torch.compile` returns, around the model or around a layer of it.

    Args:
        model: what a user gives as the model; it isn't changed.

    Returns:
        The model itself, or a copy where a layer was wrapped.

    Raises:
        ModelError: it is a class, a function, a state dict, an exported program, a TorchScript
            module or anything else that isn't a module; or layers are quantised, scripted or
            without their sizes.

    Example:
        >>> plain_model(nn.DataParallel(nn.Linear(4, 2)))
        Linear(in_features=4, out_features=2, bias=True)
    """
    if not isinstance(model, nn.Module):
        raise ModelError(_refusal(model))
    plain = _unwrapped(model)
    for name, layer in plain.named_modules():
        _check_layer(name, layer)
    if any(_unwrapped(layer) is not layer for layer in plain.modules()):
        plain = computed_copy(plain)
        for parent in list(plain.modules()):
            for name, child in parent.named_children():
                setattr(parent, name, _unwrapped(child))
    return plain


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _refusal(given: object) -> str:
    """Says what was given in place of a model, and what to do."""
    if inspect.isclass(given):
        return f"{_WANTED}, got the class {given.__name__}; make one, {given.__name__}(...)"
    if isinstance(given, torch.export.ExportedProgram):
        return (
            f"{_WANTED}, got an ExportedProgram, which is fixed to what it was exported for; give "
            f"the module that it was exported from"
        )
    if isinstance(given, Mapping):
        what = "a state dict" if _has_tensors(given) else f"a {type(given).__name__}"
        return (
            f"{_WANTED}, got {what}; make the network that it belongs to, load it with "
            f"load_state_dict, and give the network"
        )
    if isinstance(given, torch.jit.ScriptFunction):
        return f"{_WANTED}, got a TorchScript function; give the module that calls it"
    if callable(given):
        name = getattr(given, "__name__", type(given).__name__)
        return (
            f"{_WANTED}, got the function {name}; if it makes the network, call it and give what "
            f"it returns, and if it computes logits, give the network that it calls"
        )
    return f"{_WANTED}, got {type(given).__name__}; make the network in Python and give that"


def _has_tensors(given: Mapping[object, object]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in given.values())


def _check_layer(name: str, layer: nn.Module) -> None:
    kind = type(layer).__name__
    where = f"its layer {name!r}" if name else "it"
    if isinstance(layer, torch.jit.ScriptModule):
        raise ModelError(
            f"the model must be a plain nn.Module, {where} is a TorchScript module; give the "
            f"module that it was scripted or traced from"
        )
    if type(layer).__module__.startswith(_QUANTISED) and "FloatFunctional" not in kind:
        raise ModelError(
            f"the model must compute in float32, {where} is quantised ({kind}); give the float "
            f"model that it was made from, and quantise the exported file (sigcam quantize)"
        )
    if any(base.__name__ in _OBSERVING for base in type(layer).__mro__):
        raise ModelError(
            f"the model must compute in float32, {where} imitates or prepares quantisation "
            f"({kind}); load its weights into the float model with "
            f"load_state_dict(..., strict=False), give that, and quantise the exported file "
            f"(sigcam quantize)"
        )
    if any(isinstance(p, UninitializedParameter) for p in layer.parameters(recurse=False)):
        raise ModelError(
            f"the model's parameters must have their sizes, {where} is lazy ({kind}); call the "
            f"model once on an image first"
        )
    if any(value.is_meta for value in (*layer.parameters(False), *layer.buffers(False))):
        raise ModelError(
            f"the model's parameters must have values, those of {where} are on the device meta, "
            f"which holds none ({kind}); load the weights with load_state_dict(..., assign=True), "
            f"or make the model without it"
        )
