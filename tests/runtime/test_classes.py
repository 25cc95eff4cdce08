import numpy as np
import pytest

from sigcam.core.errors import UnknownClassError, UsageError
from sigcam.runtime.classes import resolve_class, resolve_classes

BIRDS = ("crane", "tabby cat", "crane", "7")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (0, [0]),
        (np.int64(3), [3]),
        ("Warm", [3]),
        ("wArM ", [3]),
        ("2", [2]),
        (["blue", 0], [2, 0]),
    ],
)
def test_ids_and_names(spec_of, given, wanted):
    assert resolve_classes(given, spec_of()) == wanted
    assert resolve_classes(np.array([1, 0]), spec_of()) == [1, 0]


def test_exact_case_comes_first(spec_of):
    spec = spec_of(class_names=("cat", "Cat", "CAT", "dog"))
    assert resolve_class("Cat", spec) == 1
    with pytest.raises(UsageError, match="classes 0, 1, 2; give the id"):
        resolve_class("cAt", spec)


def test_a_shared_name_needs_its_id(spec_of):
    spec = spec_of(class_names=BIRDS)
    with pytest.raises(UsageError, match="classes 0, 2; give the id"):
        resolve_class("crane", spec)
    assert resolve_class("7", spec) == 3  # a name, though it looks like an id


def test_unknown_names_bring_near_ones(spec_of):
    spec = spec_of(class_names=BIRDS)
    for typo in ("tabby cap", "cat", "TABY CAT"):
        with pytest.raises(UnknownClassError, match="near names: 'tabby cat'"):
            resolve_class(typo, spec)
    with pytest.raises(UnknownClassError, match="sigcam info --json"):
        resolve_class("zzzzzz", spec)
    with pytest.raises(UnknownClassError, match=r"no class names.*0 to 3"):
        resolve_class("tabby cat", spec_of(class_names=()))


@pytest.mark.parametrize("given", [4, -1, "4", 10**30, "9" * 50])
def test_ids_out_of_range(spec_of, given):
    with pytest.raises(UnknownClassError, match="0 to 3"):
        resolve_class(given, spec_of(class_names=()))


@pytest.mark.parametrize("given", [None, 1.5, True, b"red", {"red"}])
def test_other_types(spec_of, given):
    with pytest.raises(UsageError):
        resolve_classes(given, spec_of())


def test_no_class_at_all(spec_of):
    with pytest.raises(UsageError, match="at least one"):
        resolve_classes([], spec_of())
