"""Checks of arguments: what was wanted, what came, and what to do about it."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from sigcam.core.errors import UsageError

T = TypeVar("T")


def shown(value: object) -> str:
    """Says in a few words what came: a number or a text where it is short, else its type.

    Example:
        >>> shown(None), shown("abc"), shown(b"x" * 1000), shown([1])
        ('None', "'abc'", 'an object of the type bytes', 'an object of the type list')
    """
    kind = type(value).__name__
    text = ""
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        # Python writes no whole number of more than 4300 digits.
        with suppress(ValueError):
            text = repr(value)
    if not text and hasattr(value, "dtype") and hasattr(value, "shape"):
        text = f"{kind} {value.dtype} {list(value.shape)}"
    return text if text and len(text) <= 160 else f"an object of the type {kind}"


def path_of(value: object, what: str) -> Path:
    """Returns a path that a caller gave, with "~" expanded.

    Args:
        value: a str or os.PathLike of text.
        what: what errors call it, such as "the branch file".

    Raises:
        UsageError: another type, an empty path, one with a zero byte, or "~" of nobody.

    Example:
        >>> path_of("models/net.onnx", "the model").name
        'net.onnx'
        >>> path_of(None, "the model")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: the model is a path (str or pathlib.Path), got None
    """
    text = value
    if isinstance(value, os.PathLike):
        text = os.fspath(value)
    if not isinstance(text, str):
        advice = "; decode it with os.fsdecode" if isinstance(text, bytes) else ""
        raise UsageError(f"{what} is a path (str or pathlib.Path), got {shown(value)}{advice}")
    if not text:
        raise UsageError(f"{what} is a path, got an empty one; name a file")
    if is_address(text):
        raise UsageError(
            f"{what} is a path, got the address {text}; download it, and give the file"
        )
    if "\0" in text:
        raise UsageError(f"{what} is a path, got one with a zero byte in it; check the name")
    try:
        return Path(text).expanduser()
    except RuntimeError as exc:
        raise UsageError(f"{what} is {text}, whose user has no home folder; write it out") from exc


def is_address(text: str) -> bool:
    """Says whether a text is an address on a network and no path.

    Example:
        >>> is_address("https://example.org/cat.jpg"), is_address("C:/cat.jpg")
        (True, False)
    """
    return re.match("[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None


def whole_number(value: object, name: str, least: int, most: int | None = None) -> int:
    """Returns a whole number that a caller gave, as Python's own.

    Args:
        value: an int, or another type that counts as one (NumPy's); no bool.
        name: of the argument.
        least: smallest that is taken.
        most: largest; None for no limit.

    Raises:
        UsageError: another type, or out of range.

    Example:
        >>> whole_number(3, "top_k", 1)
        3
        >>> whole_number(2.0, "top_k", 1)
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: top_k must be a whole number, got 2.0
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError as exc:
        raise UsageError(f"{name} must be a whole number, got {shown(value)}") from exc
    if number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name} must be {wanted}, got {_short(number)}")
    return number


def real_number(
    value: object, name: str, least: float, most: float, *, above: bool = False
) -> float:
    """Returns a number that a caller gave, as Python's float.

    Args:
        value: an int or float, or another type that converts to one without being text
            (NumPy's numbers, arrays of one number without axes); no bool.
        name: of the argument.
        least: smallest that is taken, or with `above` the largest that isn't.
        most: largest that is taken; `math.inf` for no limit, which isn't taken itself.
        above: whether `least` itself is refused.

    Raises:
        UsageError: another type, NaN, or out of range.

    Example:
        >>> real_number(1, "alpha", 0, 1)
        1.0
        >>> real_number(math.nan, "alpha", 0, 1)
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: alpha must be from 0 to 1, got nan
    """
    try:
        if isinstance(value, (bool, str, bytes, bytearray)) or getattr(value, "shape", ()) != ():
            raise TypeError
        number = float(value)  # type: ignore[arg-type]
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError) as exc:
        raise UsageError(f"{name} must be a number, got {shown(value)}") from exc
    low_enough = number <= most and number < math.inf
    if not (low_enough and (number > least if above else number >= least)):
        start = f"above {least:g}" if above else f"at least {least:g}"
        if math.isinf(most):
            wanted = f"{start} and finite" if not math.isinf(least) else "finite"
        else:
            wanted = f"{start} and at most {most:g}" if above else f"from {least:g} to {most:g}"
        raise UsageError(f"{name} must be {wanted}, got {number:g}")
    return number


def yes_or_no(value: object, name: str) -> bool:
    """Returns a truth value that a caller gave; NumPy's count too.

    Raises:
        UsageError: another type. Text such as "no" would count as true.

    Example:
        >>> yes_or_no("no", "legend")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: legend must be True or False, got 'no'
    """
    if isinstance(value, bool):
        return value
    if type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_"):
        return bool(value)
    raise UsageError(f"{name} must be True or False, got {shown(value)}")


def one_of(value: object, name: str, allowed: Iterable[T]) -> T:
    """Returns the one of several that a caller named.

    Raises:
        UsageError: none of them.

    Example:
        >>> one_of("image", "background", ("image", "none"))
        'image'
        >>> one_of(3, "background", ("image", "none"))
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: background must be one of image, none, got 3
    """
    known = list(allowed)
    for one in known:
        if type(value) is type(one) and value == one:
            return one
    raise UsageError(f"{name} must be one of {', '.join(map(str, known))}, got {shown(value)}")


def instance_of(value: Any, kind: Any, what: str, advice: str = "") -> Any:
    """Returns an object that a caller gave, if it is of the class that is wanted.

    Args:
        value: the object.
        kind: the class.
        what: what errors call the argument, such as "options".
        advice: where such an object comes from.

    Raises:
        UsageError: an object of another class.

    Example:
        >>> instance_of(3, str, "name", "write it in quotes")
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: name must be a str, got 3; write it in quotes
    """
    if isinstance(value, kind):
        return value
    end = f"; {advice}" if advice else ""
    raise UsageError(f"{what} must be a {kind.__name__}, got {shown(value)}{end}")


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "one of more than 20 digits"
