"""Trains `paper/small_network.py` from scratch on each fold's images of a data set.

    python -m benchmarks.datasets.train_scratch DATA --folds 3 --out out/scratch

Writes out/scratch/0.safetensors, ...: the classifier of fold 0 has seen the other folds only. The
folds are those of `paper_tables.py` and `training_choices.py` beside this file, which take
`--weights "out/scratch/{fold}.safetensors" --size 128 --num-classes C` and
`--arch benchmarks/datasets/paper/small_network.py:SmallNetwork`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from safetensors.torch import save

from benchmarks.datasets.paper.folds import fold_datasets
from benchmarks.datasets.paper.options import data_options
from benchmarks.datasets.paper.small_network import SmallNetwork
from sigcam.core.files import write_bytes
from sigcam.core.spec import Preprocessing
from sigcam.data import Dataset, labelled, open_dataset
from sigcam.export.modules import Normalise
from sigcam.images.decode import read_image
from sigcam.train.augment import Augmentation

Images = npt.NDArray[np.uint8]
GEOMETRY = Preprocessing(128, 128, "stretch")
BATCH = 32


def batch_of(
    images: list[Images], chosen: npt.NDArray[np.int64], augmentation: Augmentation, view: int
) -> torch.Tensor:
    """Normalised float32 [n, 3, 128, 128] of one view of each chosen image."""
    made = np.stack([augmentation.view(images[i], GEOMETRY, int(i), view) for i in chosen])
    normalised: torch.Tensor = Normalise(GEOMETRY)(torch.from_numpy(made))
    return normalised


def train(dataset: Dataset, num_classes: int, epochs: int, seed: int) -> SmallNetwork:
    """A network trained by cross-entropy: AdamW, one-cycle schedule, random crops and flips."""
    torch.manual_seed(seed)
    network = SmallNetwork(num_classes)
    images = [read_image(sample.path) for sample in dataset.samples]
    labels = torch.tensor([int(sample.label or 0) for sample in dataset.samples])
    augmentation = Augmentation(crop_scale=(0.25, 1.0), seed=seed)
    steps = epochs * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        total = 0.0
        for chosen in np.array_split(rng.permutation(len(images)), -(-len(images) // BATCH)):
            # View 0 is the whole image; each epoch draws another one.
            logits = network(batch_of(images, chosen, augmentation, epoch + 1))
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        if (epoch + 1) % 10 == 0:
            click.echo(f"  epoch {epoch + 1}: loss {total / len(images):.3f}", err=True)
    return network.eval()


def accuracy(network: SmallNetwork, dataset: Dataset) -> float:
    """Share of right answers on the whole images."""
    images = [read_image(sample.path) for sample in dataset.samples]
    with torch.no_grad():
        logits = network(batch_of(images, np.arange(len(images)), Augmentation(), 0))
    labels = torch.tensor([sample.label for sample in dataset.samples])
    return float((logits.argmax(1) == labels).float().mean())


@click.command()
@data_options
@click.option("--folds", type=int, default=3, show_default=True)
@click.option("--epochs", type=int, default=80, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True)
def main(
    data: Path, form: str, split: str | None, folds: int, epochs: int, seed: int, out: Path
) -> None:
    """Trains a network for each fold."""
    dataset = labelled(open_dataset(data, form, split=split))
    out.mkdir(parents=True, exist_ok=True)
    for number, (training, scored) in enumerate(fold_datasets(dataset, folds, seed)):
        network = train(training, dataset.num_classes, epochs, seed)
        write_bytes(out / f"{number}.safetensors", save(network.state_dict()))
        right = 100 * accuracy(network, scored)
        click.echo(f"fold {number}: {right:.1f}% of the held-out images right")


if __name__ == "__main__":
    main()
