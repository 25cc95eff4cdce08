"""Lists the study's runs and does those that aren't done yet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path

import click
import numpy as np
from torch import nn

from benchmarks.map_quality.features import (
    Backbone,
    image_features,
    mosaic_features,
    read_all,
)
from benchmarks.map_quality.heads import (
    PROBE,
    Fit,
    Samples,
    Trained,
    linear,
    train_sigmoid,
    train_softmax,
)
from benchmarks.map_quality.measure import (
    Subject,
    faithfulness,
    grid_pointing,
    logits_of,
    sensitivity,
)
from benchmarks.map_quality.sources import Source
from sigcam.core.files import atomic_path
from sigcam.core.types import Array
from sigcam.data import Dataset
from sigcam.evaluate.mosaics import Mosaic, MosaicOptions, make_mosaics

VIEWS = 4
EPOCHS = 9  # as many steps as three epochs of twelve views
SEEDS = (0, 1, 2)
MANY = 30
"""Classes from which on insertion, deletion and ROAD are measured too."""


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        images: most images whose Average Drop and % Increase are measured.
        further: for how many of them insertion, deletion and ROAD are measured too.
        mosaics: most mosaics of 2 x 2 and of 3 x 3.
        seeds: what sigmoid branches are trained with.
    """

    images: int = 240
    further: int = 32
    mosaics: tuple[int, int] = (150, 60)
    seeds: tuple[int, ...] = SEEDS


QUICK = Size(60, 0, (30, 10), (0,))


@dataclass(frozen=True, eq=False)
class Task:
    """A classifier of C classes on a backbone's features, and the images that maps are made for.

    Attributes:
        name: in files and tables.
        backbone: the network.
        train: what heads are trained on.
        test: images with classes, none of which was trained on.
        foreign: images of other things, for a branch without labels.
        size: how much is measured.
        folder: where results are written.
        make: the form of the heads.
        softmax: a head that is taken as it is; None trains one.
    """

    name: str
    backbone: Backbone
    train: Samples
    test: Dataset
    foreign: Array
    size: Size
    folder: Path
    make: Callable[[int, int], nn.Module] = linear
    softmax: nn.Module | None = None

    @property
    def is_pooled(self) -> bool:
        """Says whether heads are one linear layer on pooled features."""
        return self.make is linear

    @cached_property
    def head(self) -> nn.Module:
        """Returns the softmax head, the same for all seeds, so that images are the same too."""
        if self.softmax is not None:
            return self.softmax
        return train_softmax(self.train, self.make, replace(PROBE, epochs=EPOCHS)).module

    @cached_property
    def features(self) -> Array:
        """Returns the features of all test images, float16 [P, N, h, w]."""
        return image_features(self.backbone, f"test-{self.test.name}", self.test.samples)

    @cached_property
    def logits(self) -> Array:
        """Returns the softmax head's logits of all test images, float64 [P, C]."""
        values = np.asarray(self.features, np.float32)
        return logits_of(self.head, values.mean((2, 3)) if self.is_pooled else values)

    @cached_property
    def right(self) -> Array:
        """Says which test images are classified right, bool [P]."""
        found: Array = self.logits.argmax(1) == self.test.labels
        return found

    @cached_property
    def chosen(self) -> Array:
        """Returns the indices of the images whose faithfulness is measured."""
        order = np.random.default_rng(0).permutation(len(self.test))
        return order[: self.size.images]

    @cached_property
    def images(self) -> list[Array]:
        """Returns those images as the network gets them."""
        samples = [self.test.samples[int(i)] for i in self.chosen]
        return list(read_all(samples, self.backbone.preprocessing))

    @cached_property
    def subject(self) -> Subject:
        """Returns the classifier that changed images are shown to."""
        return Subject(self.backbone.runner(), self.head, self.is_pooled)

    def mosaics(self, side: int) -> list[Mosaic]:
        """Makes mosaics of the images that are classified right; none with too few classes."""
        samples = [s for s, right in zip(self.test.samples, self.right, strict=True) if right]
        if len({sample.label for sample in samples}) < side * side:
            return []
        options = MosaicOptions(side=side, count=self.size.mosaics[side - 2])
        return make_mosaics(samples, options)

    @cached_property
    def games(self) -> list[tuple[int, Array, Array]]:
        """Returns side, features and labels of the mosaics of 2 x 2 and of 3 x 3."""
        found = []
        for side in (2, 3):
            made = self.mosaics(side)
            if made:
                name = f"mosaic{side}-{self.name.replace('/', '-')}-{len(made)}"
                labels = np.array([[tile.label for tile in one.tiles] for one in made])
                found.append((side, mosaic_features(self.backbone, name, made), labels))
        return found

    def run(
        self, label: str, make: Callable[[], Source], *, further: bool = False, part: str = ""
    ) -> None:
        """Measures a source, unless that was done, and keeps what came out."""
        path = self.folder / f"{self.name}{part}" / f"{label}.npz"
        if path.exists():
            return
        start = time.perf_counter()
        source = make()
        found: dict[str, Array] = {}
        for side, features, labels in self.games:
            found[f"grid{side}"] = grid_pointing(source, features, labels, side)
        features, logits = self.features[self.chosen], self.logits[self.chosen]
        found["sensitivity"] = sensitivity(source, features, logits)
        # Curves take a minute; with few classes there are few images of them.
        count = self.size.further if further and self.train.num_classes >= MANY else 0
        found |= faithfulness(self.subject, source, self.images, features, logits, further=count)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **found)  # type: ignore[arg-type]
        means = ", ".join(
            f"{k} {100 * (v[:, 0] if v.ndim > 1 else v).mean():.1f}"
            for k, v in found.items()
            if len(v)
        )
        seconds = time.perf_counter() - start
        click.echo(f"{self.name} {label}: {means} ({seconds:.0f} s)", err=True)


@dataclass(frozen=True)
class Kind:
    """A kind of sigmoid branch.

    Attributes:
        label: in files and tables.
        fit: how it is trained, but for the seed.
        targets: "given" labels, or the classifier's own predictions on images of "other" things.
        forms: of the maps that are made of it; see `FORMS`.
        curves: the forms of which insertion, deletion and ROAD are measured too.
    """

    label: str
    fit: Fit = field(default_factory=lambda: Fit(EPOCHS))
    targets: str = "given"
    forms: tuple[str, ...] = ("", "signed")
    curves: tuple[str, ...] = ("signed",)


FORMS: dict[str, dict[str, bool]] = {"": {}, "NWC": {"nwc": True}, "signed": {"signed": True}}
"""How a CAM is made of its weights: as they are, clamped, or with the sum's sign."""

KINDS = (
    Kind("sigmoid", forms=("", "NWC", "signed"), curves=("", "NWC", "signed")),
    Kind("sigmoid, a tenth of the decay", Fit(EPOCHS, decay=0.1)),
    Kind("sigmoid from softmax", Fit(EPOCHS, from_softmax=True), curves=()),
    Kind(
        "sigmoid without labels",
        Fit(EPOCHS, from_softmax=True),
        targets="other",
        forms=("", "NWC", "signed"),
        curves=("", "signed"),
    ),
    Kind("sigmoid without labels, fresh", targets="other", curves=()),
    Kind("sigmoid, positive weight 1", Fit(EPOCHS, positive_weight=1.0), curves=()),
    Kind("sigmoid, non-negative", Fit(EPOCHS, non_negative=True), forms=("",), curves=("",)),
)


def train_kind(task: Task, kind: Kind, seed: int) -> Trained:
    """Trains one branch."""
    fit = replace(kind.fit, seed=seed)
    if kind.targets == "given":
        return train_sigmoid(task.train, task.make, fit, softmax=task.head)
    labels = np.zeros(len(task.foreign), np.int64)
    samples = Samples(task.foreign, labels, task.train.num_classes)
    return train_sigmoid(samples, task.make, fit, softmax=task.head, predicted=True)


def compare_sources(task: Task, kinds: tuple[Kind, ...] = KINDS, method: str = "cam") -> None:
    """Measures the classifier's own weights and every kind of branch, in each of its forms."""
    own = "" if method == "cam" else f"{method}, "

    def run(
        name: str, form: str, seed: int | None, made: Callable[[], Source], curves: bool
    ) -> None:
        label = f"{own}{name}" + (f", {form}" if form else "")
        task.run(label if seed is None else f"{label} ({seed})", made, further=curves)

    def source(head: nn.Module, form: str, centred: bool = False) -> Source:
        return Source(head, task.is_pooled, centred, method=method, **FORMS[form])

    for centred, name in ((False, "softmax"), (True, "centred")):
        for form in FORMS if not centred else ("", "NWC"):
            made = partial(source, task.head, form, centred)
            run(name, form, None, made, curves=not (centred and form))
    for kind in kinds:
        for seed in task.size.seeds:
            branch = cache(partial(train_kind, task, kind, seed))
            for form in kind.forms:
                first = seed == task.size.seeds[0]
                run(
                    kind.label, form, seed,
                    lambda b=branch, f=form: source(b().module, f),  # type: ignore[misc]
                    curves=first and form in kind.curves,
                )  # fmt: skip


def choices(num_classes: int) -> Iterator[Kind]:
    """Yields one training choice changed at a time."""
    most = num_classes - 1
    for decay in (1.5e-6, 1.5e-5, 1.5e-4, 1.5e-3, 1.5e-2):
        yield Kind(f"weight decay {decay:g}", Fit(EPOCHS, weight_decay=decay))
    yield Kind("no weight decay", Fit(EPOCHS, weight_decay=0.0))
    for weight in (1.0, most / 2):
        yield Kind(f"positive weight {weight:g}", Fit(EPOCHS, positive_weight=weight))
    yield Kind("1 view, as many steps", Fit(EPOCHS * VIEWS, views=1))
    yield Kind("3 times the epochs", Fit(3 * EPOCHS))
    for bias in (0.0, -float(np.log(most))):
        yield Kind(f"first bias {bias:.3g}", Fit(EPOCHS, bias=bias))
    for noise in (0.1, 0.4):
        yield Kind(f"{noise:.0%} of the labels wrong", Fit(EPOCHS, label_noise=noise))


def compare_choices(task: Task) -> None:
    """Measures branches with one training choice changed at a time."""
    for kind in choices(task.train.num_classes):
        for seed in task.size.seeds:
            task.run(
                f"{kind.label} ({seed})",
                partial(_signed, task, kind, seed),
                part="-choices",
            )


def _signed(task: Task, kind: Kind, seed: int) -> Source:
    return Source(train_kind(task, kind, seed).module, signed=True)


def compare_mlp(task: Task) -> None:
    """Measures gradient methods behind a head with a hidden layer."""
    kinds = tuple(kind for kind in KINDS if kind.label in ("sigmoid", "sigmoid, positive weight 1"))
    for method in ("gradcam", "gradcam++", "layercam"):
        compare_sources(task, kinds, method)
