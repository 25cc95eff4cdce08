"""Training the branch: the backbone in every epoch, as the paper does, or once."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import markdown
from harness import plots as drawing
from harness.context import Context
from harness.engines import THREADS
from harness.networks import Network

from sigcam.runtime.image import read_image
from sigcam.train.augment import Augmentation
from sigcam.train.cache import build_cache
from sigcam.train.data import ImageList
from sigcam.train.distributed import join_world
from sigcam.train.loop import Reading, TrainSettings, train_branch
from sigcam.train.loss import evidence_loss
from sigcam.train.settings import EpochMetrics
from sigcam.train.sources import open_data

Figures = dict[str, Any]

NETWORKS = ("efficientnet_lite0", "resnet50")
QUICK = ("efficientnet_lite0",)
# Pictures, views of each in the cache, epochs over the cache.
FULL_SIZE = (300, 8, 60)
QUICK_SIZE = (40, 2, 10)
TARGET = 30.0

TEXT = f"""
The sigmoid branch on photographs (one for each ImageNet class), fp32, {THREADS} threads, Adam with
the paper's numbers, either way the same steps on the same kind of views. **The paper's way**
reads, crops and flips every picture anew in each epoch and runs the backbone (ours: batch norms
folded, channels last, which is faster than a plain PyTorch loop). **Cached** computes the features
of a fixed number of views once, and trains on them; the time to fill the cache counts. An epoch
of the cached way has as many steps as that number of epochs of the paper's.

The loss is taken after each epoch on one more random view of each picture, which neither way
trains on; taking it isn't timed. The paper's way was really run for as many epochs as the cache
has views, which are the steps of one cached epoch: "loss after these" shows whether the two are
then equally far. What it would take to the lowest loss of the cached way **is extrapolated**: as
many steps as the cached way needed, times the measured seconds of a step. The target is
{TARGET:g} times less time to the same loss. Caching pays by the number of epochs: for a single
pass it saves nothing.
"""


def measure(context: Context) -> Figures:
    """Seconds and losses of both ways, by network."""
    folder = context.data / "imagenet_samples"
    if not folder.is_dir():
        return {"unavailable": "needs the real pictures (--data)", "networks": {}}
    torch.set_num_threads(THREADS)
    count, views, epochs = QUICK_SIZE if context.quick else FULL_SIZE
    data = first(open_data(folder), count)
    found = {}
    for name in context.chosen(NETWORKS, QUICK):
        # Real features where the package has them: fresh ones hardly tell classes apart.
        weights = "DEFAULT" if name.startswith("efficientnet_lite") else "random"
        network = context.network(name, weights=weights)
        found[name] = {"weights": weights, **_network(network, data, views, epochs)}
        context.say(f"  {name}: {times(found[name], best_epoch(found[name])):.1f} times")
    return {"networks": found}


def first(data: ImageList, count: int) -> ImageList:
    """`count` pictures, evenly over the list."""
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)
    return replace(
        data,
        paths=tuple(data.paths[i] for i in chosen),
        class_ids=tuple(data.class_ids[i] for i in chosen),
    )


UNSEEN = 1_000_000
"""A view that no epoch trains on: the paper's way takes view e in epoch e."""


class LossTaker:
    """Takes the loss on unseen views after each epoch, and adds up the epochs' time."""

    def __init__(self, network: Network, data: ImageList, augmentation: Augmentation) -> None:
        geometry = network.loaded.geometry
        mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (geometry.mean, geometry.std))
        self._dual = network.dual
        self._ids = torch.tensor(data.class_ids)
        made = []
        for index in range(len(data)):
            image = read_image(data.file(index))
            pixels = torch.from_numpy(augmentation.view(image, geometry, index, UNSEEN))
            tensor = (pixels.permute(2, 0, 1)[None].float() / 255 - mean) / std
            with torch.no_grad():
                made.append(self._dual.features(tensor))
        self._features = torch.cat(made)
        self.points: list[list[float]] = []
        self._seconds = 0.0

    def __call__(self, metrics: EpochMetrics) -> None:
        """One more epoch is done."""
        self._seconds += metrics.seconds
        head = self._dual.sigmoid_head
        training = head.training
        head.eval()
        with torch.no_grad():
            loss = float(evidence_loss(head(self._features), self._ids))
        head.train(training)
        self.points.append([round(self._seconds, 3), float(f"{loss:.5g}")])


def _network(network: Network, data: ImageList, views: int, epochs: int) -> Figures:
    geometry, dual = network.loaded.geometry, network.dual
    augmentation = Augmentation(views=views)
    fresh = {k: v.clone() for k, v in dual.sigmoid_head.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        reading = Reading(cache_dir=Path(folder))
        start = time.perf_counter()
        with join_world("cpu") as world:
            build_cache(
                dual, data, geometry, augmentation, world,
                cache_dir=reading.cache_dir, progress=False,
            )  # fmt: skip
        filling = time.perf_counter() - start
        ways = {}
        for way, settings in (
            ("cached", TrainSettings(epochs=epochs, device="cpu")),
            ("live", TrainSettings(epochs=views, device="cpu", cached=False)),
        ):
            dual.sigmoid_head.load_state_dict(fresh)
            taker = LossTaker(network, data, augmentation)
            train_branch(
                dual, data, settings, geometry=geometry, augmentation=augmentation,
                reading=reading, progress=False, on_epoch=taker,
            )  # fmt: skip
            ways[way] = taker.points
        dual.sigmoid_head.load_state_dict(fresh)
    return {"pictures": len(data), "views": views, "filling": round(filling, 2), **ways}


def live_epoch(row: Figures) -> float:
    """Seconds of one epoch of the paper's way, the median of those that were run."""
    ends = [0.0, *(seconds for seconds, _ in row["live"])]
    return float(np.median(np.diff(ends)))


def best_epoch(row: Figures) -> int:
    """The cached epoch, from 1, after which the loss was lowest."""
    return 1 + int(np.argmin([loss for _, loss in row["cached"]]))


def times(row: Figures, epoch: int) -> float:
    """How many times as long the paper's way takes to the loss after a cached epoch."""
    cached = row["filling"] + row["cached"][epoch - 1][0]
    return epoch * row["views"] * live_epoch(row) / cached


def section(figures: Figures) -> str:
    """Per epoch, and to the same loss."""
    title = "\n### End to end from JPEG files: training the branch\n"
    if "unavailable" in figures:
        return f"{title}\nNot measured: {figures['unavailable']}.\n"
    epochs, totals = [], []
    for name, row in figures["networks"].items():
        done, views = len(row["cached"]), row["views"]
        cached_epoch = row["cached"][-1][0] / done
        epochs.append(
            [
                name, row["weights"], str(row["pictures"]), str(views), f"{live_epoch(row):.2f}",
                f"{cached_epoch / views:.4f}", f"{live_epoch(row) * views / cached_epoch:.0f}",
                f"{row['live'][-1][1]:.4g} / {row['cached'][0][1]:.4g}",
            ]
        )  # fmt: skip
        best = best_epoch(row)
        for epoch in sorted({1, max(1, best // 6), best}):
            ratio = times(row, epoch)
            told = f"{ratio:.1f}"
            if epoch == best:
                told = told if ratio >= TARGET else f"**{told}**"
            seconds = row["filling"] + row["cached"][epoch - 1][0]
            totals.append(
                [
                    name, f"{row['cached'][epoch - 1][1]:.4g}", f"{epoch} / {epoch * views}",
                    f"{seconds:.1f}, of it {row['filling']:.1f} filling",
                    f"{epoch * views * live_epoch(row):.0f}" + (" (run)" if epoch == 1 else ""),
                    told,
                ]
            )  # fmt: skip
    return "".join(
        [
            title,
            TEXT,
            markdown.table(
                [
                    "network", "weights", "pictures", "views", "paper's way, s per epoch",
                    "cached, s for as many views", "times", "loss after these: paper's / cached",
                ],
                epochs,
            ),
            "\nTo the same loss:\n",
            markdown.table(
                [
                    "network", "loss", "epochs, cached / paper's", "cached, s",
                    "paper's way, s", "times",
                ],
                totals,
            ),
        ]
    )  # fmt: skip


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Loss over time, measured and extrapolated."""
    if not figures["networks"]:
        return []
    series = {}
    for name, row in figures["networks"].items():
        cached = [(row["filling"] + s, [loss] * 3) for s, loss in row["cached"]]
        series[f"{name}, cached"] = cached
        series[f"{name}, paper's way"] = [(s, [loss] * 3) for s, loss in row["live"]]
        per_epoch = row["views"] * live_epoch(row)
        series[f"{name}, paper's way extrapolated"] = [
            ((1 + index) * per_epoch, [loss] * 3) for index, (_, loss) in enumerate(row["cached"])
        ]
    labels = ("seconds, filling the cache included", "loss on unseen views")
    title = "End to end from JPEG files: loss of the branch over time"
    return [drawing.curves(folder / "training.png", title, labels, series, log="xy")]
