"""Draws a layer's parameters anew, also where its weight is computed from others.

`weight_norm`, `spectral_norm` and other parametrisations keep what a weight is made of in place
of the weight; torch's own `reset_parameters` of such a layer leaves these as they are.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.overrides import TorchFunctionMode

Init = Literal["default", "paper", "softmax"]
"""How the parameters of a sigmoid branch begin; see `Head.draw` and `Head.start_from`."""

_BIAS_DEVIATION = 0.02
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PARAMETRISED = ".parametrizations."
_POWER_ITERATIONS = 30


def owner_of(name: str) -> str:
    """Returns the name of the layer that a parameter belongs to.

    Args:
        name: of a parameter, or of a part of a parametrised one.

    Example:
        >>> owner_of("fc.weight"), owner_of("fc.parametrizations.weight.original0")
        ('fc', 'fc')
    """
    marked = f".{name}"
    if _PARAMETRISED in marked:
        return marked.partition(_PARAMETRISED)[0].removeprefix(".")
    return name.rpartition(".")[0]


def drawn(model: nn.Module, owner: str, init: Init) -> dict[str, Tensor]:
    """Draws what one layer computes with anew, from the global random state.

    The layer's plain form is drawn, and what its parametrisations keep is computed from that.

    Args:
        model: the classifier; it isn't changed.
        owner: the name of the layer.
        init: "default" or "paper"; see `Head.draw`.

    Returns:
        By the model's names: every parameter, and the buffers of what computes a weight (the
        vectors of a spectral norm).

    Example:
        >>> norm = nn.utils.parametrizations.weight_norm
        >>> model = nn.Sequential(norm(nn.Linear(3, 2)))
        >>> list(drawn(model, "0", "default"))[-1]
        '0.parametrizations.weight.original1'
    """
    layer = computed_copy(model.get_submodule(owner)).cpu().requires_grad_(False)
    _draw_plain(layer, init)
    prefix = f"{owner}." if owner else ""
    values = dict(layer.named_parameters(recurse=False))
    for name, steps in _parametrisations(layer).items():
        values.update(steps.state_dict(prefix=f"parametrizations.{name}."))
    for hook in _norms(layer):
        if isinstance(hook, SpectralNorm):
            values.update({f"{hook.name}_{k}": getattr(layer, f"{hook.name}_{k}") for k in "uv"})
    return {f"{prefix}{name}": value for name, value in values.items()}


def computed_copy(model: nn.Module) -> nn.Module:
    """Copies a module, also one that keeps tensors which it computed with gradients on.

    The weights that the old `weight_norm` and `spectral_norm` compute are such, and activations
    that a forward function or a hook keeps; `copy.deepcopy` refuses them.

    Args:
        model: any module; it isn't changed.

    Example:
        >>> norm = nn.utils.parametrizations.weight_norm
        >>> type(computed_copy(norm(nn.Linear(3, 2)))).__name__
        'ParametrizedLinear'
    """
    with _Detached():
        return copy.deepcopy(model)


class _Detached(TorchFunctionMode):
    """Copies tensors that were computed with gradients on as plain values, wherever they are kept.

    A hook may keep activations in a list or an object of its own.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _parametrisations(layer: nn.Module) -> dict[str, nn.Module]:
    """Returns what computes each parametrised tensor of a layer, by the tensor's name."""
    found = getattr(layer, "parametrizations", None)
    known = isinstance(found, nn.ModuleDict) and parametrize.is_parametrized(layer)
    return dict(found.items()) if known and found is not None else {}


def _norms(layer: nn.Module) -> list[WeightNorm | SpectralNorm]:
    """Returns the norms of the old style, which are hooks."""
    hooks = layer._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, WeightNorm | SpectralNorm)]


def _draw_plain(layer: nn.Module, init: Init) -> None:
    """Draws a layer in place: plain weights first, then what they are computed from."""
    parametrised, norms = list(_parametrisations(layer)), _norms(layer)
    if not parametrised and not norms:
        _reset(layer, init)  # it is plain already, and a copy of it may be large
        return
    plain = copy.deepcopy(layer)
    if parametrised:
        # Not by remove_parametrizations: it changes the class, which all copies share.
        plain.__class__ = parametrize.type_before_parametrizations(layer)
        del plain.parametrizations
        for name in parametrised:
            plain.register_parameter(name, nn.Parameter(getattr(layer, name).detach().clone()))
    for hook in norms:
        remove = remove_weight_norm if isinstance(hook, WeightNorm) else remove_spectral_norm
        remove(plain, hook.name)
    plain.requires_grad_(False)
    _reset(plain, init)
    fresh = dict(plain.named_parameters(recurse=False))
    for name, value in layer.named_parameters(recurse=False):
        if name in fresh:
            value.copy_(fresh[name])
    for name in parametrised:
        _parametrise(layer, name, fresh[name])
    for hook in norms:
        _renorm(layer, hook, fresh[hook.name])


def _reset(layer: nn.Module, init: Init) -> None:
    """Draws a layer without parametrisations."""
    if init == "paper" and isinstance(layer, (nn.Linear, *_CONVOLUTIONS)):
        _draw_as_the_paper(layer)
        return
    own = dict(layer.named_parameters(recurse=False))
    before = {name: value.clone() for name, value in own.items()}
    for value in own.values():
        if value.is_floating_point():
            value.fill_(math.nan)  # what isn't a number afterwards wasn't drawn
    reset = getattr(layer, "reset_parameters", None) or getattr(layer, "_reset_parameters", None)
    if callable(reset):
        # It may want arguments, or real values to start from.
        with contextlib.suppress(TypeError, RuntimeError, ValueError):
            reset()
    for name, value in own.items():
        if not torch.isfinite(value).all():
            # Parameters that a module holds bare: layer scales, query tokens.
            _draw_alike(value, before[name])


def _parametrise(layer: nn.Module, name: str, fresh: Tensor) -> None:
    """Computes what a parametrisation keeps from a plain weight.

    One that can't be turned around gets values of the same mean and deviation as it has.
    """
    training = layer.training
    layer.train()  # a spectral norm finds its vectors in training only
    try:
        setattr(layer, name, fresh.detach())
        for _ in range(_POWER_ITERATIONS):
            getattr(layer, name)
    except (NotImplementedError, RuntimeError, ValueError, TypeError):
        for value in _parametrisations(layer)[name].parameters(recurse=False):
            _draw_alike(value, value.clone())
    finally:
        layer.train(training)


def _draw_alike(value: Tensor, before: Tensor) -> None:
    """Draws from the normal distribution with the mean and deviation of what was there."""
    value.normal_(float(before.mean()), float(before.std(correction=0)))


def _renorm(layer: nn.Module, hook: WeightNorm | SpectralNorm, fresh: Tensor) -> None:
    if isinstance(hook, WeightNorm):
        getattr(layer, f"{hook.name}_g").copy_(torch.norm_except_dim(fresh, 2, hook.dim))
        getattr(layer, f"{hook.name}_v").copy_(fresh)
        return
    getattr(layer, f"{hook.name}_orig").copy_(fresh)
    for _ in range(_POWER_ITERATIONS):
        hook.compute_weight(layer, do_power_iteration=True)


def _draw_as_the_paper(layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5))
    if layer.bias is not None:
        edge = 2 * _BIAS_DEVIATION
        nn.init.trunc_normal_(layer.bias, 0.0, _BIAS_DEVIATION, -edge, edge)
