"""Features of every view of every image, computed once and kept on disk.

The backbone is frozen, so what the trained part of the head sees of a view never
changes. A cache is one folder, named by its key:

    about.json      what the key stands for
    features.npy    [images, views, *neck], memory-mapped when read
    done/00012.json chunk 12 (64 images) is on disk, and which of its images failed
    complete.json   everything is
    lock            held by the process that fills it

The files of one feature cache, filled chunk by chunk.

A chunk is written, flushed to the disk, and only then marked as done, so what a crash
interrupted is computed again. The rows are written through the file, not through a
mapping: on a full disk a mapping dies with SIGBUS instead of an error.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from sigcam.classifier.dual_branch import DualBranch, tensors_sha256
from sigcam.core.errors import DataError, ModelError, StorageError
from sigcam.core.files import atomic_path, cache_folder, write_text
from sigcam.core.spec import Preprocessing
from sigcam.train.augment import Augmentation
from sigcam.train.data import ImageList
from sigcam.train.distributed import World
from sigcam.train.views import (
    Decoded,
    HeadName,
    Job,
    StemRunner,
    ViewReader,
    grouped,
    head_of,
    stack,
)

FORMAT = 2  # 2: whole factors are powers of two; large JPEGs are decoded smaller
CacheType = Literal["float16", "float32"]


def default_cache_dir() -> Path:
    """$SIGCAM_CACHE_DIR, or the platform's folder for this user's caches; `features` in it."""
    return cache_folder("features")


@dataclass(frozen=True)
class FeatureCache:
    """A complete cache.

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


def describe(
    dual: DualBranch,
    data: ImageList,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    head: HeadName = "sigmoid",
) -> dict[str, Any]:
    """Everything that the neck's outputs depend on, ready for JSON.

    The backbone counts by its tensors and by the code of its graph (two networks may
    have the same tensors and another stride).
    """
    shape = asdict(preprocessing)
    del shape["layout"]  # how the pixels reach the exported graph; the values are the same
    return {
        "format": FORMAT,
        "backbone": tensors_sha256(dual.features.state_dict()),
        "program": _program(dual, head),
        "branch_layer": dual.branch_layer,
        "data": data.fingerprint(),
        "images": len(data),
        "preprocessing": shape,
        "augmentation": asdict(augmentation),
    }


def key_of(about: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a description."""
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
    data: ImageList,
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    world: World,
    *,
    head: HeadName = "sigmoid",
    cache_dir: Path | None = None,
    dtype: CacheType = "float16",
    workers: int | None = None,
    strict: bool = False,
    progress: bool = True,
) -> FeatureCache:
    """Opens the cache for these inputs, computing what it lacks.

    Stored as float16 by default: half the disk and memory traffic (12 views of ImageNet
    are 39 GB instead of 79 GB at 1,280 channels), and its rounding (2^-11 relative) is far
    below the difference between two views. With several processes each computes its
    share of the chunks. Other runs that want the same cache wait.

    Args:
        dual: its backbone must be on `world.device`.
        data: which images.
        preprocessing: how they are prepared.
        augmentation: which views.
        world: the processes of this run.
        head: whose neck it is; the two differ where a dropout stands before a reshaping,
            and share one cache elsewhere.
        cache_dir: folder of all caches; `default_cache_dir()` when None.
        dtype: "float16" or "float32" on disk.
        workers: decoding threads; `default_workers()` when None.
        strict: whether an unreadable image is an error. If not, it is left out and listed.
        progress: whether a progress bar is shown on standard error.

    Raises:
        DataError: missing images; every image unreadable, or one with `strict`.
        ModelError: features that aren't finite, or too large for float16.
        StorageError: the cache can't be written, or is damaged.
    """
    about = {**describe(dual, data, preprocessing, augmentation, head), "dtype": dtype}
    key = key_of(about)
    builder = CacheFolder(
        (cache_dir or default_cache_dir()) / key[:32],
        (len(data), augmentation.views, *head_of(dual, head).neck_shape),
        np.dtype(dtype),
        world,
    )
    # Asked of all: a process that sees it complete must not leave the others waiting.
    if world.any(not builder.complete.is_file()):
        with ViewReader(data, preprocessing, augmentation, workers) as reader:
            builder.build(
                about, reader, StemRunner(dual, preprocessing, world.device, head), progress
            )
    failed = builder.failed()
    check_failed(data, failed, strict)
    return FeatureCache(builder.folder, key, builder.open(), failed)


def check_failed(data: ImageList, failed: Mapping[int, str], strict: bool) -> None:
    """Refuses unreadable images: all of a set, or any if `strict`.

    Raises:
        DataError: naming the first ones and how many.
    """
    if failed and (strict or len(failed) == len(data)):
        shown = "; ".join(list(failed.values())[:3])
        raise DataError(
            f"{len(failed)} of {len(data)} images of {data.root} can't be used: {shown}"
        )


CHUNK = 64
"""Images that are computed, written and marked as done together."""


class CacheFolder:
    """One cache's folder, to be filled and opened.

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
        self, about: Mapping[str, Any], reader: ViewReader, run: StemRunner, progress: bool
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
        """The mapped file.

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

    def failed(self) -> dict[int, str]:
        """Index of an unreadable image to the reason, of the complete cache.

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
                tqdm.write(f"waiting for another run that fills {self.folder}", file=sys.stderr)
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

    def _fill(self, reader: ViewReader, run: StemRunner, progress: bool) -> None:
        count, views = self.shape[:2]
        chunks = range(self.world.rank, -(-count // CHUNK), self.world.size)
        todo = [chunk for chunk in chunks if not self._marker(chunk).is_file()]
        members = {c: range(c * CHUNK, min((c + 1) * CHUNK, count)) for c in todo}
        jobs = (Job(i, tuple(range(views))) for c in todo for i in members[c])
        total = sum(len(range(c * CHUNK, min((c + 1) * CHUNK, count))) for c in chunks)
        stream = reader.read(jobs)
        with tqdm(
            total=total,
            initial=total - sum(map(len, members.values())),
            desc="features",
            unit="image",
            disable=not (progress and self.world.is_main),
        ) as bar:
            for chunk in todo:
                items = self._counted(islice(stream, len(members[chunk])), bar)
                self._write(chunk, *self._compute(items, run))

    @staticmethod
    def _counted(items: Iterator[Decoded], bar: tqdm[Any]) -> Iterator[Decoded]:
        for item in items:
            yield item
            bar.update()

    def _compute(
        self, items: Iterator[Decoded], run: StemRunner
    ) -> tuple[npt.NDArray[Any], dict[int, str]]:
        """Rows [images of the chunk, views, *neck] and the images that failed."""
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
