"""The samples that a head is trained on: cached features, or views made anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from sigcam.runtime.errors import DataError
from sigcam.runtime.spec import Geometry
from sigcam.train.augment import Augmentation
from sigcam.train.batches import CachedSamples, Indices, LiveSamples, Samples, split_pictures
from sigcam.train.cache import build_cache, describe, key_of
from sigcam.train.data import ImageList
from sigcam.train.distributed import World
from sigcam.train.dual_branch import DualBranch
from sigcam.train.settings import Reading, TrainSettings
from sigcam.train.views import HeadName, StemRunner, head_of


@dataclass(frozen=True)
class SampleSet:
    """Samples to train on, and what reports say about them.

    Attributes:
        train, val: the samples; `val` is None without a validation split.
        pictures: how many are trained on.
        views: of each; 0 where every epoch draws its own.
        key: of the features: which backbone, data, geometry and augmentation.
        failed: index of an unreadable picture to the reason.
        folder: of the cached features; None without a cache.
    """

    train: Samples
    val: Samples | None
    pictures: int
    views: int
    key: str
    failed: Mapping[int, str]
    folder: Path | None


@dataclass(frozen=True)
class SampleSource:
    """What samples are made from; the fields are the arguments of `train_branch`."""

    dual: DualBranch
    data: ImageList
    settings: TrainSettings
    geometry: Geometry
    augmentation: Augmentation
    reading: Reading
    world: World
    head: HeadName
    progress: bool

    def make(self) -> SampleSet:
        """Computes the features, or finds them in the cache; or sets up live views."""
        return self._cached() if self.settings.cached else self._live()

    def _cached(self) -> SampleSet:
        cache = build_cache(
            self.dual,
            self.data,
            self.geometry,
            self.augmentation,
            self.world,
            head=self.head,
            cache_dir=self.reading.cache_dir,
            dtype=self.settings.cache_dtype,
            workers=self.reading.workers,
            strict=self.reading.strict,
            progress=self.progress,
        )
        failed = np.array(list(cache.failed), np.int64)
        train, held = _split(np.setdiff1d(np.arange(len(self.data)), failed), self.settings)
        views, device = self.augmentation.views, self.world.device
        return SampleSet(
            train=CachedSamples(cache, self.data, train, views, device),
            val=CachedSamples(cache, self.data, held, 1, device) if len(held) else None,
            pictures=len(train),
            views=views,
            key=cache.key,
            failed=cache.failed,
            folder=cache.folder,
        )

    def _live(self) -> SampleSet:
        train, held = _split(np.arange(len(self.data)), self.settings)
        make = partial(
            LiveSamples,
            self.data,
            self.geometry,
            self.augmentation,
            run=StemRunner(self.dual, self.geometry, self.world.device, self.head),
            workers=self.reading.workers,
            strict=self.reading.strict,
            stem_shape=head_of(self.dual, self.head).stem_shape,
        )
        one_view = replace(self.augmentation, views=1)
        about = describe(self.dual, self.data, self.geometry, one_view, self.head)
        return SampleSet(
            train=make(pictures=train),
            val=make(pictures=held, random=False) if len(held) else None,
            pictures=len(train),
            views=0,
            key=key_of(about),
            failed={},
            folder=None,
        )


def _split(usable: Indices, settings: TrainSettings) -> tuple[Indices, Indices]:
    train, held = split_pictures(usable, settings.val_fraction, settings.seed)
    if not len(train) or (settings.val_fraction and not len(held)):
        raise DataError(
            f"a validation share of {settings.val_fraction} leaves {len(train)} of "
            f"{len(usable)} pictures to train on and {len(held)} to validate; change it"
        )
    return train, held
