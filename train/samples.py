"""Gives samples as a head's classifier sees them: from the feature cache, or made on the fly."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import DataError
from sigcam.data import Dataset
from sigcam.train.distributed import World
from sigcam.train.feature_cache import FeatureCache, build_cache, check_failed, describe, key_of
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import FeatureRunner, HeadName, Job, TrainingViews, ViewReader, head_of


@dataclass(frozen=True)
class SampleSet:
    """Samples to train on, and what reports say about them.

    Attributes:
        train, val: the samples; `val` is None without a validation split.
        images: how many are trained on.
        views: of each; 0 where every epoch draws its own.
        key: of the features: which backbone, data, preprocessing and augmentation.
        failed: index of an unreadable image to the reason.
        folder: of the cached features; None without a cache.
        mean_labels: how many classes a sample has in the mean, where predictions of several
            classes are the targets and known before the training; None otherwise.
    """

    train: Samples
    val: Samples | None
    images: int
    views: int
    key: str
    failed: Mapping[int, str]
    folder: Path | None
    mean_labels: float | None = None


@dataclass(frozen=True)
class SampleSource:
    """Makes samples; the fields are the arguments of `fit_sigmoid_head`.

    Attributes:
        views: with the class ids of the model, unless the labels are predicted.
        world: the processes of this run.
        head: whose neck the samples come out of.
        say: is told what computes features that are kept.
    """

    dual: DualBranch
    views: TrainingViews
    settings: TrainSettings
    reading: Reading
    world: World
    head: HeadName
    progress: bool
    say: Callable[[str], None]

    def make(self) -> SampleSet:
        """Computes the features, or finds them in the cache; or sets up live views."""
        return self._cached() if self.settings.cached else self._live()

    def _labels(self) -> Targets:
        """Returns each image's target; -1, no class, where labels are to be predicted."""
        if self.settings.labels == "predicted":
            return np.full(len(self.views), -1, np.int64)
        return targets_of(self.views.dataset, self.dual)

    def _cached(self) -> SampleSet:
        cache = build_cache(
            self.dual,
            self.views,
            self.world,
            head=self.head,
            cache_dir=self.reading.cache_dir,
            dtype=self.settings.cache_dtype,
            workers=self.reading.workers,
            strict=self.reading.strict,
            progress=self.progress,
            features_by=self.reading.features_by,
            say=self.say,
        )
        failed = np.array(list(cache.failed), np.int64)
        train, held = _split(np.setdiff1d(np.arange(len(self.views)), failed), self.settings)
        labels, device = self._labels(), self.world.device
        count = self.views.augmentation.views
        return SampleSet(
            train=CachedSamples(cache, labels, train, count, device),
            val=CachedSamples(cache, labels, held, 1, device) if len(held) else None,
            images=len(train),
            views=count,
            key=cache.key,
            failed=cache.failed,
            folder=cache.folder,
        )

    def _live(self) -> SampleSet:
        train, held = _split(np.arange(len(self.views)), self.settings)
        make = partial(
            LiveSamples,
            self.views,
            self._labels(),
            run=FeatureRunner(self.dual, self.views.preprocessing, self.world.device, self.head),
            workers=self.reading.workers,
            strict=self.reading.strict,
            neck_shape=head_of(self.dual, self.head).neck_shape,
        )
        one_view = replace(self.views, augmentation=replace(self.views.augmentation, views=1))
        about = describe(self.dual, one_view, self.head)
        return SampleSet(
            train=make(images=train),
            val=make(images=held, random=False) if len(held) else None,
            images=len(train),
            views=0,
            key=key_of(about),
            failed={},
            folder=None,
        )


def _split(usable: Indices, settings: TrainSettings) -> tuple[Indices, Indices]:
    train, held = split_images(usable, settings.val_fraction, settings.seed)
    if not len(train) or (settings.val_fraction and not len(held)):
        raise DataError(
            f"a validation share of {settings.val_fraction} leaves {len(train)} of "
            f"{len(usable)} images to train on and {len(held)} to validate; change it"
        )
    return train, held


def targets_of(dataset: Dataset, dual: DualBranch) -> Targets:
    """Returns what the loss takes of the labels of a data set.

    Args:
        dataset: with the class ids of the model.
        dual: the model, whose task and number of classes count.

    Returns:
        Class ids, int64 [N]; or for a multi-label task 1 for each class of an image and 0 for
        the others, uint8 [N, C].

    Raises:
        DataError: an image with several classes or none, where one is wanted.

    Example:
        targets_of(dataset, dual)  # array([[0, 1, 1], [1, 0, 0]], dtype=uint8)
    """
    if dual.task != "multi-label":
        return dataset.labels
    found = np.zeros((len(dataset), dual.num_classes), np.uint8)
    for row, labels in zip(found, dataset.label_sets, strict=True):
        row[list(labels)] = 1
    return found


def _as_targets(values: torch.Tensor) -> torch.Tensor:
    """Returns class ids as they are, and marks of classes as the numbers that the loss takes."""
    return values.float() if values.ndim == 2 else values


Indices = npt.NDArray[np.int64]
Targets: TypeAlias = "npt.NDArray[np.int64] | npt.NDArray[np.uint8]"
Batch = tuple[torch.Tensor, torch.Tensor]

RESIDENT_BYTES = 4 << 30
"""A cache up to this size is held in memory (of the GPU, if there is one)."""


def split_images(usable: Indices, fraction: float, seed: int) -> tuple[Indices, Indices]:
    """Returns the indices of the images to train on and of those held out, both sorted.

    Example:
        >>> train, held = split_images(np.arange(10), fraction=0.2, seed=0)
        >>> len(train), len(held), np.intersect1d(train, held).size
        (8, 2, 0)
    """
    order = np.random.default_rng([seed, 1]).permutation(usable)
    held = round(len(usable) * fraction)
    return np.sort(order[held:]), np.sort(order[:held])


def epoch_order(size: int, batch_size: int, seed: int, epoch: int) -> list[Indices]:
    """Returns the samples 0..size-1 in the random order of that epoch, cut into batches.

    Example:
        >>> batches = epoch_order(5, batch_size=2, seed=0, epoch=1)
        >>> [len(batch) for batch in batches], np.sort(np.concatenate(batches))
        ([2, 2, 1], array([0, 1, 2, 3, 4]))
    """
    order = np.random.default_rng([seed, 2, epoch]).permutation(size)
    return [order[i : i + batch_size] for i in range(0, size, batch_size)]


class Samples(abc.ABC):
    """Samples 0..size-1; `batches` gives neck outputs [B, *neck] and targets.

    Attributes:
        size: how many there are.
        failed: index of an image to the reason why it couldn't be read while training.
    """

    size: int
    failed: dict[int, str]

    @abc.abstractmethod
    def batches(self, wanted: Sequence[Indices], epoch: int) -> Iterator[Batch]:
        """Yields a batch per entry of `wanted` (sample numbers), on the device.

        It is float32 [B, *neck], and class ids int64 [B], or float32 [B, C]: several classes an
        image, or soft targets.
        """


class CachedSamples(Samples):
    """Views of cached images; sample s is view s % views of image s // views.

    A cache of up to `RESIDENT_BYTES` is held in memory; a larger one is read through its
    mapping batch by batch, in the order of the file.

    Args:
        cache: the features of all images.
        labels: target of each image in the cache, from `targets_of`.
        images: indices of those that are used.
        views: how many of each are used, from view 0 on.
        device: what batches are moved to.
    """

    def __init__(
        self,
        cache: FeatureCache,
        labels: Targets,
        images: Indices,
        views: int,
        device: torch.device,
    ) -> None:
        stored = cache.features.shape[1]
        self._rows: Indices = (images[:, None] * stored + np.arange(views)).reshape(-1)
        self._ids = torch.tensor(np.repeat(labels[images], views, axis=0))
        self._device = device
        self.size, self.failed = len(self._rows), {}
        self._file = cache.features.reshape(-1, *cache.features.shape[2:])
        row_bytes = self._file[0].nbytes
        self._resident: torch.Tensor | None = None
        if self.size * row_bytes <= RESIDENT_BYTES:
            self._resident = self._take(self._rows).to(device)
            self._ids = self._ids.to(device)

    def _take(self, rows: Indices) -> torch.Tensor:
        return torch.from_numpy(self._file[rows])

    def batches(self, wanted: Sequence[Indices], epoch: int) -> Iterator[Batch]:
        """Yields batches, see `Samples`; `epoch` makes no difference to cached views."""
        del epoch
        for numbers in wanted:
            if self._resident is not None:
                chosen = torch.from_numpy(numbers).to(self._device)
                yield self._resident.index_select(0, chosen).float(), _as_targets(self._ids[chosen])
                continue
            forward = np.sort(numbers)  # the order within a batch is free
            made = self._take(self._rows[forward])
            targets = _as_targets(self._ids[forward])
            yield made.to(self._device).float(), targets.to(self._device)


class LiveSamples(Samples):
    """One view per image and epoch through the frozen backbone; sample s is the s-th image used.

    Unreadable images are left out of their batch, and kept in `failed`.

    Args:
        views: of which images.
        labels: target of each image of the data set, from `targets_of`.
        images: indices of the images that are used.
        run: computes the neck's output.
        random: whether the view is a new random one in every epoch; if not, the plain one.
        workers: decoding threads; `default_workers()` when None.
        strict: whether an unreadable image is an error.
        neck_shape: of the neck's output without the batch.
    """

    def __init__(
        self,
        views: TrainingViews,
        labels: Targets,
        images: Indices,
        run: FeatureRunner,
        *,
        random: bool = True,
        workers: int | None = None,
        strict: bool = False,
        neck_shape: tuple[int, ...] = (),
    ) -> None:
        self._views, self._labels = views, labels
        self._images, self._run, self._random = images, run, random
        self._workers, self._strict, self._neck_shape = workers, strict, neck_shape
        self.size, self.failed = len(images), {}

    def batches(self, wanted: Sequence[Indices], epoch: int) -> Iterator[Batch]:
        """Yields batches, see `Samples`; one may lack unreadable images, or be empty.

        Raises:
            DataError: an image is unreadable and `strict` is set, or all are.
        """
        view = 1 + epoch if self._random else 0
        jobs = (Job(int(self._images[n]), (view,)) for numbers in wanted for n in numbers)
        with ViewReader(self._views, self._workers) as reader:
            stream = reader.read(jobs)
            for numbers in wanted:
                pixels: list[npt.NDArray[Any]] = []
                read: list[int] = []
                for item in (next(stream) for _ in range(len(numbers))):
                    if item.pixels is None:
                        self.failed[item.job.image] = item.error
                        check_failed(self._views.dataset, self.failed, self._strict)
                    else:
                        pixels.append(item.pixels)
                        read.append(item.job.image)
                targets = torch.from_numpy(self._labels[np.array(read, np.int64)])
                yield self._made(pixels), _as_targets(targets).to(self._run.device)

    def _made(self, pixels: list[npt.NDArray[Any]]) -> torch.Tensor:
        if not pixels:
            return torch.empty(0, *self._neck_shape, device=self._run.device)
        return self._run(np.concatenate(pixels))
