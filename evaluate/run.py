"""`evaluate_artifacts`: runs several artifacts over the same images.

Images are read and changed (for the faithfulness metrics), and CAMs are scored, in threads while
the backends run, one artifact after the other on each batch, in the caller's thread.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from sigcam.core.annotations import check_fields, checked
from sigcam.core.cpus import usable_cpus
from sigcam.core.errors import DataError, UsageError
from sigcam.core.progress import Report, reporter
from sigcam.core.threads import Stopwatch, ahead, in_order
from sigcam.core.types import Array
from sigcam.data import Dataset, Problem, Sample, match_classes
from sigcam.data.dataset import data_error, problem
from sigcam.evaluate.faithfulness.insertion_deletion import STEPS
from sigcam.evaluate.faithfulness.measure import check_faithfulness
from sigcam.evaluate.gallery import Gallery, make_gallery
from sigcam.evaluate.localization.box_accuracy import threshold_index
from sigcam.evaluate.model import (
    ArtifactInfo,
    EvaluatedModel,
    names_of,
    preprocessings_of,
)
from sigcam.evaluate.results.records import empty_record
from sigcam.evaluate.results.store import EvaluationStore
from sigcam.evaluate.scoring import Scoring
from sigcam.evaluate.stages import (
    ChangedSample,
    MeasuredSample,
    PredictedSample,
    ReadSample,
    change_sample,
    measure_batches,
    predict_batches,
    read_sample,
    score_sample,
)
from sigcam.images.upsample import Interpolation
from sigcam.runtime.backends.base import BackendOptions


@dataclass(frozen=True)
class EvaluateOptions:
    """How artifacts are evaluated.

    Attributes:
        backend: the name of the backend that runs them, as for `sigcam.load`.
        backend_options: what that backend is asked for.
        batch_size: images in one run of the backend.
        workers: threads that read images, as many that score CAMs, and twice as many that
            change images for the faithfulness metrics.
        threshold: share of a heatmap's maximum at which GT-known and Top-1 Loc draw their
            boxes, a multiple of 0.001 in [0, 1).
        tolerance: how many pixels beside the object the pointing game still counts as a hit,
            on the protocol's square of 224 pixels.
        interpolation: how CAMs are enlarged to heatmaps: "bicubic", as the protocol of Choe et al.
            2020 does, or "bilinear", as its authors' code does for gradient maps.
        faithfulness: the faithfulness metrics that are measured, of `measure.FAITHFULNESS`.
        steps: in how many steps insertion and deletion change an image.
        skip_bad: whether to go on without images that can't be decoded.

    Raises:
        UsageError: unknown faithfulness metrics, or a number out of range.

    >>> EvaluateOptions(faithfulness=("confidence", "road")).steps
    224
    """

    backend: str = "auto"
    backend_options: BackendOptions = field(default_factory=BackendOptions)
    batch_size: int = 8
    workers: int = field(default_factory=lambda: max(1, usable_cpus() // 2))
    threshold: float = 0.2
    tolerance: float = 0.0
    interpolation: Interpolation = "bicubic"
    faithfulness: tuple[str, ...] = ("confidence",)
    steps: int = STEPS
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_faithfulness(self.faithfulness)
        threshold_index(self.threshold)
        if self.tolerance < 0:
            raise UsageError(f"tolerance must be >= 0 pixels, got {self.tolerance}")
        for name in ("batch_size", "workers", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")

    def for_records(self) -> dict[str, Any]:
        """Returns the options that the records depend on, ready for JSON."""
        return {
            "backend": self.backend,
            "precision": self.backend_options.precision,
            "threshold": self.threshold,
            "tolerance": self.tolerance,
            "interpolation": self.interpolation,
            "faithfulness": sorted(self.faithfulness),
            "steps": self.steps,
        }


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A finished evaluation.

    Attributes:
        dataset: the samples, in the order of the records; its problems include images that
            couldn't be read (their records are empty and count nowhere).
        artifacts: the artifacts, in the order given.
        records: the records of each artifact, [P], one for each sample; see `records.RECORD`.
        options: how the artifacts were evaluated.
        asked: the options that the records depend on, ready for JSON.
        seconds: how long this run took, without what an earlier one did.
        backend_seconds: how long of that a backend ran.
        resumed: how many images an earlier run had done.
        gallery: the images that a report shows.
    """

    dataset: Dataset
    artifacts: tuple[ArtifactInfo, ...]
    records: tuple[Array, ...]
    options: EvaluateOptions
    asked: dict[str, Any]
    seconds: float
    backend_seconds: float
    resumed: int
    gallery: Gallery


@checked
def evaluate_artifacts(
    paths: Sequence[str | Path],
    dataset: Dataset,
    folder: str | Path,
    options: EvaluateOptions | None = None,
    *,
    progress: Report | None = None,
) -> Evaluation:
    """Evaluates artifacts on a data set.

    Args:
        paths: the artifacts' files; the first one is what the others are compared with.
        dataset: what `sigcam.data.open_dataset` returned.
        folder: where the records are written. An evaluation of the same files and options that
            was interrupted there goes on.
        options: how they are evaluated; `EvaluateOptions()` when None.
        progress: called with the number of images done and of all images.

    Returns:
        The records and what they are of. `reports.summarise` makes numbers of them.

    Raises:
        UsageError: options that contradict each other; another evaluation in the folder.
        ArtifactError, BackendUnavailableError: an artifact that can't be loaded.
        DataError: classes that don't fit the model, nothing to evaluate, or images that
            can't be read (with `skip_bad`, those are left out).
        BackendError: a backend failed.
        StorageError: the records can't be written.
    """
    options, folder = options or EvaluateOptions(), Path(folder)
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        models = open_models(stack, paths, options, stopwatch)
        dataset = shared_classes(dataset, models, options)
        asked = options.for_records()
        store = EvaluationStore(folder, models, dataset, asked)
        resumed, start = store.done(), time.perf_counter()
        _write_records(models, dataset, store, options, reporter(progress or False, "evaluate"))
        seconds = time.perf_counter() - start, stopwatch.seconds  # without the gallery
        records = tuple(file.read() for file in store.files)
        gallery = make_gallery(models, dataset, records[0], options.threshold)
        dataset = replace(dataset, problems=(*dataset.problems, *store.problems()))
        infos = tuple(model.info() for model in models)
    return Evaluation(dataset, infos, records, options, asked, *seconds, resumed, gallery)


def open_models(
    stack: ExitStack, paths: Sequence[str | Path], options: EvaluateOptions, stopwatch: Stopwatch
) -> list[EvaluatedModel]:
    """Opens the artifacts of an evaluation.

    Args:
        stack: what closes them.
        paths: the artifacts' files, at least one.
        options: the backend and what it is asked for.
        stopwatch: what all of the backends' seconds are added to.

    Raises:
        UsageError: no file, or one that is named twice.
        ArtifactError, BackendUnavailableError: an artifact that can't be loaded.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise UsageError("at least one artifact is needed, got none")
    return [
        stack.enter_context(
            EvaluatedModel(name, file, options.backend, options.backend_options, stopwatch)
        )
        for name, file in zip(names_of(files), files, strict=True)
    ]


def shared_classes(
    dataset: Dataset, models: Sequence[EvaluatedModel], options: EvaluateOptions
) -> Dataset:
    """Returns the data set with the models' class ids, which have to be the same for all.

    Of multi-label artifacts every class of an image is measured, so the image is there once for
    each, with that class's boxes and masks.

    Args:
        dataset: as `open_dataset` returns it.
        models: the artifacts.
        options: whether images of other classes are left out.

    Raises:
        UsageError: artifacts of different classes or tasks; multi-label ones that choose their
            classes themselves, where the images have classes.
        DataError: classes that don't fit the model, several of one image where the task has one,
            or nothing to evaluate.
    """
    first = models[0].spec
    for model in models[1:]:
        same = model.spec.num_classes == first.num_classes
        names = model.spec.class_names, first.class_names
        if not same or (all(names) and names[0] != names[1]):
            raise UsageError(
                f"{model.name} has other classes ({model.spec.num_classes}) than {models[0].name} "
                f"({first.num_classes}); evaluate artifacts of the same classes together"
            )
        if model.spec.task != first.task:
            raise UsageError(
                f"the task of {model.name} is {model.spec.task}, that of {models[0].name} "
                f"{first.task}; evaluate artifacts of the same task together"
            )
    matched = match_classes(dataset, first.num_classes, first.class_names, options.skip_bad)
    if not matched.samples:
        raise DataError(f"{dataset.name} has no samples to evaluate")
    return _by_class(matched, models)


def _by_class(dataset: Dataset, models: Sequence[EvaluatedModel]) -> Dataset:
    """Returns the data set with a sample for each class of an image, for multi-label artifacts."""
    if not models[0].is_multi_label:
        if any(sample.further for sample in dataset.samples):
            _ = dataset.labels  # names the images
        return dataset
    for model in models:
        if not model.takes_class_ids and any(one.label is not None for one in dataset.samples):
            raise UsageError(
                f"{model.name} is multi-label and chooses its classes itself, and the map of every "
                "class of an image is measured; export it with `sigcam export --classes input`"
            )
    samples = [one for sample in dataset.samples for one in sample.by_class]
    note = f"{len(dataset)} images, measured once for each of their classes: {len(samples)} maps"
    notes = (*dataset.notes, note) if len(samples) > len(dataset) else dataset.notes
    return replace(dataset, samples=samples, notes=notes)


def _write_records(
    models: Sequence[EvaluatedModel],
    dataset: Dataset,
    store: EvaluationStore,
    options: EvaluateOptions,
    progress: Report,
) -> None:
    """Writes the records that are missing."""
    samples = islice(iter(dataset.samples), store.done(), None)

    def rows() -> Generator[list[Array], None, None]:
        with closing(_scored(models, samples, options)) as scored:
            for read, records in scored:
                if read.error is not None:
                    store.add_problem(_unread(read, dataset, options))
                yield records or [empty_record()] * len(models)

    store.fill(rows(), len(dataset), progress)


def _scored(
    models: Sequence[EvaluatedModel], samples: Iterable[Sample], options: EvaluateOptions
) -> Generator[tuple[ReadSample, list[Array]], None, None]:
    """Yields the samples with their records, which are none where an image can't be read.

    The backends run in the caller's thread, and what needs none of them in others: reading,
    changing images, scoring. While the backends run on a batch's changed images, threads make
    those of the next; two batches of them, and one for each thread, are held at most.
    """
    preprocessings = preprocessings_of(models)
    batch_size, workers = options.batch_size, options.workers
    depth = 2 * batch_size
    scoring = Scoring(options.threshold, options.tolerance, options.interpolation)

    def read(sample: Sample) -> ReadSample:
        return read_sample(sample, preprocessings)

    def change(sample: PredictedSample) -> ChangedSample:
        return change_sample(sample, models, options.faithfulness, options.interpolation)

    def score(sample: MeasuredSample) -> tuple[ReadSample, list[Array]]:
        return sample.read, score_sample(sample, models, scoring)

    images = ahead(in_order(read, samples, workers, "sigcam-read"), depth, "sigcam-feed")
    predicted = predict_batches(images, models, batch_size)
    # ROAD's images take longer than all else: by default they get a thread for each core.
    changed = in_order(change, predicted, 2 * workers, "sigcam-change", batch_size)
    measured = measure_batches(changed, models, batch_size, options.faithfulness, options.steps)
    scored = in_order(score, measured, workers, "sigcam-score", depth)
    with closing(images), closing(predicted), closing(changed), closing(measured):
        yield from scored


def _unread(read: ReadSample, dataset: Dataset, options: EvaluateOptions) -> Problem:
    """Returns the problem of an image that can't be read, or raises it without `skip_bad`."""
    found = problem(read.sample.place, f"{read.sample.name} can't be read: {read.error}")
    if not options.skip_bad:
        raise data_error([found], f"{dataset.name} has an image that can't be read; skip bad ones")
    return found
