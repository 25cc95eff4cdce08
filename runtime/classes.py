"""From what a caller writes for classes to their ids, and to what the graph is asked for."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, cast

from sigcam.core.arguments import real_number, shown, whole_number
from sigcam.core.errors import UnknownClassError, UsageError
from sigcam.core.spec import MAX_RANKS, Spec

Classes: TypeAlias = "int | str | Sequence[int | str]"
"""A class or several, by id or by name. -1 is the most probable one, -2 the next, where the
artifact takes classes. Arrays and series count as sequences."""


@dataclass(frozen=True)
class ClassRequest:
    """What one call asks for.

    Attributes:
        ids: to feed as `class_ids`, ranks as negative numbers; None where the graph chooses.
        count: how many of the graph's K classes to return, the first ones.
        min_probability: every class of at least this probability is asked for, however many
            these are, in place of `count`; None where they are counted or named.
    """

    ids: tuple[int, ...] | None
    count: int
    min_probability: float | None = None


def request_for(
    classes: Classes | None, top_k: int, spec: Spec, min_probability: float | None = None
) -> ClassRequest:
    """Works out what to ask an artifact for.

    Args:
        classes: the classes that the caller names; None for the most probable ones.
        top_k: how many of these.
        spec: of the artifact.
        min_probability: the least probability of the classes; None where they are counted or
            named.

    Raises:
        UnknownClassError: a class that the model doesn't have.
        UsageError: classes or a top_k that this artifact can't give; a probability that isn't
            one, or beside classes or a top_k.

    Example:
        >>> from sigcam.core.spec import ClassSelection, Preprocessing, Source, Spec
        >>> spec = Spec("cam", "sigmoid", True, ("layer4",), "fused", ClassSelection("input"),
        ...             Preprocessing(), 3, ((8, 7, 7),), Source("net", "0"), ("cat", "dog", "owl"))
        >>> request_for(["owl", 0], 1, spec)
        ClassRequest(ids=(2, 0), count=2, min_probability=None)
        >>> request_for(None, 2, spec)
        ClassRequest(ids=(-1, -2), count=2, min_probability=None)
    """
    top_k = whole_number(top_k, "top_k", 1)
    selection = spec.classes
    ranks = min(spec.num_classes, MAX_RANKS)
    if min_probability is not None:
        min_probability = real_number(min_probability, "min_probability", 0, 1)
        if classes is not None or top_k != 1:
            raise UsageError(
                "min_probability chooses the classes, so give neither classes nor top_k beside it"
            )
        first = (-1,) if selection.mode == "input" else None
        return ClassRequest(first, selection.k, min_probability)
    if classes is not None:
        if selection.mode != "input":
            raise UsageError(
                f"this artifact chooses its classes itself ({selection.mode}); to name "
                "them, export it with `sigcam export --classes input`"
            )
        if top_k != 1:
            raise UsageError(f"give classes or top_k, not both (got top_k={top_k})")
        ids = tuple(resolve_classes(classes, spec, ranks))
        return ClassRequest(ids, len(ids))
    if selection.mode == "input":
        most = ranks
        more = most < spec.num_classes
        advice = "name other classes by `classes`" if more else "the model has no more classes"
    else:
        most, advice = selection.k, "for more, export it with `sigcam export --classes input`"
    if top_k > most:
        raise UsageError(
            f"top_k must be at most {most} for this artifact, got {shown(top_k)}; {advice}"
        )
    best = tuple(range(-1, -top_k - 1, -1)) if selection.mode == "input" else None
    return ClassRequest(best, top_k)


def resolve_classes(classes: Classes, spec: Spec, ranks: int = 0) -> list[int]:
    """Finds the ids of one class or of several, in the order given.

    Args:
        classes: the class, or a sequence of them: a list, an array of one axis, a series.
        spec: of the model.
        ranks: how many of the most probable classes may be named, by -1, -2, and so on.

    Raises:
        UnknownClassError: a class that the model doesn't have.
        UsageError: an empty sequence, a name that two classes share, or another type.

    Example:
        >>> from sigcam.core.spec import ClassSelection, Preprocessing, Source, Spec
        >>> spec = Spec("cam", "sigmoid", True, ("layer4",), "fused", ClassSelection("input"),
        ...             Preprocessing(), 3, ((8, 7, 7),), Source("net", "0"), ("cat", "dog", "owl"))
        >>> resolve_classes(["owl", 0], spec), resolve_classes("DOG", spec)
        ([2, 0], [1])
    """
    if isinstance(classes, str) or not _is_sequence(classes):
        return [resolve_class(cast("int | str", classes), spec, ranks)]
    ids = [resolve_class(one, spec, ranks) for one in cast("Sequence[int | str]", classes)]
    if not ids:
        raise UsageError("classes must name at least one class, got none; leave it out for top_k")
    return ids


def resolve_class(given: int | str, spec: Spec, ranks: int = 0) -> int:
    """Finds the id of a class.

    Args:
        given: an id, 0 <= id < C; a rank, -1 for the most probable class and so on; or a name:
            exact, else without regard to case, else a number written as text.
        spec: of the model.
        ranks: how many ranks there are.

    Raises:
        UnknownClassError: a class that the model doesn't have.
        UsageError: a name that two classes share, or neither a name nor an id.

    Example:
        >>> from sigcam.core.spec import ClassSelection, Preprocessing, Source, Spec
        >>> spec = Spec("cam", "sigmoid", True, ("layer4",), "fused", ClassSelection("input"),
        ...             Preprocessing(), 3, ((8, 7, 7),), Source("net", "0"), ("cat", "dog", "owl"))
        >>> resolve_class("Owl", spec), resolve_class("1", spec), resolve_class(0, spec)
        (2, 1, 0)
    """
    if isinstance(given, str):
        return _by_name(given, spec, ranks)
    try:
        if isinstance(given, bool):
            raise TypeError
        class_id = operator.index(given)
    except TypeError as exc:
        several = hasattr(given, "__iter__")
        advice = "; pass several as a list, in the order in which you want them" if several else ""
        raise UsageError(f"a class is an id or a name, got {shown(given)}{advice}") from exc
    if not -ranks <= class_id < spec.num_classes:
        also = f", and -1 (the most probable class) to -{ranks}" if ranks else ""
        raise UnknownClassError(
            f"class {shown(class_id)} doesn't exist; the model has the ids 0 to "
            f"{spec.num_classes - 1}{also}"
        )
    return class_id


def _by_name(name: str, spec: Spec, ranks: int) -> int:
    folded = name.casefold().strip()
    exact = [i for i, known in enumerate(spec.class_names) if known == name]
    found = exact or [i for i, known in enumerate(spec.class_names) if known.casefold() == folded]
    if len(found) > 1:
        raise UsageError(
            f"{name!r} is the name of the classes {', '.join(map(str, found))}; give the id"
        )
    if found:
        return found[0]
    if re.fullmatch("-?[0-9]{1,9}", folded):
        return resolve_class(int(folded), spec, ranks)
    if not spec.class_names:
        raise UnknownClassError(
            f"the model has no class names, so {name!r} can't be found; "
            f"give an id from 0 to {spec.num_classes - 1}"
        )
    raise UnknownClassError(f"no class is named {name!r}; {_suggestion(folded, spec)}")


def _suggestion(folded: str, spec: Spec) -> str:
    names = {known.casefold(): known for known in spec.class_names}
    inside = [key for key in names if folded and folded in key][:3]
    near = difflib.get_close_matches(folded, names, n=5, cutoff=0.6)
    shown = [repr(names[key]) for key in dict.fromkeys([*near, *inside])]
    if not shown:
        last = spec.num_classes - 1
        return f"see the names with `sigcam info --json`, or give an id from 0 to {last}"
    return f"near names: {', '.join(shown)}"


def _is_sequence(value: object) -> bool:
    # A set has no order, bytes are numbers that nobody meant, and an array may be a single number.
    loose = isinstance(value, (bytes, bytearray, memoryview, Mapping))
    scalar = getattr(value, "shape", None) == ()
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not (loose or scalar)
