"""Loads the user's own classifiers, by import path or file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sigcam.classifier.model_object import plain_model
from sigcam.classifier.zoo.base import WEIGHT_SUFFIXES, LoadedModel
from sigcam.core.errors import ModelError, UsageError
from sigcam.core.inputs import keep
from sigcam.core.spec import Preprocessing

_DEFAULT_PREPROCESSING = Preprocessing(224, 224, "crop", 256)


def load(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    """Calls the user's callable, or takes the user's network.

    Args:
        arch: "package.module:name" or "path/to/file.py:name"; what is named makes the network, or
            is one.
        name: must be None: only files of weights are known here.
        num_classes: passed on if given.

    Raises:
        UsageError: there is no such callable, or it doesn't take these arguments.
        ModelError: it fails, or returns what `plain_model` refuses.

    Example:
        >>> load("torch.nn:Identity", None, None).model
        Identity()
    """
    if name is not None:
        raise UsageError(
            f"weights for {arch} must be a file ({', '.join(WEIGHT_SUFFIXES)}), got {name!r}; "
            f"there is no file {name}"
        )
    found = _named(arch)
    if isinstance(found, nn.Module):
        if num_classes is not None:
            raise UsageError(f"{arch} is a network already; leave the number of classes out")
        model: Any = found
    else:
        model = _call(arch, _callable(arch), num_classes)
    try:
        plain = plain_model(model)
    except ModelError as exc:
        raise ModelError(f"{arch} can't be used: {exc}") from exc
    return LoadedModel(plain, arch, _DEFAULT_PREPROCESSING, ())


def takes_num_classes(arch: str) -> bool:
    """Returns whether a callable has the parameter num_classes.

    Args:
        arch: "package.module:name" or "path/to/file.py:name".

    Raises:
        UsageError, ModelError: the callable can't be had.

    Example:
        >>> takes_num_classes("torchvision.models:resnet50"), takes_num_classes("torch.nn:ReLU")
        (True, False)
    """
    found = _callable(arch)
    return not isinstance(found, nn.Module) and _misfit(found, {"num_classes": 1}) is None


def _named(arch: str) -> object:
    where, _, attribute = arch.rpartition(":")
    found: object = getattr(_module(where), attribute, None)
    return found


def _callable(arch: str) -> Callable[..., Any]:
    found = _named(arch)
    if callable(found):
        return found
    where, _, attribute = arch.rpartition(":")
    if found is None:
        raise UsageError(f"{where} has no callable {attribute!r}")
    raise UsageError(
        f"{attribute!r} of {where} must be a function or class that makes the network, or the "
        f"network, it is of type {type(found).__name__}; name one that is"
    )


def _misfit(function: Callable[..., Any], options: dict[str, int]) -> str | None:
    """Says why a function can't be called with these options; None if it can."""
    try:
        inspect.signature(function).bind(**options)
    except (TypeError, ValueError) as exc:
        return str(exc)
    return None


def _call(arch: str, function: Callable[..., Any], num_classes: int | None) -> Any:
    options = {} if num_classes is None else {"num_classes": num_classes}
    misfit = _misfit(function, options)
    if misfit is not None:
        wanted = "num_classes=..." if options else "no argument"
        raise UsageError(f"{arch} must be callable with {wanted}: {misfit}")
    try:
        return function(**options)
    except Exception as exc:  # whatever the user's code raises
        raise ModelError(f"{arch} failed: {type(exc).__name__}: {exc}") from exc


def _module(where: str) -> ModuleType:
    try:
        if not where.endswith(".py"):
            return importlib.import_module(where)
        path = Path(where).resolve()
        if not path.is_file():
            raise UsageError(f"there is no file {where}")
        keep([path])
        name = f"_sigcam_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{where} can't be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses and copy look their module up
        spec.loader.exec_module(module)
        return module
    except UsageError:
        raise
    except ModuleNotFoundError as exc:
        raise UsageError(f"{where} can't be imported: {exc}") from exc
    except Exception as exc:  # whatever the user's code raises
        raise ModelError(f"importing {where} failed: {type(exc).__name__}: {exc}") from exc
