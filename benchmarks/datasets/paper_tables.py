r"""The paper's Tables 1, 2, 4 and 5, and the shift, on a data set: all from training on.

    python -m benchmarks.datasets.paper_tables DATA --arch wsol-resnet50 --weights classifier.pth
    python -m benchmarks.datasets.paper_tables DATA --arch efficientnet_lite0 \
        --weights DEFAULT --folds 3
    python -m benchmarks.datasets.paper_tables dataset/CUB --metadata metadata/CUB --split test \
        --train-data dataset/CUB --train-metadata metadata/CUB --train-split train \
        --dataset cub --arch wsol-resnet50 --weights classifier.pth

With --train-data the classifier's branch is trained there and DATA is scored; with --folds, DATA
is split and every image is scored by networks that were trained on the others. Where DATA has
other classes than the classifier, its last layer is trained anew (which the paper doesn't do).
Baselines are the softmax branch without clamping. Maps are of the true class, images are
resized whatever their aspect, as in the protocol of Choe et al. 2020. Values have 95% bootstrap
intervals over the images.

--dataset says that DATA is one of the paper's, and puts the paper's figures below ours, with what
differs. CUB-200-2011, ImageNet-1K and OpenImages-30K are read in the layout of Choe et al.: images
in one folder, text files in another (--metadata), masks perhaps in a third (--mask-root). Stanford
Cars needs no boxes here, as the paper has its faithfulness only: class folders or a CSV file of
images and classes will do, and the annotations of its development kit (.mat) aren't read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.datasets.paper.figures import DATASETS, PaperFigures
from benchmarks.datasets.paper.folds import fold_datasets
from benchmarks.datasets.paper.options import data_options, network_options
from benchmarks.datasets.paper.recipe import Recipe, Variant, Workshop
from benchmarks.datasets.paper.tables import TABLES, Values
from sigcam.core.files import write_text
from sigcam.data import Dataset, labelled, open_dataset
from sigcam.evaluate import EvaluateOptions, evaluate_artifacts
from sigcam.evaluate.results.metrics import results
from sigcam.runtime.backends.base import BackendOptions
from sigcam.train.augment import Augmentation
from sigcam.train.settings import TrainSettings

ROOT = Path(__file__).resolve().parents[2]


@click.command()
@data_options
@click.option("--metadata", type=click.Path(path_type=Path), help="Of DATA: its text files.")
@click.option("--mask-root", type=click.Path(path_type=Path), help="Of DATA.")
@click.option("--dataset", type=click.Choice(DATASETS), help="DATA is this one of the paper's.")
@click.option("--train-data", type=click.Path(path_type=Path), help="Data to train on.")
@click.option("--train-split", help="Of --train-data.")
@click.option("--train-metadata", type=click.Path(path_type=Path), help="Of --train-data.")
@click.option("--folds", type=int, help="Instead: parts of DATA.")
@network_options
@click.option("--table", "tables", multiple=True, type=click.Choice(list(TABLES)), help="Repeats.")
@click.option("--optimizer", type=click.Choice(["adam", "lbfgs"]), default="adam")
@click.option("--epochs", type=int, help="Of the branch.")
@click.option("--weight-decay", type=float, help="Of the branch.")
@click.option("--views", type=int, default=12, show_default=True)
@click.option("--crop-scale", type=(float, float), default=(0.35, 1.0), show_default=True)
@click.option("--flip/--no-flip", default=True)
@click.option("--work", type=click.Path(path_type=Path), default=ROOT / "out" / "paper-tables")
@click.option("--out", type=click.Path(path_type=Path), help="File for the tables (Markdown).")
def main(
    data: Path,
    form: str,
    split: str | None,
    metadata: Path | None,
    mask_root: Path | None,
    dataset: str | None,
    train_data: Path | None,
    train_split: str | None,
    train_metadata: Path | None,
    folds: int | None,
    tables: tuple[str, ...],
    work: Path,
    out: Path | None,
    **given: Any,
) -> None:
    """Prints the paper's tables on DATA."""
    if (train_data is None) == (folds is None):
        raise click.UsageError("give --train-data, or --folds")
    scored = labelled(open_dataset(data, form, split=split, metadata=metadata, mask_root=mask_root))
    num_classes = scored.num_classes
    parts = [(scored, scored)]
    if train_data is not None:
        train = open_dataset(train_data, form, split=train_split, metadata=train_metadata)
        parts = [(labelled(train), scored)]
    elif folds is not None:
        parts = fold_datasets(scored, folds, given["seed"])
    chosen = tables or tuple(TABLES)
    variants = {
        variant.name: variant
        for number in chosen
        for variant in TABLES[number].variants(num_classes).values()
    }
    recipe = _recipe(given)
    values = _values(parts, list(variants.values()), recipe, num_classes, work)
    paper = None if dataset is None else PaperFigures(dataset, given["arch"])
    text = _text(chosen, values, num_classes, parts, paper, given, folds)
    click.echo(text)
    if out is not None:
        write_text(out, text)


def _recipe(given: dict[str, Any]) -> Recipe:
    settings = {name: given[name] for name in ("optimizer", "seed", "epochs", "weight_decay")}
    views = {name: given[name] for name in ("views", "crop_scale", "flip", "seed")}
    network = {name: given[name] for name in ("arch", "weights", "num_classes", "size")}
    return Recipe(**network, settings=TrainSettings(**settings), augmentation=Augmentation(**views))


def _values(
    parts: list[tuple[Dataset, Dataset]],
    variants: list[Variant],
    recipe: Recipe,
    num_classes: int,
    work: Path,
) -> Values:
    """Every metric of every variant, over the scored images of all parts together."""
    columns: list[list[np.ndarray[Any, Any]]] = [[] for _ in variants]
    # Variants that share a trained branch follow each other.
    order = sorted(variants, key=lambda one: (one.branch, one.positive_weight or 0))
    for number, (train, scored) in enumerate(parts):
        click.echo(f"part {number + 1} of {len(parts)}: {len(train)} to train on", err=True)
        workshop = Workshop(recipe, train, num_classes, number)
        folder = work / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        for variant in order:
            workshop.export(variant, folder / variant.name)
        records = work / f"records-{number}"
        for old in records.glob("*"):
            old.unlink()  # of an earlier run: the artifacts are new
        found = evaluate_artifacts(
            [folder / one.name for one in variants],
            dataclasses.replace(scored, ids_given=True),
            records,
            EvaluateOptions(backend="ort", backend_options=BackendOptions(spinning=False)),
        )
        for column, one in zip(columns, found.records, strict=True):
            column.append(np.array(one))
    together = [np.concatenate(column) for column in columns]
    values: dict[str, dict[str, Any]] = {one.name: {} for one in variants}
    for result in results(together, 0.2):
        for variant, comparison in zip(variants, result.artifacts, strict=True):
            values[variant.name][result.metric.key] = comparison
    return values


def _text(
    chosen: tuple[str, ...],
    values: Values,
    num_classes: int,
    parts: list[tuple[Dataset, Dataset]],
    paper: PaperFigures | None,
    given: dict[str, Any],
    folds: int | None,
) -> str:
    images = sum(len(scored) for _, scored in parts)
    decay = "as by default" if given["weight_decay"] is None else f"{given['weight_decay']:g}"
    how = f"{folds} folds" if folds else "trained on another set"
    training = (
        f"{given['optimizer']}, epochs {given['epochs'] or 'as by default'}, weight decay {decay}, "
        f"{given['views']} views, crops of {given['crop_scale'][0]:g} to {given['crop_scale'][1]:g}"
    )
    lines = [
        f"{images} images of {num_classes} classes, {how}. {given['arch']}, weights "
        f"{Path(str(given['weights'])).name}. {training}. In percent, with 95% intervals.\n"
    ]
    if paper is not None:
        trained = " or ".join(dict.fromkeys(str(len(train)) for train, _ in parts))
        lines.append("\n" + paper.differences(training, trained, images, num_classes))
    for number in chosen:
        table = TABLES[number]
        rows = table.markdown(values, num_classes, paper)
        lines.append(f"\nTable {number}. {table.title}\n\n{rows}")
    return "".join(lines)


if __name__ == "__main__":
    main()
