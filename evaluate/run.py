"""`evaluate`: several artifacts over the same images, in one run.

Images are read and changed (for the faithfulness metrics), and maps are scored, in threads while the
backends run, one artifact after the other on each batch, in the caller's thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from sigcam.core.errors import DataError, UsageError
from sigcam.core.threads import Stopwatch, ahead, in_order
from sigcam.core.types import Array
from sigcam.data import Dataset, Sample, match_classes
from sigcam.data.dataset import data_error, problem
from sigcam.evaluate.faithfulness.insertion_deletion import STEPS
from sigcam.evaluate.faithfulness.measure import check_faithfulness
from sigcam.evaluate.gallery import Gallery, make_gallery
from sigcam.evaluate.model import Model, names_of
from sigcam.evaluate.results.records import empty_record
from sigcam.evaluate.results.store import State
from sigcam.evaluate.stages import (
    Answered,
    Changed,
    Measured,
    Read,
    answer_batches,
    change_images,
    measure_batches,
    read_sample,
    score_answers,
)
from sigcam.runtime.backends.base import BackendOptions

Report = Callable[[int, int], None]

_WRITTEN_AT_ONCE = 64
"""Images whose records are written together; so many are done again after an interruption."""


@dataclass(frozen=True)
class EvaluateOptions:
    """How artifacts are evaluated.

    Attributes:
        backend: backend, as for `sigcam.load`.
        backend_options: its options.
        batch_size: images in one run of the backend.
        workers: threads that read images, as many that score maps, and twice as many that
            change images for the faithfulness metrics.
        threshold: the fixed threshold of boxes, a multiple of 0.001 in [0, 1).
        tolerance: of the pointing game, in pixels of the protocol's square of 224.
        faithfulness: which of `faithfulness.FAITHFULNESS` are measured.
        steps: of insertion and deletion.
        skip_bad: go on without images that can't be decoded.
    """

    backend: str = "auto"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    batch_size: int = 8
    workers: int = max(1, (os.cpu_count() or 2) // 2)
    threshold: float = 0.2
    tolerance: float = 0.0
    faithfulness: tuple[str, ...] = ("confidence",)
    steps: int = STEPS
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_faithfulness(self.faithfulness)
        for name in ("batch_size", "workers", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ArtifactInfo:
    """What a report says of an artifact: its name, file, spec as JSON, digest and backend."""

    name: str
    path: Path
    digest: str
    backend: str
    spec: dict[str, Any]
    asks: bool


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished run.

    Attributes:
        dataset: the samples, in the order of the records; its problems include images that
            couldn't be read (their records are empty and count nowhere).
        artifacts: in the order given.
        records: of each artifact, [P].
        options: of the run.
        seconds: of this run, without what an earlier one did.
        backend_seconds: those in which a backend ran.
        resumed: images that an earlier run had done.
        gallery: images to show.
    """

    dataset: Dataset
    artifacts: tuple[ArtifactInfo, ...]
    records: tuple[Array, ...]
    options: EvaluateOptions
    seconds: float
    backend_seconds: float
    resumed: int
    gallery: Gallery


def evaluate(
    models: Sequence[str | Path],
    dataset: Dataset,
    folder: str | Path,
    options: EvaluateOptions | None = None,
    *,
    progress: Report | None = None,
) -> Evaluation:
    """Evaluates artifacts on a data set.

    Args:
        models: paths of artifacts; the first one is what the others are compared with.
        dataset: from `open_dataset`.
        folder: for the records; an evaluation of the same files and options that was
            interrupted there goes on.
        options: how.
        progress: called with the images done and all.

    Raises:
        UsageError: options that contradict each other; another evaluation in the folder.
        ArtifactError, BackendUnavailableError: an artifact that can't be loaded.
        DataError: classes that don't fit the model, nothing to evaluate, or images that
            can't be read (with `skip_bad`, those are left out).
        BackendError: a backend failed.
        StorageError: the records can't be written.
    """
    options, folder = options or EvaluateOptions(), Path(folder)
    paths = [Path(path) for path in models]
    if not paths:
        raise UsageError("at least one artifact is needed, got none")
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        opened = [
            stack.enter_context(
                Model(name, path, options.backend, options.backend_options, stopwatch)
            )
            for name, path in zip(names_of(paths), paths, strict=True)
        ]
        dataset = _matched(dataset, opened, options)
        state = State(folder, opened, dataset, described(options))
        resumed, start = state.done(), time.perf_counter()
        _run(opened, dataset, state, options, progress or _silent)
        seconds = time.perf_counter() - start, stopwatch.seconds  # without the gallery
        records = tuple(file.read() for file in state.files)
        gallery = make_gallery(opened, dataset, records[0], options.threshold)
        dataset = replace(dataset, problems=(*dataset.problems, *state.problems()))
        infos = tuple(
            ArtifactInfo(
                one.name, one.path, one.digest, one.backend_name, json.loads(one.spec.to_json()),
                one.asks,
            )
            for one in opened
        )  # fmt: skip
    return Evaluation(dataset, infos, records, options, *seconds, resumed, gallery)


def _silent(done: int, total: int) -> None:
    del done, total


def _matched(dataset: Dataset, models: Sequence[Model], options: EvaluateOptions) -> Dataset:
    """The data set with the models' class ids, which have to be the same."""
    first = models[0].spec
    for model in models[1:]:
        same = model.spec.num_classes == first.num_classes
        names = model.spec.class_names, first.class_names
        if not same or (all(names) and names[0] != names[1]):
            raise UsageError(
                f"{model.name} has other classes ({model.spec.num_classes}) than {models[0].name} "
                f"({first.num_classes}); evaluate artifacts of the same classes together"
            )
    found = match_classes(dataset, first.num_classes, first.class_names, options.skip_bad)
    if not found.samples:
        raise DataError(f"{dataset.name} has no samples to evaluate")
    return found


def described(options: EvaluateOptions) -> dict[str, Any]:
    """The options that the records depend on."""
    return {
        "backend": options.backend,
        "precision": options.backend_options.precision,
        "threshold": options.threshold,
        "tolerance": options.tolerance,
        "faithfulness": sorted(options.faithfulness),
        "steps": options.steps,
    }


def _run(
    models: Sequence[Model],
    dataset: Dataset,
    state: State,
    options: EvaluateOptions,
    progress: Report,
) -> None:
    """Writes the records that are missing."""
    done, total = state.done(), len(dataset)
    progress(done, total)
    samples = islice(iter(dataset.samples), done, None)
    with closing(_scored(models, samples, options)) as scored:
        while chunk := list(islice(scored, _WRITTEN_AT_ONCE)):
            for one, _ in chunk:
                if one.error is not None:
                    state.add_problem(_unread(one, dataset, options))
            empty = [empty_record()] * len(models)
            rows = [records or empty for _, records in chunk]
            state.append([np.stack(column) for column in zip(*rows, strict=True)])
            done += len(chunk)
            progress(done, total)


def _scored(
    models: Sequence[Model], samples: Iterable[Sample], options: EvaluateOptions
) -> Generator[tuple[Read, list[Array]], None, None]:
    """The samples with their records, which are none where an image can't be read.

    The backends run in the caller's thread, and what needs none of them in others: reading,
    changing images, scoring. While the backends run on a batch's changed images, threads make
    those of the next; two batches of them, and one for each thread, are held at most.
    """
    preprocessings = list(dict.fromkeys(model.reading for model in models))
    batch_size, workers = options.batch_size, options.workers
    depth = 2 * batch_size

    def read(sample: Sample) -> Read:
        return read_sample(sample, preprocessings)

    def change(one: Answered) -> Changed:
        return change_images(one, models, options.faithfulness)

    def score(one: Measured) -> tuple[Read, list[Array]]:
        return one.read, score_answers(one, models, options.threshold, options.tolerance)

    images = ahead(in_order(read, samples, workers, "sigcam-read"), depth, "sigcam-feed")
    answered = answer_batches(images, models, batch_size)
    # ROAD's images take longer than all else: by default they get a thread for each core.
    changed = in_order(change, answered, 2 * workers, "sigcam-change", batch_size)
    measured = measure_batches(changed, models, batch_size, options.faithfulness, options.steps)
    scored = in_order(score, measured, workers, "sigcam-score", depth)
    with closing(images), closing(answered), closing(changed), closing(measured):
        yield from scored


def _unread(one: Read, dataset: Dataset, options: EvaluateOptions) -> Any:
    found = problem(one.sample.place, f"{one.sample.name} can't be read: {one.error}")
    if not options.skip_bad:
        raise data_error([found], f"{dataset.name} has an image that can't be read; skip bad ones")
    return found
