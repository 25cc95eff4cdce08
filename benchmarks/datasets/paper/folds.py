"""Parts of a data set: one part is scored, the others are trained on."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.data import Dataset, Sample


def split_folds(samples: Sequence[Sample], folds: int, seed: int = 0) -> list[list[int]]:
    """Positions of the samples of each part; every class is spread evenly.

    Args:
        samples: with labels.
        folds: number of parts, at least 2.
        seed: of the shuffle.

    Raises:
        UsageError: fewer than 2 parts, or a class with fewer samples than parts.
    """
    by_class: dict[int | None, list[int]] = defaultdict(list)
    for index, sample in enumerate(samples):
        by_class[sample.label].append(index)
    smallest = min(map(len, by_class.values()))
    if folds < 2 or smallest < folds:
        raise UsageError(f"folds must be from 2 to {smallest} (the smallest class), got {folds}")
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in range(folds)]
    for label in sorted(by_class, key=str):
        for place, index in enumerate(rng.permutation(by_class[label]).tolist()):
            parts[place % folds].append(index)
    return [sorted(part) for part in parts]


def fold_datasets(dataset: Dataset, folds: int, seed: int = 0) -> list[tuple[Dataset, Dataset]]:
    """For each part, what is trained on (the others) and what is scored (the part).

    Raises:
        UsageError: as `split_folds`.
    """
    parts = split_folds(dataset.samples, folds, seed)
    every = set(range(len(dataset)))

    def kept(positions: set[int]) -> Dataset:
        return dataclasses.replace(dataset, samples=[dataset.samples[i] for i in sorted(positions)])

    return [(kept(every - set(part)), kept(set(part))) for part in parts]
