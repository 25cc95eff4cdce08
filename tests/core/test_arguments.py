"""Checks of arguments, by hand and by annotation."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from sigcam.core.annotations import check_fields, checked
from sigcam.core.arguments import path_of, real_number, shown, whole_number
from sigcam.core.errors import UsageError


@checked
def everything(
    whole: int = 0,
    number: float | None = None,
    text: str = "",
    path: str | Path = "a",
    only_path: Path = Path("a"),
    choice: Literal["a", "b"] = "a",
    flag: bool = False,
    names: Sequence[str] = (),
    pair: tuple[int, int] = (1, 2),
    many: tuple[float, ...] = (),
    table: Mapping[str, float] | None = None,
    call: Callable[[str], None] | None = None,
    items: Iterable[Any] = (),
    size: int | tuple[int, int] | None = None,
    unknown=None,
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("whole", np.int64(3), 3),
        ("whole", np.array(3), 3),
        ("number", 2, 2.0),
        ("number", np.float32(0.5), 0.5),
        ("number", math.inf, math.inf),
        ("number", None, None),
        ("flag", np.True_, True),
        ("names", ["a", "b"], ["a", "b"]),
        ("names", np.array(["a", "b"]), ["a", "b"]),
        ("pair", [3, np.int8(4)], (3, 4)),
        ("many", (1, 2.5), (1.0, 2.5)),
        ("table", {"a": 1}, {"a": 1.0}),
        ("size", 3, 3),
        ("size", (3, 4), (3, 4)),
        ("path", "hf://owner/name", "hf://owner/name"),
        ("only_path", Path("b"), Path("b")),
        ("unknown", object, object),
    ],
)
def test_what_fits(name, value, wanted):
    found = everything(**{name: value})[name]
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("whole", "3", "whole must be a whole number, got '3'"),
        ("whole", 3.0, "whole must be a whole number, got 3.0"),
        ("whole", True, "whole must be a whole number, got True"),
        ("whole", 10**500, "whole must be a whole number of at most 18 digits"),
        ("number", "0.5", "number must be a number or None, got '0.5'"),
        ("number", math.nan, "number must be a finite number or None, got nan"),
        ("number", 1j, "number must be a number or None, got 1j"),
        ("text", b"a", "text must be a text (str), got an object of the type bytes"),
        ("path", 3, "path must be a path (str or pathlib.Path), got 3"),
        ("path", b"a", "path must be a path"),
        ("path", "", "empty"),
        ("path", "a\0b", "zero byte"),
        ("path", "https://a.org/b", "is a path, got the address https://a.org/b; download it"),
        ("choice", "c", "choice must be one of a, b, got 'c'"),
        ("choice", ["a"], "choice must be one of a, b"),
        ("flag", 1, "flag must be True or False, got 1"),
        ("names", "layer4", "names must be a list or tuple, got 'layer4'"),
        ("names", {"a"}, "names must be a list or tuple"),
        ("names", [1], "names must be a text (str)"),
        ("pair", (1, 2, 3), "pair must be 2 values"),
        ("many", (1.0, math.nan), "many must be a finite number, got nan"),
        ("many", np.array(2.0), "many must be a list or tuple"),
        ("table", [1], "table must be a mapping, such as a dict or None"),
        ("table", {1: 2}, "table must be a text (str)"),
        ("call", "print", "call must be a function or None, got 'print'"),
        ("items", 3, "items must be a list or tuple"),
        ("size", "224", "size must be a whole number, a list or tuple or None, got '224'"),
    ],
)
def test_what_does_not(name, value, message):
    with pytest.raises(UsageError) as found:
        everything(**{name: value})
    assert message in str(found.value)


def test_the_home_folder_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert everything(path="~/a")["path"] == tmp_path / "a"
    assert everything(only_path=Path("~"))["only_path"] == tmp_path
    assert path_of("a/~b", "a file") == Path("a/~b")
    with pytest.raises(UsageError, match="has no home folder; write it out"):
        path_of("~nobody-of-that-name/a", "a file")


def test_a_function_stays_what_it_is():
    assert everything.__name__ == "everything"
    assert everything(1, 2.0)["number"] == 2.0
    with pytest.raises(TypeError, match="nonsense"):
        everything(nonsense=1)


def test_fields_are_converted():
    @dataclass(frozen=True)
    class Case:
        rate: float = 0.5
        cache: Path | None = None

        def __post_init__(self):
            check_fields(self)

    assert Case(1) == Case(1.0)
    assert isinstance(Case(1).rate, float)
    assert Case(cache="a").cache == Path("a")
    with pytest.raises(UsageError, match=r"cache must be a path .* or None, got 3"):
        Case(cache=3)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf, -math.inf, math.nan])
def test_numbers_out_of_range(value):
    with pytest.raises(UsageError, match="from 0 to 1"):
        real_number(value, "alpha", 0, 1)
    with pytest.raises(UsageError, match=r"above 0 and at most 1|above 0"):
        real_number(value, "alpha", 0, 1, above=True)


def test_huge_numbers_are_not_written_out():
    with pytest.raises(UsageError, match="from 1 to 5, got one of more than 20 digits"):
        whole_number(10**5000, "count", 1, 5)
    assert shown(10**5000) == "an object of the type int"
    assert len(shown("x" * 10_000)) < 100
    assert shown(np.zeros((2, 3))) == "ndarray float64 [2, 3]"
