"""The command; see the package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from benchmarks.datasets.train_scratch import train as train_scratch
from benchmarks.map_quality import study
from benchmarks.map_quality.features import Backbone, training_features
from benchmarks.map_quality.heads import Samples, linear, mlp
from benchmarks.map_quality.pets import compare_on_pets
from benchmarks.map_quality.study import QUICK, VIEWS, Size, Task
from sigcam.core.files import write_bytes
from sigcam.data import Dataset, labelled, open_dataset

PARTS = ("sources", "choices", "mlp", "imagenet", "pets")
LITE = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")
CLASSES = (3, 10, 30, 100)
SMALL = "benchmarks/datasets/paper/small_network.py:SmallNetwork"


def open_parts(caltech: Path, imagenet: Path) -> tuple[Dataset, Dataset, Dataset]:
    """Opens Caltech's images to train on and to test, and the ImageNet samples."""
    return (
        replace(labelled(open_dataset(caltech / "train")), name="caltech"),
        replace(labelled(open_dataset(caltech / "test")), name="caltech-test"),
        replace(labelled(open_dataset(imagenet)), name="imagenet-samples"),
    )


def subset(dataset: Dataset, count: int) -> Dataset:
    """Returns the images of `count` of the classes, always the same ones, numbered anew."""
    names = dataset.classes or ()
    kept = np.sort(np.random.default_rng(0).permutation(len(names))[:count])
    number = {int(label): i for i, label in enumerate(kept)}
    samples = [
        replace(sample, label=number[sample.label])
        for sample in dataset.samples
        if sample.label is not None and sample.label in number
    ]
    return replace(
        dataset,
        name=f"{dataset.name}-{count}",
        classes=tuple(names[i] for i in kept),
        samples=samples,
    )


def backbones(names: tuple[str, ...], out: Path, train: Dataset) -> Iterator[Backbone]:
    """Yields the networks; the small one is trained first where that wasn't done."""
    folder = out / "features"
    for name in names:
        if name != "small":
            yield Backbone(name, name, "DEFAULT", folder)
            continue
        weights = out / "small.safetensors"
        if not weights.exists():
            click.echo("training the small network from scratch", err=True)
            network = train_scratch(train, train.num_classes, 20, 0)
            write_bytes(weights, save(network.state_dict()))
        yield Backbone(name, SMALL, str(weights), folder, train.num_classes, 128, "stretch")


def caltech_task(
    backbone: Backbone, parts: tuple[Dataset, Dataset, Dataset], count: int, size: Size, out: Path
) -> Task:
    """Returns the task of `count` of Caltech's classes."""
    train, test, foreign = parts
    whole = training_features(backbone, train, VIEWS, grid=False)
    chosen, scored = subset(train, count), subset(test, count)
    rows = _rows(train, chosen)
    other = training_features(backbone, foreign, VIEWS, grid=False)
    samples = Samples(np.asarray(whole[rows]), chosen.labels, count)
    return Task(f"{backbone.name}/{count}", backbone, samples, scored, other, size, out / "results")


def _rows(whole: Dataset, part: Dataset) -> list[int]:
    places = {sample.path: index for index, sample in enumerate(whole.samples)}
    return [places[sample.path] for sample in part.samples]


def mlp_task(
    backbone: Backbone, parts: tuple[Dataset, Dataset, Dataset], size: Size, out: Path
) -> Task:
    """Returns the task of all classes behind a head with a hidden layer."""
    train, test, _ = parts
    grid = training_features(backbone, train, 1, grid=True)
    samples = Samples(grid, train.labels, train.num_classes)
    name = f"{backbone.name}/MLP"
    size = replace(size, further=0, seeds=size.seeds[:1])
    return Task(name, backbone, samples, test, grid[:0], size, out / "results", mlp)


def imagenet_task(
    backbone: Backbone, parts: tuple[Dataset, Dataset, Dataset], size: Size, out: Path
) -> Task:
    """Returns the task of the ImageNet head as it is.

    The branch with labels is trained on the samples that are scored; that without labels on
    Caltech's images.
    """
    train, _, samples = parts
    weight, bias = backbone.built().dual.softmax_head.linear_weights()
    head = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.zeros(len(weight)) if bias is None else bias)
    given = training_features(backbone, samples, VIEWS, grid=False)
    foreign = training_features(backbone, train, VIEWS, grid=False)
    return Task(
        f"{backbone.name}/ImageNet",
        backbone,
        Samples(given, samples.labels, len(weight)),
        samples,
        foreign,
        size,
        out / "results",
        linear,
        head.eval(),
    )


@click.command()
@click.option("--caltech", type=click.Path(path_type=Path), required=True)
@click.option("--pets", type=click.Path(path_type=Path), required=True)
@click.option("--imagenet", type=click.Path(path_type=Path), required=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/map-quality"))
@click.option("--part", "wanted", multiple=True, type=click.Choice(PARTS), help="All by default.")
@click.option("--backbone", "names", multiple=True, type=click.Choice([*LITE, "small"]))
@click.option("--classes", multiple=True, type=int, help="3, 10, 30 and 100 by default.")
@click.option(
    "--quick",
    is_flag=True,
    help="Few images, one seed, one backbone, the part sources of 10 and 100 classes: ten minutes.",
)
def main(
    caltech: Path,
    pets: Path,
    imagenet: Path,
    out: Path,
    wanted: tuple[str, ...],
    names: tuple[str, ...],
    classes: tuple[int, ...],
    quick: bool,
) -> None:
    """Does the runs that aren't done yet."""
    torch.set_num_threads(1)
    size = QUICK if quick else Size()
    out = out / "quick" if quick else out
    wanted = wanted or (("sources",) if quick else PARTS)
    classes = classes or ((10, 100) if quick else CLASSES)
    parts = open_parts(caltech, imagenet)
    chosen = names or ((LITE[0],) if quick else (*LITE, "small"))
    for backbone in backbones(chosen, out, parts[0]):
        first = backbone.name == LITE[0]
        if "sources" in wanted:
            for count in sorted(classes, reverse=True):
                study.compare_sources(caltech_task(backbone, parts, count, size, out))
        if "imagenet" in wanted and first:
            study.compare_sources(imagenet_task(backbone, parts, size, out), study.KINDS[:5])
        if "choices" in wanted and first:
            small = replace(size, further=0, seeds=size.seeds[:2])
            task = caltech_task(backbone, parts, 100, small, out)
            study.compare_choices(task)
        if "mlp" in wanted and first:
            study.compare_mlp(mlp_task(backbone, parts, size, out))
        if "pets" in wanted and backbone.name in LITE:
            compare_on_pets(replace(backbone, rule="stretch"), open_dataset(pets), size, out)


if __name__ == "__main__":
    main()
