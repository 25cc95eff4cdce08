"""Measures maps of three classes against boxes and masks, on folds of a data set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
from torch import nn

from benchmarks.datasets.paper.folds import fold_datasets
from benchmarks.map_quality.features import Backbone, image_features, training_features
from benchmarks.map_quality.heads import PROBE, Fit, Samples, train_sigmoid, train_softmax
from benchmarks.map_quality.measure import localisation
from benchmarks.map_quality.sources import Source
from benchmarks.map_quality.study import EPOCHS, FORMS, KINDS, Size
from sigcam.core.files import atomic_path
from sigcam.core.types import Array
from sigcam.data import Dataset, labelled
from sigcam.images.preprocess import place

FOLDS = 3
VIEWS = 12


def compare_on_pets(backbone: Backbone, dataset: Dataset, size: Size, out: Path) -> None:
    """Measures every source, each image by heads that were trained on the other folds.

    What came out is kept in one file for each source and seed, folds one after the other.
    """
    backbone = replace(backbone, name=f"{backbone.name}-pets")
    dataset = replace(labelled(dataset), name="pets")
    folds = [
        _Fold(backbone, dataset, training, scored)
        for training, scored in fold_datasets(dataset, FOLDS, 0)
    ]
    folder = out / "results" / backbone.name

    def run(label: str, make: Callable[[_Fold], Source]) -> None:
        path = folder / f"{label}.npz"
        if path.exists():
            return
        parts = [fold.localisation(make(fold)) for fold in folds]
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **joined)  # type: ignore[arg-type]
        best = joined["hits"].mean(0).max(1).mean()
        click.echo(f"{backbone.name} {label}: MaxBoxAccV2 {100 * best:.1f}", err=True)

    for form, given in FORMS.items():
        end = f", {form}" if form else ""
        run(f"softmax{end}", lambda f, g=given: Source(f.softmax, **g))  # type: ignore[misc]
        run(f"centred{end}", lambda f, g=given: Source(f.softmax, centred=True, **g))  # type: ignore[misc]
        for kind in (one for one in KINDS if one.targets == "given"):
            for seed in size.seeds if form in kind.forms else ():
                fit = replace(kind.fit, epochs=3, seed=seed)
                run(
                    f"{kind.label}{end} ({seed})",
                    lambda f, g=given, t=fit: Source(f.branch(t), **g),  # type: ignore[misc]
                )


class _Fold:
    """The heads of one fold, and the images that it scores."""

    def __init__(
        self, backbone: Backbone, dataset: Dataset, training: Dataset, scored: Dataset
    ) -> None:
        inputs = training_features(backbone, dataset, VIEWS, grid=False)
        features = image_features(backbone, "all", dataset.samples)
        place_of = {sample.path: index for index, sample in enumerate(dataset.samples)}
        rows = [place_of[sample.path] for sample in training.samples]
        self._samples = Samples(np.asarray(inputs[rows]), training.labels, dataset.num_classes)
        self._scored = scored.samples
        self._features: Array = features[np.array([place_of[s.path] for s in scored.samples])]
        preprocessing = backbone.preprocessing
        self._placements = [
            place(preprocessing, sample.size[1], sample.size[0])
            for sample in scored.samples
            if sample.size is not None
        ]
        probe = replace(PROBE, epochs=EPOCHS)
        self.softmax: nn.Module = train_softmax(self._samples, fit=probe).module
        self._branches: dict[Fit, nn.Module] = {}

    def branch(self, fit: Fit) -> nn.Module:
        """Returns a trained sigmoid branch; the same one again for the same settings."""
        if fit not in self._branches:
            head = train_sigmoid(self._samples, fit=fit, softmax=self.softmax)
            self._branches[fit] = head.module
        return self._branches[fit]

    def localisation(self, source: Source) -> dict[str, Array]:
        """Measures a source on the fold's images."""
        return localisation(source, self._features, self._scored, self._placements)
