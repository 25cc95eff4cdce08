"""Compares the fields of a dataclass that was read from a file with their declared types.

JSON holds what it likes in any field. A text where a number should be is found here, and not where
the number is first used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

__all__ = ["check_types"]

_LARGEST = 2**53
"""Whole numbers up to here are the same in every reader of JSON; no size is as large."""


def check_types(value: Any) -> None:
    """Refuses a dataclass one of whose fields has a value of another type than it declares.

    Fields may be numbers, texts, truth values, None, Literals, tuples, Mappings, dataclasses and
    unions of these. A float may be a whole number, and must be finite.

    Args:
        value: an instance of a dataclass, as it was made of a file's contents.

    Raises:
        TypeError: names the field, what it should be and what it is.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     height: int
        ...     unit: str | None = None
        >>> check_types(Size(224))
        >>> check_types(Size("224"))
        Traceback (most recent call last):
            ...
        TypeError: height must be int, got '224'
        >>> check_types(Size(224, 5))
        Traceback (most recent call last):
            ...
        TypeError: unit must be str or None, got 5
    """
    for name, wanted in _hints(type(value)).items():
        found = getattr(value, name)
        if not _fits(found, wanted):
            raise TypeError(f"{name} must be {_words(wanted)}, got {found!r:.200}")


def _hints(kind: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {one.name: hints[one.name] for one in fields(kind)}


def _fits(value: Any, wanted: Any) -> bool:
    """Returns whether a value is of a type; of a dataclass, the fields are checked too."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin is Literal:
        return any(value == one and type(value) is type(one) for one in arguments)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and _all_fit(value, arguments)
    if origin is not None:  # a Mapping
        return isinstance(value, Mapping) and all(
            _fits(key, arguments[0]) and _fits(one, arguments[1]) for key, one in value.items()
        )
    if isinstance(value, wanted) and is_dataclass(value):
        check_types(value)
        return True
    return _is_plain(value, wanted)


def _all_fit(values: tuple[Any, ...], wanted: tuple[Any, ...]) -> bool:
    if wanted[-1] is Ellipsis:
        return all(_fits(one, wanted[0]) for one in values)
    return len(values) == len(wanted) and all(map(_fits, values, wanted))


def _is_plain(value: Any, wanted: type[Any]) -> bool:
    if wanted in (int, float):
        if isinstance(value, bool):  # which Python counts among the numbers
            return False
        if isinstance(value, int):
            return abs(value) <= _LARGEST
        return wanted is float and isinstance(value, float) and math.isfinite(value)
    return isinstance(value, wanted)


def _words(wanted: Any) -> str:
    origin, arguments = get_origin(wanted), get_args(wanted)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, arguments))
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if wanted is NoneType:
        return "None"
    return str(wanted) if origin else wanted.__name__
