"""Requests in an address's words: from `?classes=cat&top_k=3` to the protocol's parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sigcam.serve.protocol.errors import RequestError
from sigcam.serve.protocol.messages import ParameterValue

__all__ = ["FORMATS", "QUERY", "Query", "query_of"]

FORMATS: dict[str, tuple[str, str]] = {
    "json": ("explanations", "application/json"),
    "png": ("overlay_png", "image/png"),
    "jpeg": ("overlay_jpeg", "image/jpeg"),
    "heatmap": ("heatmap_png", "image/png"),
}
"""The forms of an answer: the output that it is made of, and its media type."""

QUERY: dict[str, tuple[str, str]] = {
    "model": ("string", "the model; may be left out where the server has one"),
    "version": ("string", "its version; the newest without it"),
    "format": ("string", "json; png or jpeg: the map over the image; heatmap: the map as a PNG"),
    "classes": ("string", "a class by id or name; for several, as often as there are classes"),
    "top_k": ("integer", "how many of the most probable classes (json)"),
    "rank": ("integer", "which of the most probable classes, 1 for the first (not json)"),
    "min_probability": ("number", "every class of at least this probability, 0 to 1 (json)"),
    "method": ("string", "scorecam, ablationcam, eigencam or rise in place of the model's own"),
    "masks": ("integer", "random masks of rise"),
    "cells": ("integer", "cells of rise's masks, each way"),
    "keep": ("number", "share of cells that rise's masks show"),
    "seed": ("integer", "what rise's masks follow from"),
    "threshold": ("number", "share of a heatmap's maximum at which its boxes are drawn (json)"),
    "timeout": ("integer", "microseconds after which the request is given up"),
}
"""The words of an address with the type of each and what it means."""

_OWN = ("model", "version", "format", "rank")
_INTEGER, _NUMBER = re.compile(r"-?[0-9]{1,18}"), re.compile(r"-?[0-9]*\.?[0-9]+(e-?[0-9]{1,3})?")


@dataclass(frozen=True)
class Query:
    """What an address asks for.

    Attributes:
        form: a key of `FORMATS`.
        model: None for the only one.
        version: None for the newest.
        rank: which of the most probable classes an image shows.
        parameters: the protocol's.
    """

    form: str = "json"
    model: str | None = None
    version: str | None = None
    rank: int = 1
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)


def query_of(words: Iterable[tuple[str, str]]) -> Query:
    """Reads the words of an address.

    Args:
        words: names and values in their order; none is ignored.

    Raises:
        RequestError: an unknown word, one that comes twice, or a value of another type.

    Example:
        >>> found = query_of([("classes", "cat"), ("format", "png")])
        >>> found.form, found.parameters
        ('png', {'classes': 'cat'})
        >>> query_of([("format", "png"), ("rank", "2")]).parameters
        {'top_k': 2}
    """
    given: dict[str, list[str]] = {}
    for name, value in words:
        if name not in QUERY:
            raise RequestError(f"{name[:40]!r} isn't known here; known are {', '.join(QUERY)}")
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name != "classes":
            raise RequestError(f"{name} must come once, got it {len(values)} times")
    form = given.get("format", ["json"])[0]
    if form not in FORMATS:
        raise RequestError(f"format must be one of {', '.join(FORMATS)}, got {form[:40]!r}")
    parameters: dict[str, ParameterValue] = {
        name: _value(name, values[0])
        for name, values in given.items()
        if name not in (*_OWN, "classes")
    }
    if "classes" in given:
        classes = given["classes"]
        # A lone text that begins with "[" would be read as a list.
        alone = len(classes) == 1 and not classes[0].lstrip().startswith("[")
        parameters["classes"] = classes[0] if alone else list(classes)
    rank = _rank(given, form, parameters)
    return Query(
        form, given.get("model", [None])[0], given.get("version", [None])[0], rank, parameters
    )  # fmt: skip


def _rank(given: Mapping[str, list[str]], form: str, parameters: dict[str, ParameterValue]) -> int:
    """Checks that an image shows the map of one class; returns its rank."""
    if form == "json":
        if "rank" in given:
            raise RequestError("rank is for images; for json, ask for top_k")
        return 1
    for name in ("top_k", "min_probability", "threshold"):
        if name in given:
            raise RequestError(f"{name} is for json: an image shows the map of one class")
    if len(given.get("classes", ())) > 1:
        raise RequestError("an image shows the map of one class, got several; ask for each")
    if "rank" not in given:
        return 1
    if "classes" in given:
        raise RequestError("give classes or rank, not both")
    rank = _value("rank", given["rank"][0])
    if not isinstance(rank, int) or rank < 1:
        raise RequestError(f"rank must be at least 1, got {rank}")
    parameters["top_k"] = rank
    return rank


def _value(name: str, text: str) -> str | int | float:
    kind = QUERY[name][0]
    if kind == "string":
        return text
    if kind == "integer" and _INTEGER.fullmatch(text):
        return int(text)
    if kind == "number" and _NUMBER.fullmatch(text):
        return float(text)
    wanted = "a whole number" if kind == "integer" else "a number"
    raise RequestError(f"{name} must be {wanted}, got {text[:40]!r}")
