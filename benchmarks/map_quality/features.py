"""Runs a backbone over images once, and keeps its features in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from sigcam.classifier.build import BuiltClassifier, build_classifier
from sigcam.classifier.rewrite import fold_batch_norms
from sigcam.core.files import atomic_path
from sigcam.core.spec import Preprocessing
from sigcam.core.threads import in_order
from sigcam.core.types import Array
from sigcam.data import Dataset, Sample
from sigcam.evaluate.mosaics import Mosaic, mosaic_input
from sigcam.images.preprocess import read_input
from sigcam.train.augment import Augmentation
from sigcam.train.views import TrainingViews

BATCH = 16


@dataclass(frozen=True)
class Backbone:
    """A trained network up to its features.

    Attributes:
        name: in tables and files.
        arch: as for `sigcam train --arch`.
        weights: as for `sigcam train --weights`.
        folder: where its graphs and features are kept.
        num_classes: of the classifier that the weights are of; None for the architecture's own.
        size: side of the input; None for the network's own.
        rule: resize rule; None for the network's own.
    """

    name: str
    arch: str
    weights: str
    folder: Path
    num_classes: int | None = None
    size: int | None = None
    rule: str | None = None

    def built(self, scale: int = 1) -> BuiltClassifier:
        """Loads the classifier, for an input of `scale` times its size."""
        known = {"weights": self.weights, "num_classes": self.num_classes}
        first = build_classifier(self.arch, size=self.size, **known)
        if scale == 1:
            return first
        return build_classifier(self.arch, size=scale * first.preprocessing.height, **known)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """Returns how images become its input, as bytes."""
        own = replace(self.built().preprocessing, layout="uint8_nhwc")
        if self.rule is None:
            return own
        return replace(own, rule=self.rule, resize=None)  # type: ignore[arg-type]

    def for_mosaics(self, side: int) -> Preprocessing:
        """Returns the preprocessing at which a mosaic's tiles have the network's own size."""
        own = self.preprocessing
        resize = None if own.resize is None else side * own.resize
        return replace(own, height=side * own.height, width=side * own.width, resize=resize)

    def runner(self, scale: int = 1) -> Runner:
        """Opens the backbone on one thread, exporting its graph first where that wasn't done.

        Two studies of different backbones side by side use two cores better than one on two.
        """
        path = self.folder / f"{self.name}-{scale}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                _export(self.built(scale), temporary)
        return Runner(path, self.preprocessing)


class _Features(nn.Module):
    """Normalises bytes, and gives features [B, N, h, w] and their means [B, N]."""

    def __init__(self, built: BuiltClassifier) -> None:
        super().__init__()
        self.features = fold_batch_norms(built.dual.features)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes both."""
        found = self.features(image)
        return found, found.mean((2, 3))


def _export(built: BuiltClassifier, path: Path) -> None:
    height, width = built.dual.input_size
    program = torch.onnx.export(
        _Features(built).eval(),
        (torch.zeros(2, 3, height, width),),
        input_names=["image"],
        output_names=["features", "pooled"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))


class Runner:
    """A backbone's graph in ONNX Runtime.

    Attributes:
        images: how many images were run.
    """

    def __init__(self, path: Path, preprocessing: Preprocessing) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._mean = 255 * np.array(preprocessing.mean, np.float32)
        self._std = 255 * np.array(preprocessing.std, np.float32)
        self.images = 0

    def features(self, images: Array) -> Array:
        """Computes features, float32 [B, N, h, w], of images uint8 [B, H, W, 3]."""
        return self._run(images, "features")

    def pooled(self, images: Array) -> Array:
        """Computes the features' means, float32 [B, N], of images uint8 [B, H, W, 3]."""
        parts = [
            self._run(images[start : start + BATCH], "pooled")
            for start in range(0, len(images), BATCH)
        ]
        return np.concatenate(parts)

    def _run(self, images: Array, output: str) -> Array:
        self.images += len(images)
        pixels = (images.astype(np.float32) - self._mean) / self._std
        given = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return np.asarray(self._session.run([output], {"image": given})[0])


def kept(path: Path, make: Callable[[], Iterable[Array]], count: int) -> Array:
    """Returns an array that is made once and kept in a file, in float16.

    Args:
        path: the .npy file.
        make: yields its rows, a number at a time.
        count: the number of rows.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            _write(temporary, make(), count)
    return np.load(path, mmap_mode="r")


def _write(path: Path, parts: Iterable[Array], count: int) -> None:
    file, start = None, 0
    for part in parts:
        if file is None:
            shape = (count, *part.shape[1:])
            file = np.lib.format.open_memmap(path, "w+", np.float16, shape)
        file[start : start + len(part)] = part
        start += len(part)
    assert file is not None and start == count
    file.flush()


def training_features(backbone: Backbone, dataset: Dataset, views: int, grid: bool) -> Array:
    """Returns the features of views of each image.

    Args:
        backbone: the network.
        dataset: the images; unreadable ones are an error.
        views: of each image: the plain one, then random crops and flips.
        grid: whether whole features are kept, or their means.

    Returns:
        float16 [P, V, N], or [P, V, N, h, w].
    """
    source = TrainingViews(dataset, backbone.preprocessing, Augmentation(views))
    kind = "grid" if grid else "pooled"
    path = backbone.folder / f"{backbone.name}-{dataset.name}-{views}-{kind}.npy"

    def make() -> Iterator[Array]:
        runner, numbers = backbone.runner(), range(views)
        made = in_order(lambda i: source.pixels(i, numbers), range(len(dataset)), 2, "views")
        group = max(1, BATCH // views)
        while pixels := list(islice(made, group)):
            batch = np.concatenate(pixels)
            found = runner.features(batch) if grid else runner.pooled(batch)
            yield found.reshape(len(pixels), views, *found.shape[1:])

    return kept(path, make, len(dataset))


def read_all(samples: Sequence[Sample], preprocessing: Preprocessing) -> Iterator[Array]:
    """Yields images as the network gets them, uint8 [H, W, 3]."""
    return in_order(lambda s: read_input(s.path, preprocessing).tensor, samples, 2, "read")


def image_features(backbone: Backbone, name: str, samples: Sequence[Sample]) -> Array:
    """Returns the features of images, float16 [P, N, h, w]."""

    def make() -> Iterator[Array]:
        runner, images = backbone.runner(), read_all(samples, backbone.preprocessing)
        while batch := list(islice(images, BATCH)):
            yield runner.features(np.stack(batch))

    return kept(backbone.folder / f"{backbone.name}-{name}.npy", make, len(samples))


def mosaic_features(backbone: Backbone, name: str, mosaics: Sequence[Mosaic]) -> Array:
    """Returns the features of mosaics whose tiles have the network's size, float16 [M, N, h, w]."""
    side = math.isqrt(len(mosaics[0].tiles))

    def make() -> Iterator[Array]:
        runner, preprocessing = backbone.runner(side), backbone.for_mosaics(side)
        images = in_order(lambda m: mosaic_input(m, preprocessing), mosaics, 2, "mosaics")
        while batch := list(islice(images, max(1, BATCH // side**2))):
            yield runner.features(np.stack(batch))

    return kept(backbone.folder / f"{backbone.name}-{name}.npy", make, len(mosaics))
