r"""Which choices in training the sigmoid branch matter for its maps: one changed at a time.

    python -m benchmarks.datasets.training_choices DATA --arch efficientnet_lite0 \
        --weights DEFAULT --folds 3

For each fold and each choice the branch is trained anew from the same start on the other folds'
images, and the true class's CAM (sigmoid branch) of each held-out image is scored as by
`sigcam evaluate`, with clamping (NWC) and without. Maps are made by the exported module in
PyTorch; no choice is exported. Differences are to the base (Adam, 3 epochs, 12 views, weight decay
5e-4), with 95% bootstrap intervals over all images, and for each fold alone. The softmax
branch's own maps stand beside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.datasets.paper.folds import fold_datasets
from benchmarks.datasets.paper.options import data_options, network_options
from benchmarks.datasets.paper.recipe import Recipe, Workshop
from sigcam.core.files import write_text
from sigcam.core.spec import Branch
from sigcam.data import Dataset, labelled, open_dataset
from sigcam.evaluate.model import Prediction
from sigcam.evaluate.reports.tables import markdown_table
from sigcam.evaluate.results.metrics import Result, results
from sigcam.evaluate.scoring import Scoring, score_image
from sigcam.export.modules import CamGraph, Normalise
from sigcam.export.options import ExportOptions
from sigcam.images.preprocess import read_input
from sigcam.train.augment import Augmentation
from sigcam.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]
METRICS = ("max_box_acc_v2", "gt_known_best", "gt_known", "pxap", "pointing", "energy")
Array = Any


@dataclass(frozen=True)
class Choice:
    """A way to train the branch.

    Attributes:
        label: what is changed.
        settings, augmentation: changed fields; epochs are of 12 views, so that the number of
            steps stays the same when `views` changes.
    """

    label: str
    settings: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)

    def made(self, seed: int) -> tuple[TrainSettings, Augmentation]:
        """With the defaults of `sigcam train` in every other field, but for the weight decay.

        That of the base is the paper's, 5e-4, and not the default, which was chosen by this
        comparison.
        """
        augmentation = Augmentation(seed=seed, **self.augmentation)
        settings = TrainSettings(seed=seed, **{"weight_decay": 5e-4, **self.settings})
        if settings.optimizer == "adam":
            epochs = settings.steps[1] * Augmentation().views / augmentation.views
            settings = dataclasses.replace(settings, epochs=max(1, round(epochs)))
        return settings, augmentation


def choices(num_classes: int) -> list[Choice]:
    """The base first."""
    most = num_classes - 1
    return [
        Choice("base"),
        *(Choice(f"{count} epochs", {"epochs": count}) for count in (1, 10, 30, 100)),
        *(
            Choice(f"weight decay {d:g}", {"weight_decay": d})
            for d in (0.0, 5e-3, 5e-2, 0.15, 0.5)
        ),
        *(
            Choice(f"positive weight {w:g}", {"positive_weight": w})
            for w in sorted({0.5, 1.0, most / 2, 2.0 * most} - {float(most)})
        ),
        *(
            Choice(f"{count} views, as many steps", {}, {"views": count})
            for count in (1, 3, 36)
        ),
        *(
            Choice(f"crops of {low:g} to 1", {}, {"crop_scale": (low, 1.0)})
            for low in (0.08, 0.7)
        ),
        Choice("no flips", {}, {"flip": False}),
        *(
            Choice(f"L-BFGS, weight decay {d:g}", {"optimizer": "lbfgs", "weight_decay": d})
            for d in (0.0, 5e-4, 5e-3, 5e-2, 0.15, 0.5)
        ),
    ]  # fmt: skip


class Scorer:
    """Scores maps of a fold's held-out images; the backbone runs over them once."""

    def __init__(self, workshop: Workshop, scored: Dataset) -> None:
        self._workshop, self._samples = workshop, scored.samples
        self._labels = torch.tensor([sample.label for sample in scored.samples])
        preprocessing = dataclasses.replace(workshop.preprocessing, layout="uint8_nhwc")
        normalise = Normalise(preprocessing)
        read = [read_input(sample.path, preprocessing) for sample in scored.samples]
        self._placements = [one.placement for one in read]
        front = self._cam_graph("softmax", None).cut.front
        with torch.no_grad():
            self._entries = [front(normalise(torch.from_numpy(one.tensor[None]))) for one in read]

    def _cam_graph(self, branch: Branch, nwc: bool | None, signed: bool = False) -> CamGraph:
        options = ExportOptions("cam", branch, nwc, signed, has_sigmoid=branch == "sigmoid")
        return CamGraph(self._workshop.dual, options)

    def records(self, branch: Branch, nwc: bool, signed: bool = False) -> Array:
        """Records [P] of one kind of map, by the branch as it is now."""
        graph = self._cam_graph(branch, nwc, signed)
        found = []
        for entry, label, placement, sample in zip(
            self._entries, self._labels, self._placements, self._samples, strict=True
        ):
            with torch.no_grad():
                values = graph.weight_graph.run(entry)
                cam = graph.explain(values, label.reshape(1, 1))["cams"][0, 0].numpy()
                probabilities = graph.softmax_logits(values)[0].softmax(0)
            best = int(probabilities.argmax())
            prediction = Prediction(best, float(probabilities[best]), int(label), cam, cam)
            found.append(score_image(prediction, sample, placement, Scoring()))
        return np.stack(found)


def measure(
    parts: Sequence[tuple[Dataset, Dataset]],
    recipe: Recipe,
    tried: Sequence[Choice],
    num_classes: int,
    seed: int,
) -> dict[str, list[Array]]:
    """Label of each kind of map to its records, one array for each fold."""
    columns: dict[str, list[Array]] = {}
    for number, (training, scored) in enumerate(parts):
        workshop = Workshop(recipe, training, num_classes, number)
        scorer = Scorer(workshop, scored)
        for label, records in _of_fold(workshop, scorer, tried, seed):
            columns.setdefault(label, []).append(records)
            click.echo(f"fold {number}: {label}", err=True)
    return columns


def _of_fold(
    workshop: Workshop, scorer: Scorer, tried: Sequence[Choice], seed: int
) -> Iterator[tuple[str, Array]]:
    for choice in tried:
        workshop.train(*choice.made(seed))
        for nwc in (True, False):
            yield _label(choice.label, nwc), scorer.records("sigmoid", nwc)
    branches: tuple[Branch, ...] = ("softmax", "centred")
    for branch in branches:
        for nwc in (True, False):
            yield _label(f"{branch} branch", nwc), scorer.records(branch, nwc)
    signed = scorer.records("softmax", nwc=False, signed=True)
    yield "softmax branch, no clamping, signed", signed


def _label(what: str, nwc: bool) -> str:
    return what if nwc else f"{what}, no clamping"


def table(columns: dict[str, list[Array]]) -> str:
    """Markdown: values of the first row, differences of the others."""
    together = results([np.concatenate(one) for one in columns.values()], 0.2)
    shown = [result for result in together if result.metric.key in METRICS]
    count = len(next(iter(columns.values())))
    per_fold = [_values([one[fold] for one in columns.values()]) for fold in range(count)]
    rows = []
    for index, label in enumerate(columns):
        cells = [_cell(result, index, [fold[result.metric.key] for fold in per_fold])
                 for result in shown]  # fmt: skip
        rows.append([label, *cells])
    return markdown_table(["", *(result.metric.label for result in shown)], rows)


def _values(records: list[Array]) -> dict[str, Result]:
    """Key of each metric to its values; their intervals aren't used."""
    return {result.metric.key: result for result in results(records, 0.2, resamples=2)}


def _cell(result: Result, index: int, folds: Sequence[Result]) -> str:
    one = result.artifacts[index]
    if index == 0:
        return f"{one.metric.value:.1f} ({one.metric.low:.1f} to {one.metric.high:.1f})"
    each = ", ".join(f"{fold.artifacts[index].difference.value:+.1f}" for fold in folds)
    difference = one.difference
    return f"{difference.value:+.1f} ({difference.low:+.1f} to {difference.high:+.1f}; {each})"


@click.command()
@data_options
@click.option("--folds", type=int, default=3, show_default=True)
@network_options
@click.option("--only", multiple=True, help="Choices whose names hold this; repeats.")
@click.option("--cache", type=click.Path(path_type=Path), default=ROOT / "out" / "features")
@click.option("--out", type=click.Path(path_type=Path), help="File for the table (Markdown).")
def main(
    data: Path,
    form: str,
    split: str | None,
    folds: int,
    seed: int,
    only: tuple[str, ...],
    cache: Path,
    out: Path | None,
    **network: Any,
) -> None:
    """Trains, scores and compares."""
    dataset = labelled(open_dataset(data, form, split=split))
    recipe = Recipe(**network, augmentation=Augmentation(seed=seed), cache_dir=cache)
    parts = fold_datasets(dataset, folds, seed)
    num_classes = dataset.num_classes
    base, *others = choices(num_classes)
    tried = [base, *(one for one in others if not only or any(t in one.label for t in only))]
    columns = measure(parts, recipe, tried, num_classes, seed)
    text = table(columns)
    click.echo(text)
    if out is not None:
        write_text(out, text)


if __name__ == "__main__":
    main()
