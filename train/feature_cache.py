"""Computes the features of every view of every image once, and keeps them on disk.

The backbone is frozen, so what the trained part of the head sees of a view never
changes. A cache is one folder, named by its key:

    about.json      what the key stands for
    features.npy    [images, views, *neck], memory-mapped when read
    done/00012.json chunk 12 (64 images) is on disk, and which of its images failed
    complete.json   everything is
    lock            held by the process that fills it

It is filled chunk by chunk. A chunk is written, flushed to the disk, and only then marked as
done, so what a crash interrupted is computed again. The rows are written through the file, not
through a mapping: on a full disk a mapping dies with SIGBUS instead of an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout

from sigcam.classifier.dual_branch import DualBranch, tensors_sha256
from sigcam.core.errors import ModelError, StorageError
from sigcam.core.files import atomic_path, cache_folder, write_text
from sigcam.core.progress import Bar, write_line
from sigcam.data import Dataset, unread
from sigcam.data.dataset import data_error
from sigcam.train.distributed import World
from sigcam.train.features_by import FeaturesBy, Runner, runner_for
from sigcam.train.views import (
    Decoded,
    HeadName,
    Job,
    TrainingViews,
    ViewReader,
    grouped,
    head_of,
    stack,
)

FORMAT = 2  # 2: whole factors are powers of two; large JPEGs are decoded smaller
CacheType = Literal["float16", "float32"]


def default_cache_dir() -> Path:
    """Returns the folder of all feature caches.

    That is `features` in $SIGCAM_CACHE_DIR, or in the platform's folder for this user's caches.

    Example:
        >>> default_cache_dir().name
        'features'
    """
    return cache_folder("features")


@dataclass(frozen=True)
class FeatureCache:
    """A complete cache of features.

    Attributes:
        folder: where it lies.
        key: SHA-256 of what it depends on.
        features: float16 or float32 [images, views, *neck], a read-only mapping of the
            file; rows of unreadable images are 0.
        failed: index of an unreadable image to the reason.
    """

    folder: Path
    key: str
    features: npt.NDArray[Any]
    failed: Mapping[int, str]


def describe(dual: DualBranch, views: TrainingViews, head: HeadName = "sigmoid") -> dict[str, Any]:
    """Returns everything that the neck's outputs depend on, ready for JSON.

    The backbone counts by its tensors and by the code of its graph (two networks may
    have the same tensors and another stride).
    """
    return {
        "format": FORMAT,
        "backbone": tensors_sha256(dual.features.state_dict()),
        "program": _program(dual, head),
        "branch_layer": dual.branch_layer,
        **views.describe(),
    }


def key_of(about: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a description in hexadecimal digits.

    Example:
        >>> key_of({"views": 12, "seed": 0}) == key_of({"seed": 0, "views": 12})
        True
    """
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _program(dual: DualBranch, head: HeadName) -> str:
    parts = []
    for module in (dual.features, head_of(dual, head).neck):
        for part in module.modules():
            code = getattr(part, "code", None)
            parts.append(code if isinstance(code, str) else repr(part))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_cache(
    dual: DualBranch,
    views: TrainingViews,
    world: World,
    *,
    head: HeadName = "sigmoid",
    cache_dir: Path | None = None,
    dtype: CacheType = "float16",
    workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
    features_by: FeaturesBy = "auto",
    say: Callable[[str], None] = write_line,
) -> FeatureCache:
    """Opens the cache of these views' features, and computes what it lacks.

    Stored as float16 by default: half the disk and memory traffic (12 views of ImageNet
    are 39 GB instead of 79 GB at 1,280 channels), and its rounding (2^-11 relative) is far
    below the difference between two views. With several processes each computes its
    share of the chunks. Other runs that want the same cache wait.

    Args:
        dual: its backbone must be on `world.device`.
        views: of which images, how prepared and cropped; their classes don't matter.
        world: the processes of this run.
        head: whose neck it is; the two differ where a dropout stands before a reshaping,
            and share one cache elsewhere.
        cache_dir: folder of all caches; `default_cache_dir()` when None.
        dtype: "float16" or "float32" on disk.
        workers: decoding threads; `default_workers()` when None.
        strict: whether an unreadable image is an error. If not, it is left out and listed.
        progress: whether a progress bar is shown on standard error.
        features_by: what computes them; see `runner_for`.
        say: is told what computes them, if anything is to be computed.

    Raises:
        BackendUnavailableError: as `runner_for`.
        DataError: missing images; every image unreadable, or one with `strict`.
        ModelError: features that aren't finite, or too large for float16.
        StorageError: the cache can't be written, or is damaged.
    """
    about = {**describe(dual, views, head), "dtype": dtype}
    key = key_of(about)
    builder = CacheFolder(
        (cache_dir or default_cache_dir()) / key[:32],
        (len(views), views.augmentation.views, *head_of(dual, head).neck_shape),
        np.dtype(dtype),
        world,
    )
    # Asked of all: a process that sees it complete must not leave the others waiting.
    if world.any(not builder.complete.is_file()):
        missing = builder.missing() * views.augmentation.views
        run = runner_for(
            dual, views.preprocessing, world.device, head, features_by, missing,
            say if world.is_main else _unsaid,
        )  # fmt: skip
        with ViewReader(views, workers) as reader:
            builder.build(about, reader, run, progress)
    failed = builder.failed()
    check_failed(views.dataset, failed, strict)
    return FeatureCache(builder.folder, key, builder.open(), failed)


def _unsaid(text: str) -> None:
    del text


def check_failed(dataset: Dataset, failed: Mapping[int, str], strict: bool) -> None:
    """Refuses unreadable images: all of a data set, or any if `strict`.

    Args:
        dataset: of the images.
        failed: index of an unreadable image to the reason.
        strict: whether a single one is too many.

    Raises:
        DataError: naming the first ones and how many.
    """
    if failed and (strict or len(failed) == len(dataset)):
        raise data_error(
            [unread(dataset.samples[index], why) for index, why in failed.items()],
            f"{len(failed)} of {len(dataset)} images of {dataset.path} can't be used",
        )


CHUNK = 64
"""Images that are computed, written and marked as done together."""


class CacheFolder:
    """The folder of one cache: fills it and opens it.

    Args:
        folder: named by the key; made when it is filled.
        shape: [images, views, *neck].
        dtype: float16 or float32, on disk.
        world: the processes that fill it together.
    """

    def __init__(
        self, folder: Path, shape: tuple[int, ...], dtype: np.dtype[Any], world: World
    ) -> None:
        self.folder, self.shape, self.dtype, self.world = folder, shape, dtype, world
        self.file = folder / "features.npy"
        self.complete = folder / "complete.json"

    def build(
        self, about: Mapping[str, Any], reader: ViewReader, run: Runner, progress: bool
    ) -> None:
        """Computes the chunks that aren't marked as done; rank 0 holds the lock."""
        lock = self._lock() if self.world.is_main else None
        try:
            if self.world.is_main:
                self._prepare(about)
            self.world.barrier()
            self._fill(reader, run, progress)
            self.world.barrier()
            if self.world.is_main:
                self._finish()
            self.world.barrier()
        finally:
            if lock is not None:
                lock.release()

    def open(self) -> npt.NDArray[Any]:
        """Maps the file of features.

        Raises:
            StorageError: it isn't what this cache should hold.
        """
        try:
            features = np.load(self.file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as exc:
            raise StorageError(f"{self.file} is damaged; delete {self.folder}") from exc
        if features.shape != self.shape or features.dtype != self.dtype:
            raise StorageError(
                f"{self.file} should hold {self.dtype} {list(self.shape)}, it holds "
                f"{features.dtype} {list(features.shape)}; delete {self.folder}"
            )
        return cast("npt.NDArray[Any]", features)

    def missing(self) -> int:
        """Returns the number of this process's images whose features aren't there yet."""
        return sum(map(len, self._todo().values()))

    def failed(self) -> dict[int, str]:
        """Returns the index of each unreadable image and the reason, of the complete cache.

        Raises:
            StorageError: the file that lists them is damaged.
        """
        return self._read_failed(self.complete)

    def _lock(self) -> FileLock:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / "lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                write_line(f"waiting for another run that fills {self.folder}")
                lock.acquire()
        except OSError as exc:
            raise StorageError(
                f"cannot write {self.folder}: {exc.strerror or exc}; choose another cache folder"
            ) from exc
        return lock

    def _prepare(self, about: Mapping[str, Any]) -> None:
        if self.file.is_file():
            return
        size = int(np.prod(self.shape)) * self.dtype.itemsize
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise StorageError(
                f"the features need {size / 1e6:,.1f} MB, {self.folder} has {free / 1e6:,.1f} MB "
                "left; choose another cache folder, fewer views, or training without a cache"
            )
        shutil.rmtree(self.folder / "done", ignore_errors=True)
        write_text(self.folder / "about.json", json.dumps(about, indent=1))
        with atomic_path(self.file) as temporary:
            np.lib.format.open_memmap(temporary, "w+", self.dtype, self.shape)

    def _marker(self, chunk: int) -> Path:
        return self.folder / "done" / f"{chunk:05d}.json"

    def _fill(self, reader: ViewReader, run: Runner, progress: bool) -> None:
        views = self.shape[1]
        members = self._todo()
        jobs = (Job(i, tuple(range(views))) for c in members for i in members[c])
        total = sum(map(len, self._members().values()))
        stream = reader.read(jobs)
        with Bar(
            total,
            unit="image",
            label="features",
            done=total - sum(map(len, members.values())),
            shown=progress and self.world.is_main,
        ) as bar:
            for chunk in members:
                items = self._counted(islice(stream, len(members[chunk])), bar)
                self._write(chunk, *self._compute(items, run))

    def _members(self) -> dict[int, range]:
        """Returns this process's chunks, each with its images."""
        count = self.shape[0]
        chunks = range(self.world.rank, -(-count // CHUNK), self.world.size)
        return {c: range(c * CHUNK, min((c + 1) * CHUNK, count)) for c in chunks}

    def _todo(self) -> dict[int, range]:
        """Returns those that aren't marked as done."""
        return {c: own for c, own in self._members().items() if not self._marker(c).is_file()}

    @staticmethod
    def _counted(items: Iterator[Decoded], bar: Bar) -> Iterator[Decoded]:
        for item in items:
            yield item
            bar.advance()

    def _compute(
        self, items: Iterator[Decoded], run: Runner
    ) -> tuple[npt.NDArray[Any], dict[int, str]]:
        """Computes rows [images of the chunk, views, *neck]; names the images that failed."""
        rows: list[npt.NDArray[Any]] = []
        failed: dict[int, str] = {}
        for group in grouped(items, self.shape[1]):
            pixels = stack(group)
            made = None if pixels is None else self._stored(run(pixels))
            position = 0
            for item in group:
                if item.pixels is None or made is None:
                    failed[item.job.image] = item.error
                    rows.append(np.zeros(self.shape[1:], self.dtype))
                else:
                    rows.append(made[position : position + self.shape[1]])
                    position += self.shape[1]
        return np.stack(rows), failed

    def _stored(self, made: torch.Tensor) -> npt.NDArray[Any]:
        values = made.to(torch.float16 if self.dtype == np.float16 else torch.float32)
        if not bool(torch.isfinite(values).all()):
            raise ModelError(
                f"features up to {float(made.abs().max()):.3g} don't fit float16 (65504); use a "
                "float32 cache"
            )
        stored: npt.NDArray[Any] = values.cpu().numpy()
        return stored

    def _write(self, chunk: int, rows: npt.NDArray[Any], failed: Mapping[int, str]) -> None:
        offset = cast("np.memmap[Any, Any]", self.open()).offset
        row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        try:
            with self.file.open("r+b") as file:
                file.seek(offset + chunk * CHUNK * row_bytes)
                file.write(np.ascontiguousarray(rows).tobytes())
                file.flush()
                os.fsync(file.fileno())
        except OSError as exc:
            raise StorageError(
                f"cannot write {self.file}: {exc.strerror or exc}; the chunks so far are kept"
            ) from exc
        write_text(self._marker(chunk), json.dumps(failed))

    def _finish(self) -> None:
        failed: dict[int, str] = {}
        for chunk in range(-(-self.shape[0] // CHUNK)):
            failed.update(self._read_failed(self._marker(chunk)))
        write_text(self.complete, json.dumps(failed))

    def _read_failed(self, file: Path) -> dict[int, str]:
        try:
            return {int(i): str(why) for i, why in json.loads(file.read_text()).items()}
        except (OSError, ValueError, AttributeError) as exc:
            raise StorageError(f"{file} is damaged; delete {self.folder}") from exc
