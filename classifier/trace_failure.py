"""Says why a model can't be traced, by trying it: channels, image size, batch size, and so on."""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from sigcam.core.errors import ModelError

_CHANNELS = (1, 3, 4, 2, 5, 6, 8, 10, 12, 13)
_SIDES = (224, 299, 256, 384, 32, 28, 64, 96, 128, 192, 160, 331, 448, 512)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory", re.IGNORECASE)
_VALUES = re.compile(r"data-dependent|_local_scalar_dense|aten\.item|\.item\(\)")
_FIXED = re.compile(r"specialized it to be a constant|Constraints violated")
_INNER = ("torch", "sigcam")
_NUMBER = re.compile(r"\.item\(|\.tolist\(|\bfloat\(|\bint\(")

KEEP_A_TENSOR = (
    "keep it a tensor with a value for each image, such as x.amax((1, 2, 3), keepdim=True) in "
    "place of x.max().item()"
)
"""What messages advise where a model takes Python numbers out of tensors."""


def explained(model: nn.Module, images: Tensor, error: Exception) -> ModelError:
    """Makes an error that says why a model can't be traced or run.

    The model is called, without a trace, on a few batches, and if it fails on all of them on
    other numbers of channels and sizes: what it does with these tells the causes apart.

    Args:
        model: the classifier, in inference mode.
        images: the images that it was to be traced with, float32 [B, 3, H, W].
        error: what came.

    Returns:
        The error to raise, whose cause should be `error`.

    Example:
        >>> grey, images = nn.Conv2d(1, 4, 3), torch.zeros(2, 3, 8, 8)
        >>> str(explained(grey, images, RuntimeError()))[:58]
        'the model takes images of 1 channels, the images given hav'
    """
    if _out_of_memory(error):
        return _memory(images)
    arguments = _arguments(model)
    if arguments is not None:
        return ModelError(arguments)
    failures = {B: _failure(model, images[:1].expand(B, -1, -1, -1)) for B in (1, 2, 3)}
    if any(_out_of_memory(failure) for failure in failures.values()):
        return _memory(images)
    if all(failures.values()):
        return _never_runs(model, images, failures[1] or error)
    if any(failures.values()):
        runs = ", ".join(str(B) for B, failure in failures.items() if failure is None)
        reason = next(_words(failure) for failure in failures.values() if failure)
        return ModelError(
            f"the model must run with any batch size, of batches of 1, 2 and 3 images it runs "
            f"with {runs} ({reason}); write x.shape[0] or -1 in place of a fixed number"
        )
    return ModelError(_traced_only(error))


def _traced_only(error: Exception) -> str:
    """Says why a model that runs can't be traced."""
    where = _place(error)
    if isinstance(error, GuardOnDataDependentSymNode) or _VALUES.search(str(error)):
        if _NUMBER.search(where):
            return (
                f"the model must be one fixed computation, its forward takes a Python number out "
                f"of the values of tensors{where}; {KEEP_A_TENSOR}"
            )
        return (
            f"the model must be one fixed computation, its forward chooses its way by the values "
            f"of tensors{where}; compute both ways and choose with torch.where, or take the choice "
            f"out of forward"
        )
    if _FIXED.search(str(error)):
        return (
            "the model must run with any batch size, its forward makes the batch size a fixed "
            "Python number: by len(x), int(x.shape[0]) or a loop over the images; use "
            "x.shape[0] as it is, or -1"
        )
    return (
        f"the model runs, but torch.export can't trace it{where}: {_words(error)}; write that part "
        f"with torch operators"
    )


def _never_runs(model: nn.Module, images: Tensor, error: Exception) -> ModelError:
    B, C, H, W = (1, *images.shape[1:])
    fitting = re.search(r"to have (\d+) channels, but got (\d+)", str(error))
    named = [int(fitting[1])] if fitting and int(fitting[2]) == C else []
    channels = _first(model, images, ((n, H, W) for n in (*named, *_CHANNELS) if n != C))
    if named or channels:
        wanted = channels[0] if channels else named[0]
        return ModelError(
            f"the model takes images of {wanted} channels, the images given have {C}; give "
            f"mean and std of {wanted} numbers each (--mean, --std), or DualBranch(..., "
            f"channels={wanted})"
        )
    sides = _first(model, images, ((C, side, side) for side in _SIDES))
    if sides:
        return ModelError(
            f"the model doesn't run on images of {H}x{W} pixels ({_words(error)}), it does on "
            f"{sides[1]}x{sides[2]}; give that size (--size {sides[1]})"
        )
    return ModelError(
        f"the model fails on images {[B, C, H, W]}{_place(error)}: {_words(error)}; give images as "
        f"it takes them, or mend its forward"
    )


def _first(
    model: nn.Module, images: Tensor, shapes: Iterable[tuple[int, int, int]]
) -> tuple[int, int, int] | None:
    """Returns the first of the shapes [C, H, W] that the model runs on."""
    for shape in shapes:
        if _failure(model, images.new_zeros(1, *shape)) is None:
            return shape
    return None


def _failure(model: nn.Module, images: Tensor) -> Exception | None:
    try:
        with torch.no_grad():
            model(images)
    except Exception as exc:  # whatever the model raises
        return exc
    return None


def _out_of_memory(error: Exception | None) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))


def _memory(images: Tensor) -> ModelError:
    return ModelError(
        f"there isn't enough memory to run the model on images {list(images.shape)}; free some, "
        f"or give a smaller size"
    )


def _arguments(model: nn.Module) -> str | None:
    """Says what is wrong with the arguments of forward; None if images alone are enough."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    needed = [p.name for p in (*positional[1:], *keyword) if p.default is p.empty]
    if needed:
        return (
            f"the model must take images alone, its forward also needs {', '.join(needed)}; wrap "
            f"it in a module whose forward(images) fills these in"
        )
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return "the model must take images, its forward takes none; give forward(self, images)"
    return None


def _words(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: Exception) -> str:
    """Says at which line of the model's own code an error arose, if there is one."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        parts = Path(frame.filename).parts
        if not frame.filename.startswith("<") and not any(inner in parts for inner in _INNER):
            line = f": {frame.line}" if frame.line else ""
            return f" (at {Path(frame.filename).name}, line {frame.lineno}{line})"
    return ""
