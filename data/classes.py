"""Matches a data set's classes with a model's."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

from sigcam.core.errors import DataError
from sigcam.data.dataset import Dataset, Problem, Sample, data_error, problem

_ADVICE = (
    "name the classes as the model does, give its class ids in a CSV file, or take a model of "
    "these classes (sigcam train --new-classes makes one)"
)

_NOTHING = {"no finding", "none", "nothing"}
"""Names that say that an image has none of the classes."""


def match_classes(
    dataset: Dataset, num_classes: int, names: Sequence[str] = (), skip_bad: bool = False
) -> Dataset:
    """Gives every sample the class id that the model uses.

    Ids that stand in the data are kept. Ids made from class names are mapped through the model's
    names, ignoring case and `_` for a space; a model without names, or with none of these
    (ImageNet's folders are called n01440764, ...), must have as many classes, and their sorted
    order (COCO: order of ids) is taken for the model's. Of a binary model with the names "not x"
    and "x", any other of two classes is "not x". In a multi-label data set "No Finding" or
    "none" stands for no class, where the model has none of that name.

    >>> from pathlib import Path
    >>> from sigcam.data import Dataset, Place, Sample
    >>> samples = [
    ...     Sample(f"{name}/1.png", Path(name, "1.png"), Place(Path(name)), label)
    ...     for label, name in enumerate(("grey_wolf", "hen"))
    ... ]
    >>> names = ("grey_wolf", "hen")
    >>> data = Dataset("farm", Path("farm"), "folders", names, samples, ids_given=False)
    >>> match_classes(data, 3, ("cock", "Hen", "grey wolf")).labels
    array([2, 1])

    Args:
        dataset: as `open_dataset` returns it.
        num_classes: C of the model.
        names: the model's C names; empty if unknown.
        skip_bad: whether samples of classes that the model doesn't have are left out instead of
            raising.

    Returns:
        The data set; `classes` are the model's names, or the data set's where these are as many.
        One without any labels is returned as it is.

    Raises:
        DataError: another number of classes than the model's; ids of C or more; names that the
            model doesn't have, or has twice.
    """
    if all(sample.label is None for sample in dataset.samples):
        return dataset
    ids = None if dataset.ids_given else _ids_by_name(dataset, names)
    if ids is None:
        _check_count(dataset, num_classes, names)
        ids = list(range(num_classes))
    own = dataset.classes if dataset.classes and len(dataset.classes) == num_classes else None
    samples, problems = [], list(dataset.problems)
    for sample in _without_nothing(dataset, ids):
        before = len(problems)
        for label in sample.labels:
            if not 0 <= label < len(ids):
                text = f"{sample.name} has class {label}, the model's are 0 to {num_classes - 1}"
                problems.append(problem(sample.place, text))
            elif ids[label] < 0:
                problems.append(problem(sample.place, _unknown(dataset, label, names)))
        if len(problems) == before:
            samples.append(_mapped(sample, ids))
    found = problems[len(dataset.problems) :]
    _refuse(dataset, found, skip_bad, bool(samples))
    return replace(
        dataset,
        classes=tuple(names) or own,
        samples=samples,
        problems=tuple(problems),
        ids_given=True,
    )


def _without_nothing(dataset: Dataset, ids: Sequence[int]) -> Sequence[Sample]:
    """Returns the samples without a class that says that there is none, if the model lacks it."""
    classes = dataset.classes or ()
    known = range(min(len(classes), len(ids)))
    nothing = {i for i in known if ids[i] < 0 and _plain(classes[i]) in _NOTHING}
    if not dataset.multi_label or not nothing:
        return dataset.samples
    return [
        sample.of_classes([label for label in sample.labels if label not in nothing])
        if nothing.intersection(sample.labels)
        else sample
        for sample in dataset.samples
    ]


def _mapped(sample: Sample, ids: Sequence[int]) -> Sample:
    """Returns a sample with the model's ids of its classes."""
    if sample.label is None or all(ids[label] == label for label in sample.labels):
        return sample
    further = tuple(_mapped(one, ids) for one in sample.further)
    return replace(sample, label=ids[sample.label], further=further)


def _refuse(dataset: Dataset, found: list[Problem], skip_bad: bool, left: bool) -> None:
    if found and not (skip_bad and left):
        raise data_error(
            found, f"{dataset.name} has classes that the model doesn't have; {_ADVICE}"
        )


def _check_count(dataset: Dataset, num_classes: int, names: Sequence[str]) -> None:
    count = len(dataset.classes or ())
    if count and count != num_classes:
        why = "" if dataset.ids_given else " and none of these names" if names else " and no names"
        shown = ", ".join((dataset.classes or ())[:3]) + (", ..." if count > 3 else "")
        raise DataError(
            f"{dataset.name} ({dataset.path}) has {count} classes ({shown}), the model has "
            f"{num_classes}{why}; {_ADVICE}"
        )


def _ids_by_name(dataset: Dataset, names: Sequence[str]) -> list[int] | None:
    """Returns the model's id of each class, -1 for none; None if it has none of the names."""
    table: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        table.setdefault(_plain(name), []).append(index)
    found = [table.get(_plain(name), []) for name in dataset.classes or ()]
    if len(names) == 2 and names[0] == f"not {names[1]}" and sorted(map(len, found)) == [0, 1]:
        # A network of one logit whose one class has a name: all else is the other class.
        [own] = [ids[0] for ids in found if ids]
        found = [ids or [1 - own] for ids in found]
    for name, ids in zip(dataset.classes or (), found, strict=True):
        if len(ids) > 1:
            raise DataError(
                f"the model has {len(ids)} classes called {name!r} (ids {ids}), so the class "
                f"{name!r} of {dataset.name} isn't clear; give class ids in a CSV file"
            )
    return [ids[0] if ids else -1 for ids in found] if any(found) else None


def _unknown(dataset: Dataset, label: int, names: Sequence[str]) -> str:
    name = (dataset.classes or ())[label]
    near = difflib.get_close_matches(name, names, n=3)
    return f"the model has no class {name!r}" + (f"; near: {', '.join(near)}" if near else "")


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
