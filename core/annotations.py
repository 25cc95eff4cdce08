"""Checks arguments and fields against their annotations, so that each function needn't."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from sigcam.core.arguments import one_of, path_of, real_number, shown, whole_number, yes_or_no
from sigcam.core.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a public function refuse arguments of another type than it is annotated with.

    NumPy's numbers become Python's, and "~" at the beginning of a path is expanded. What a value
    must be beyond its type is the function's own affair.

    Args:
        function: with annotations; those that say nothing that can be checked are passed over.

    Returns:
        The same function, which raises UsageError before it does anything.

    Example:
        >>> @checked
        ... def repeat(text: str, times: int = 2) -> str:
        ...     return text * times
        >>> repeat("ab", "3")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: times must be a whole number, got '3'; help(repeat) says more
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise TypeError(f"{function.__name__}() {exc}") from None
        checks = _checks_of(function)
        for name, value in given.arguments.items():
            if name in checks:
                given.arguments[name] = _conforming(value, checks[name], name, function.__name__)
        return function(*given.args, **given.kwargs)

    return call


def check_fields(instance: Any) -> None:
    """Refuses values of another type than a dataclass's fields are annotated with.

    As `checked` does for a function; called in `__post_init__`, of a frozen one too.

    Raises:
        UsageError: names the field.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Case:
        ...     seed: int = 0
        ...     def __post_init__(self) -> None:
        ...         check_fields(self)
        >>> Case(seed=None)
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: seed must be a whole number, got None; help(Case) says more
    """
    kind: Any = type(instance)
    checks = _checks_of(kind)
    for field in dataclasses.fields(instance):
        if field.name in checks:
            value = getattr(instance, field.name)
            found = _conforming(value, checks[field.name], field.name, kind.__name__)
            if found is not value:
                object.__setattr__(instance, field.name, found)


class _MismatchError(Exception):
    """A value is of another type.

    Attributes:
        wanted: what would have fitted, in words.
        value: the value; one of several, where they are checked each.
    """

    def __init__(self, wanted: str, value: object) -> None:
        super().__init__(wanted)
        self.wanted, self.value = wanted, value


def _conforming(value: Any, hint: Any, name: str, owner: str) -> Any:
    try:
        return _value(value, hint, name)
    except _MismatchError as exc:
        raise UsageError(
            f"{name} must be {exc.wanted}, got {shown(exc.value)}; help({owner}) says more"
        ) from None


@functools.cache
def _checks_of(owner: Any) -> dict[str, Any]:
    """Reads the annotations of a function or class; once, when it is first used."""
    return typing.get_type_hints(owner)


def _value(value: Any, hint: Any, name: str) -> Any:
    """Returns a value as its annotation wants it; raises `_MismatchError` for another type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of_several(value, parts, name)
    if origin is Literal:
        return _choice(value, parts, name)
    if hint in _SIMPLE:
        return _simple(value, hint, name)
    if origin in (list, tuple, Sequence, Collection, Iterable):
        return _several(value, origin, parts, name)
    if origin is Mapping:
        items = _mapping(value).items()
        return {_value(k, parts[0], name): _value(v, parts[1], name) for k, v in items}
    return _instance(value, origin or hint)


def _instance(value: Any, kind: Any) -> Any:
    if kind is Callable:
        wanted, fits = "a function", callable(value)
    elif getattr(kind, "__module__", "") == "typing" or not isinstance(kind, type):
        return value  # a type variable, or a protocol such as IO: its taker looks at the value
    else:
        wanted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
        fits = isinstance(value, kind)
    if not fits:
        raise _MismatchError(wanted, value)
    return value


def _text(value: Any, _: str) -> str:
    if not isinstance(value, str):
        raise UsageError
    return value


def _nothing(value: Any, _: str) -> None:
    if value is not None:
        raise UsageError


def _whole(value: Any, name: str) -> int:
    return whole_number(value, name, -(10**18), 10**18)


def _number(value: Any, name: str) -> float:
    # Infinity is a number; whether it makes sense is the function's own affair.
    is_infinite = isinstance(value, float) and math.isinf(value)
    return value if is_infinite else real_number(value, name, -math.inf, math.inf)


_SIMPLE: dict[Any, tuple[str, Callable[[Any, str], Any]]] = {
    bool: ("True or False", yes_or_no),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    str: ("a text (str)", _text),
    Path: ("a path (str or pathlib.Path)", path_of),
    type(None): ("None", _nothing),
}
"""What is one plain value: in words, and what checks and converts it."""


def _choice(value: Any, choices: tuple[Any, ...], name: str) -> Any:
    try:
        return one_of(value, name, choices)
    except UsageError as exc:
        raise _MismatchError(f"one of {', '.join(map(str, choices))}", value) from exc


def _simple(value: Any, hint: Any, name: str) -> Any:
    wanted, check = _SIMPLE[hint]
    try:
        return check(value, name)
    except UsageError as exc:
        if hint is int and isinstance(value, int) and not isinstance(value, bool):
            wanted = "a whole number of at most 18 digits"
        if hint is float and isinstance(value, float):
            wanted = "a finite number"
        raise _MismatchError(wanted, value) from exc


def _one_of_several(value: Any, parts: tuple[Any, ...], name: str) -> Any:
    """Takes the first of a union's types that fits."""
    if value is None and type(None) in parts:
        return None
    if {str, Path} <= set(parts) and isinstance(value, (str, os.PathLike)):
        # An address on the Hub is no path, and its taker knows what to do with it.
        return value if str(value).startswith("hf://") else path_of(value, name)
    wanted: list[str] = []
    for part in parts:
        try:
            return _value(value, part, name)
        except _MismatchError as exc:  # noqa: PERF203 (there are two or three)
            if exc.value is not value:
                raise  # the type fits, and what is in it doesn't
            wanted.append(exc.wanted)
    if {str, Path} <= set(parts):
        wanted.remove(_SIMPLE[str][0])
    last = wanted.pop()
    text = f"{', '.join(wanted)} or {last}" if wanted else last
    raise _MismatchError(text, value)


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise _MismatchError("a mapping, such as a dict", value)
    return value


def _several(value: Any, kind: Any, parts: tuple[Any, ...], name: str) -> Any:
    """Checks each of several values; a text, a set and a mapping don't count as several."""
    loose = isinstance(value, (str, bytes, bytearray, memoryview, set, frozenset, Mapping))
    if loose or not isinstance(value, Iterable) or getattr(value, "shape", None) == ():
        raise _MismatchError("a list or tuple", value)
    if kind is Iterable:
        return value  # taken one at a time, by the one who wants it
    items = list(value)
    fixed = kind is tuple and parts[-1:] != (...,)
    if fixed and len(items) != len(parts):
        raise _MismatchError(f"{len(parts)} values", value)
    hints = parts if fixed else [parts[0]] * len(items)
    found = [_value(*one, name) for one in zip(items, hints, strict=True)]
    same = tuple if kind is tuple else (list, tuple)
    if isinstance(value, same) and all(map(operator.is_, found, value)):
        return value
    return tuple(found) if kind is tuple else found
