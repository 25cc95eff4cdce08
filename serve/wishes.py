"""What a request asks for beside its inputs: classes, method, threshold, as its parameters say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sigcam.core.arguments import real_number, shown, whole_number
from sigcam.core.errors import UsageError
from sigcam.images.boxes import THRESHOLD
from sigcam.runtime.explain import ExplainCall, call_of
from sigcam.runtime.model import ExportedModel
from sigcam.serve.options import ServeOptions
from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import ParameterValue

__all__ = ["PARAMETERS", "Wishes", "timeout_of", "wishes_of"]

PARAMETERS: dict[str, str] = {
    "classes": "a class by id or name, or several as a JSON list in a text",
    "top_k": "how many of the most probable classes",
    "min_probability": "every class of at least this probability, 0 to 1",
    "method": "scorecam, ablationcam, eigencam or rise in place of the model's own",
    "masks": "random masks of rise",
    "cells": "cells of rise's masks, each way",
    "keep": "share of cells that rise's masks show",
    "seed": "what rise's masks follow from",
    "threshold": "share of a heatmap's maximum at which its boxes are drawn",
    "timeout": "microseconds after which the request is given up; 0 for the server's own limit",
    "priority": "0; this server has one queue for a model",
    "binary_data_output": "whether outputs come as binary data (HTTP)",
}
"""The parameters of a request, and what they mean."""

_MOST_MICROSECONDS = 1 << 62
_NUMBERS_OF_METHODS = ("masks", "cells", "keep", "seed")


@dataclass(frozen=True)
class Wishes:
    """What a request's parameters ask for.

    Attributes:
        classes: by id or name; None for the most probable ones, or those of the input class_ids.
        top_k: how many of the most probable.
        min_probability: every class of at least this probability; None where they are counted.
        method: None for the artifact's own.
        method_options: numbers that it is called with.
        threshold: of the boxes.
    """

    classes: list[int | str] | None = None
    top_k: int = 1
    min_probability: float | None = None
    method: str | None = None
    method_options: Mapping[str, float] = field(default_factory=dict)
    threshold: float = THRESHOLD

    @property
    def names_classes(self) -> bool:
        """Says whether the parameters choose the classes."""
        return self.classes is not None or self.top_k != 1 or self.min_probability is not None

    def call(self, model: ExportedModel, options: ServeOptions) -> ExplainCall:
        """Returns the call of the runtime that these wishes come to.

        Raises:
            RequestError: more classes or passes than this server allows.
            UsageError: what this artifact can't give.
        """
        count = self.top_k if self.classes is None else len(self.classes)
        if count > options.max_classes:
            raise RequestError(
                f"{count} classes are asked for, and this server makes maps of at most "
                f"{options.max_classes} for an image; ask for fewer, or start it with a larger "
                "--max-classes"
            )
        call = call_of(
            model,
            options.most_together,
            None if self.classes is None else list(self.classes),
            self.top_k,
            self.min_probability,
            self.method,
            self.method_options,
        )
        passes = 1 if call.method is None else call.method.most_passes
        if passes > options.max_passes:
            raise RequestError(
                f"the method {self.method} takes up to {passes} runs of an image, and this server "
                f"allows {options.max_passes}; ask for another method, or start it with "
                f"--max-passes {passes}"
            )
        return call


def wishes_of(parameters: Mapping[str, ParameterValue]) -> Wishes:
    """Reads the parameters of a request.

    Args:
        parameters: by name. None of them is ignored.

    Raises:
        RequestError: an unknown name.
        UsageError: a value of another type or out of range.

    Example:
        >>> wishes_of({"classes": '["cat", 3]', "threshold": 0.5}).classes
        ['cat', 3]
        >>> wishes_of({"classes": "tabby, tabby cat", "top_k": 1}).classes
        ['tabby, tabby cat']
    """
    for name in parameters:
        if name not in PARAMETERS:
            raise RequestError(
                f"the request has the unknown parameter {shown(name)}; known are "
                f"{', '.join(PARAMETERS)}"
            )
    given: Mapping[str, Any] = parameters
    if whole_number(given.get("priority", 0), "priority", 0) != 0:
        raise RequestError(
            "priority must be 0: this server has one queue for a model; leave it out"
        )
    least = given.get("min_probability")
    method = given.get("method")
    if method is not None and not isinstance(method, str):
        raise RequestError(f"method must be a text, got {shown(method)}")
    numbers = {name: _number(given[name], name) for name in _NUMBERS_OF_METHODS if name in given}
    return Wishes(
        _classes(given["classes"]) if "classes" in given else None,
        whole_number(given.get("top_k", 1), "top_k", 1),
        None if least is None else real_number(least, "min_probability", 0, 1),
        method,
        numbers,
        real_number(given.get("threshold", THRESHOLD), "threshold", 0, 1, above=True),
    )


def timeout_of(parameters: Mapping[str, ParameterValue], longest: float) -> float:
    """Returns the seconds that a request may take.

    Args:
        parameters: the request's, with `timeout` in microseconds, or without.
        longest: the server's own limit, in seconds.

    Raises:
        UsageError: no whole number, or less than 0.

    Example:
        >>> timeout_of({"timeout": 500_000}, 60.0), timeout_of({}, 60.0)
        (0.5, 60.0)
    """
    asked = whole_number(parameters.get("timeout", 0), "timeout", 0, _MOST_MICROSECONDS)
    return min(longest, asked / 1e6) if asked else longest


def _classes(value: object) -> list[int | str]:
    """Reads a class, or several: as a list, or as a text that holds a JSON list."""
    found = value
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as exc:
            raise RequestError(
                f'classes begins like a JSON list, and isn\'t one ({exc}); write it as ["cat", 3]'
            ) from exc
    listed: list[Any] = found if isinstance(found, list) else [found]
    for one in listed:
        if type(one) not in (int, str):
            raise RequestError(
                f"a class is an id or a name, got {shown(one)}; several are written as a JSON "
                'list in a text: "[\\"cat\\", 3]"'
            )
    if not listed:
        raise UsageError("classes must name at least one class, got none; leave it out for top_k")
    return listed


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RequestError(f"{name} must be a number, got {shown(value)}")
    return value
