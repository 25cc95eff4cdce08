"""Features of every view of every picture, computed once and kept on disk.

The backbone is frozen, so what the trained part of the head sees of a view never
changes. A cache is one folder, named by its key:

    about.json      what the key stands for
    features.npy    [pictures, views, *stem], memory-mapped when read
    done/00012.json chunk 12 (64 pictures) is on disk, and which of its pictures failed
    complete.json   everything is
    lock            held by the process that fills it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sigcam.runtime.errors import DataError
from sigcam.runtime.files import cache_folder
from sigcam.runtime.spec import Geometry
from sigcam.train.augment import Augmentation
from sigcam.train.cache_folder import CacheFolder
from sigcam.train.data import ImageList
from sigcam.train.distributed import World
from sigcam.train.dual_branch import DualBranch
from sigcam.train.fingerprint import tensors_sha256
from sigcam.train.views import HeadName, StemRunner, ViewReader, head_of

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
        features: float16 or float32 [pictures, views, *stem], a read-only mapping of the
            file; rows of unreadable pictures are 0.
        failed: index of an unreadable picture to the reason.
    """

    folder: Path
    key: str
    features: npt.NDArray[Any]
    failed: Mapping[int, str]


def describe(
    dual: DualBranch,
    data: ImageList,
    geometry: Geometry,
    augmentation: Augmentation,
    head: HeadName = "sigmoid",
) -> dict[str, Any]:
    """Everything that the stem's outputs depend on, ready for JSON.

    The backbone counts by its tensors and by the code of its graph (two networks may
    have the same tensors and another stride).
    """
    shape = asdict(geometry)
    del shape["layout"]  # how the pixels reach the exported graph; the values are the same
    return {
        "format": FORMAT,
        "backbone": tensors_sha256(dual.features.state_dict()),
        "program": _program(dual, head),
        "branch_layer": dual.branch_layer,
        "data": data.fingerprint(),
        "pictures": len(data),
        "geometry": shape,
        "augmentation": asdict(augmentation),
    }


def key_of(about: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a description."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _program(dual: DualBranch, head: HeadName) -> str:
    parts = []
    for module in (dual.features, head_of(dual, head).stem):
        for part in module.modules():
            code = getattr(part, "code", None)
            parts.append(code if isinstance(code, str) else repr(part))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def build_cache(
    dual: DualBranch,
    data: ImageList,
    geometry: Geometry,
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
        data: which pictures.
        geometry: how they are prepared.
        augmentation: which views.
        world: the processes of this run.
        head: whose stem it is; the two differ where a dropout stands before a reshaping,
            and share one cache elsewhere.
        cache_dir: folder of all caches; `default_cache_dir()` when None.
        dtype: "float16" or "float32" on disk.
        workers: decoding threads; `default_workers()` when None.
        strict: whether an unreadable picture is an error. If not, it is left out and listed.
        progress: whether a progress bar is shown on standard error.

    Raises:
        DataError: missing pictures; every picture unreadable, or one with `strict`.
        ModelError: features that aren't finite, or too large for float16.
        StorageError: the cache can't be written, or is damaged.
    """
    about = {**describe(dual, data, geometry, augmentation, head), "dtype": dtype}
    key = key_of(about)
    builder = CacheFolder(
        (cache_dir or default_cache_dir()) / key[:32],
        (len(data), augmentation.views, *head_of(dual, head).stem_shape),
        np.dtype(dtype),
        world,
    )
    # Asked of all: a process that sees it complete must not leave the others waiting.
    if world.any(not builder.complete.is_file()):
        with ViewReader(data, geometry, augmentation, workers) as reader:
            builder.build(about, reader, StemRunner(dual, geometry, world.device, head), progress)
    failed = builder.failed()
    check_failed(data, failed, strict)
    return FeatureCache(builder.folder, key, builder.open(), failed)


def check_failed(data: ImageList, failed: Mapping[int, str], strict: bool) -> None:
    """Refuses unreadable pictures: all of a set, or any if `strict`.

    Raises:
        DataError: naming the first ones and how many.
    """
    if failed and (strict or len(failed) == len(data)):
        shown = "; ".join(list(failed.values())[:3])
        raise DataError(
            f"{len(failed)} of {len(data)} pictures of {data.root} can't be used: {shown}"
        )
