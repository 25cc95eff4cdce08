"""Training the branch: the backbone in every epoch, as the paper does, or once."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.harness import markdown
from benchmarks.harness import plots as drawing
from benchmarks.harness.backends import THREADS
from benchmarks.harness.context import Context
from benchmarks.harness.networks import Network
from benchmarks.harness.targets import TARGETS, Reached
from sigcam.data import Dataset, open_dataset
from sigcam.export.modules import Normalise
from sigcam.train.augment import Augmentation
from sigcam.train.distributed import join_world
from sigcam.train.feature_cache import build_cache
from sigcam.train.loop import fit_sigmoid_head
from sigcam.train.loss import evidence_loss
from sigcam.train.settings import EpochMetrics, Reading, TrainSettings
from sigcam.train.views import TrainingViews

Figures = dict[str, Any]

NETWORKS = ("efficientnet_lite0", "resnet50")
QUICK = ("efficientnet_lite0",)


class Size(NamedTuple):
    """How much is measured.

    Attributes:
        images: number of them.
        views: of each, in the cache.
        epochs: over the cache.
        replayed: views of each image that stand for the paper's way beyond `views` epochs.
        timed: images of networks with random weights, of which only seconds are taken.
    """

    images: int
    views: int
    epochs: int
    replayed: int
    timed: int


FULL_SIZE = Size(120, 8, 60, 64, 40)
QUICK_SIZE = Size(16, 2, 5, 4, 8)
TARGET = TARGETS["training"].limit

TEXT = f"""
The sigmoid branch on photographs (one for each ImageNet class), fp32, {THREADS} threads, Adam with
the paper's numbers, either way the same steps on the same kind of views. **The paper's way**
reads, crops and flips every image anew in each epoch and runs the backbone (ours: batch norms
folded, channels last, which is faster than a plain PyTorch loop). **Cached** computes the features
of a fixed number of views once, and trains on them; the time to fill the cache counts. An epoch
of the cached way has as many steps as that number of epochs of the paper's.

The loss is taken after each epoch on one more random view of each image, which neither way
trains on; taking it isn't timed. The paper's way was run and timed for as many epochs as the cache
has views. Its further epochs are **replayed**: the same steps on {FULL_SIZE.replayed} other views
of each image, whose features were kept, each counted with the seconds that an epoch of the
paper's way took. So its loss is measured, its time beyond the first epochs is epochs times seconds.
The target is {TARGET:g} times less time to the lowest loss that the cached way reaches. Caching
pays by the number of epochs: for a single pass it saves nothing, and since every epoch of the
paper's way has new views, it may need fewer epochs. A network with random weights has no loss worth
a comparison; only its seconds are taken.
"""


def measure(context: Context) -> Figures:
    """Seconds and losses of both ways, by network."""
    folder = context.data / "imagenet_samples"
    if not folder.is_dir():
        return {"unavailable": "needs the real images (--data)", "networks": {}}
    torch.set_num_threads(THREADS)
    size = QUICK_SIZE if context.quick else FULL_SIZE
    everything = open_dataset(folder)
    found = {}
    for name in context.chosen(NETWORKS, QUICK):
        # Real features where the package has them: fresh ones hardly tell classes apart.
        weights = "DEFAULT" if name.startswith("efficientnet_lite") else "random"
        network = context.network(name, weights=weights)
        data = first(everything, size.images if weights == "DEFAULT" else size.timed)
        found[name] = {"weights": weights, **_network(network, data, size, weights == "DEFAULT")}
        if weights == "DEFAULT":
            context.say(f"  {name}: {told(found[name], best_epoch(found[name]))} times")
    return {"networks": found}


def first(data: Dataset, count: int) -> Dataset:
    """Returns `count` samples, evenly over the data set."""
    chosen = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int)
    return replace(data, samples=[data.samples[i] for i in chosen])


UNSEEN = 1_000_000
"""A view that no epoch trains on: the paper's way takes view e in epoch e."""


class LossTaker:
    """Takes the loss on unseen views after each epoch, and adds up the epochs' time."""

    def __init__(self, network: Network, views: TrainingViews) -> None:
        preprocessing = views.preprocessing
        normalise = Normalise(replace(preprocessing, layout="uint8_nhwc"))
        self._dual = network.dual
        self._ids = torch.from_numpy(views.dataset.labels)
        made = []
        for index in range(len(views)):
            pixels = torch.from_numpy(views.pixels(index, (UNSEEN,)))
            with torch.no_grad():
                made.append(self._dual.features(normalise(pixels)))
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


def _network(network: Network, data: Dataset, size: Size, losses: bool) -> Figures:
    preprocessing, dual = network.loaded.preprocessing, network.dual
    fresh = {k: v.clone() for k, v in dual.sigmoid_head.state_dict().items()}

    def views_of(augmentation: Augmentation) -> TrainingViews:
        return TrainingViews(data, preprocessing, augmentation)

    def train(settings: TrainSettings, views: int, seed: int, folder: str) -> LossTaker:
        dual.sigmoid_head.load_state_dict(fresh)
        taker = LossTaker(network, views_of(Augmentation()))  # the same unseen views for all
        fit_sigmoid_head(
            dual, views_of(Augmentation(views=views, seed=seed)), settings, on_epoch=taker,
            reading=Reading(cache_dir=Path(folder)), progress=False,
        )  # fmt: skip
        return taker

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        with join_world("cpu") as world:
            build_cache(
                dual, views_of(Augmentation(views=size.views)), world,
                cache_dir=Path(folder), progress=False,
            )  # fmt: skip
        filling = time.perf_counter() - start
        cached = TrainSettings(epochs=size.epochs if losses else 2, device="cpu")
        live = TrainSettings(epochs=size.views, device="cpu", cached=False)
        row = {
            "images": len(data), "views": size.views, "filling": round(filling, 2),
            "cached": train(cached, size.views, 0, folder).points,
            "live": train(live, size.views, 0, folder).points,
        }  # fmt: skip
        if losses:
            # As many epochs of the paper's way as the cached way's steps are.
            rounds = max(1, round(size.epochs * size.views / size.replayed))
            settings = TrainSettings(epochs=rounds, device="cpu")
            taken = train(settings, size.replayed, 1, folder).points
            row["replayed"] = [
                [(1 + index) * size.replayed, loss] for index, (_, loss) in enumerate(taken)
            ]
    dual.sigmoid_head.load_state_dict(fresh)
    return row


def live_epoch(row: Figures) -> float:
    """Seconds of one epoch of the paper's way, the median of those that were run."""
    ends = [0.0, *(seconds for seconds, _ in row["live"])]
    return float(np.median(np.diff(ends)))


def best_epoch(row: Figures) -> int:
    """The cached epoch, from 1, after which the loss was lowest."""
    return 1 + int(np.argmin([loss for _, loss in row["cached"]]))


def epochs_to(row: Figures, loss: float) -> tuple[int, bool]:
    """Epochs of the paper's way until its loss is as low, and whether it got there.

    Replayed epochs were looked at once in a round, so they may be a few too many.
    """
    points = [(1 + index, one) for index, (_, one) in enumerate(row["live"])] + row["replayed"]
    for epochs, one in points:
        if one <= loss:
            return epochs, True
    return points[-1][0], False


def times(row: Figures, epoch: int) -> float:
    """How many times as long the paper's way takes to the loss after a cached epoch.

    At least, where it didn't get there.
    """
    seconds, loss = row["cached"][epoch - 1]
    return epochs_to(row, loss)[0] * live_epoch(row) / (row["filling"] + seconds)


def told(row: Figures, epoch: int) -> str:
    """The same in words."""
    got_there = epochs_to(row, row["cached"][epoch - 1][1])[1]
    return ("" if got_there else "over ") + f"{times(row, epoch):.1f}"


def section(figures: Figures) -> str:
    """Per epoch, and to the same loss."""
    title = "\n### End to end from JPEG files: training the branch\n"
    if "unavailable" in figures:
        return f"{title}\nNot measured: {figures['unavailable']}.\n"
    epochs, totals = [], []
    for name, row in figures["networks"].items():
        done, views = len(row["cached"]), row["views"]
        cached_epoch = row["cached"][-1][0] / done
        losses = f"{row['live'][-1][1]:.4g} / {row['cached'][0][1]:.4g}"
        epochs.append(
            [
                name, row["weights"], str(row["images"]), str(views), f"{live_epoch(row):.2f}",
                f"{cached_epoch / views:.4f}", f"{live_epoch(row) * views / cached_epoch:.0f}",
                losses if "replayed" in row else "",
            ]
        )  # fmt: skip
        if "replayed" in row:
            totals += _totals(name, row)
    return "".join(
        [
            title,
            TEXT,
            markdown.table(
                [
                    "network", "weights", "images", "views", "paper's way, s per epoch",
                    "cached, s for as many views", "times", "loss after these: paper's / cached",
                ],
                epochs,
            ),
            "\nTo the same loss:\n",
            markdown.table(
                [
                    "network", "loss", "cached, epochs", "cached, s", "paper's way, epochs",
                    "paper's way, s", "times",
                ],
                totals,
            ),
        ]
    )  # fmt: skip


def _totals(name: str, row: Figures) -> list[list[str]]:
    """Rows of the table of times to the same loss."""
    best = best_epoch(row)
    rows = []
    for epoch in sorted({1, max(1, best // 6), best}):
        seconds, loss = row["cached"][epoch - 1]
        epochs, got_there = epochs_to(row, loss)
        ratio = told(row, epoch)
        if epoch == best and times(row, epoch) < TARGET:
            ratio = f"**{ratio}**"
        rows.append(
            [
                name, f"{loss:.4g}", str(epoch), f"{row['filling'] + seconds:.1f}, of it "
                f"{row['filling']:.1f} filling", ("" if got_there else "over ") + str(epochs),
                f"{epochs * live_epoch(row):.0f}", ratio,
            ]
        )  # fmt: skip
    return rows


def reached(figures: Figures) -> dict[str, Reached | None]:
    """To the lowest loss of the cached way; the worst of the networks."""
    found = {
        name: times(row, best_epoch(row))
        for name, row in figures["networks"].items()
        if "replayed" in row
    }
    if not found:
        return {"training": Reached([], figures["unavailable"])} if "unavailable" in figures else {}
    return {
        "training": Reached(
            [min(found.values())], ", ".join(f"{name} {ratio:.1f}" for name, ratio in found.items())
        )
    }


def plots(figures: Figures, folder: Path) -> list[Path]:
    """Loss over time, measured and replayed."""
    series = {}
    for name, row in figures["networks"].items():
        if "replayed" not in row:
            continue
        cached = [(row["filling"] + s, [loss] * 3) for s, loss in row["cached"]]
        series[f"{name}, cached"] = cached
        series[f"{name}, paper's way"] = [(s, [loss] * 3) for s, loss in row["live"]]
        per_epoch = live_epoch(row)
        series[f"{name}, paper's way replayed"] = [
            (epochs * per_epoch, [loss] * 3) for epochs, loss in row["replayed"]
        ]
    if not series:
        return []
    labels = ("seconds, filling the cache included", "loss on unseen views")
    title = "End to end from JPEG files: loss of the branch over time"
    return [drawing.curves(folder / "training.png", title, labels, series, log="xy")]
