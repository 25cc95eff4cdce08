"""`evaluate`: several artifacts over the same pictures, in one run.

Pictures are read and maps are scored in threads while the engines run, one artifact after the
other on each batch, in the caller's thread.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sigcam.evaluate.datasets import Dataset, Sample, match_classes
from sigcam.evaluate.datasets.sample import data_error, problem
from sigcam.evaluate.fidelity import check_fidelity, measure_fidelity
from sigcam.evaluate.gallery import Gallery, make_gallery
from sigcam.evaluate.model import Answer, Model, names_of
from sigcam.evaluate.records import empty_record
from sigcam.evaluate.removal import STEPS
from sigcam.evaluate.scoring import score_picture
from sigcam.evaluate.state import State
from sigcam.runtime.backends.base import BackendOptions
from sigcam.runtime.errors import DataError, ImageError, UsageError
from sigcam.runtime.geometry import Placement
from sigcam.runtime.pipeline import Stopwatch, ahead, in_order
from sigcam.runtime.reading import read_input
from sigcam.runtime.spec import Geometry

Array = npt.NDArray[Any]
Report = Callable[[int, int], None]

_WRITTEN_AT_ONCE = 64
"""Pictures whose records are written together; so many are done again after an interruption."""


@dataclass(frozen=True)
class EvaluateOptions:
    """How artifacts are evaluated.

    Attributes:
        backend: engine, as for `sigcam.load`.
        engine: its options.
        batch_size: pictures in one run of the engine.
        workers: threads that read pictures, and as many that score maps.
        threshold: the fixed threshold of boxes, a multiple of 0.001 in [0, 1).
        tolerance: of the pointing game, in pixels of the protocol's square of 224.
        fidelity: which of `fidelity.FIDELITY` are measured.
        steps: of insertion and deletion.
        skip_bad: go on without pictures that can't be decoded.
    """

    backend: str = "auto"
    engine: BackendOptions = field(default_factory=BackendOptions)
    batch_size: int = 8
    workers: int = max(1, (os.cpu_count() or 2) // 2)
    threshold: float = 0.2
    tolerance: float = 0.0
    fidelity: tuple[str, ...] = ("confidence",)
    steps: int = STEPS
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_fidelity(self.fidelity)
        for name in ("batch_size", "workers", "steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ArtifactInfo:
    """What a report says of an artifact: its name, file, spec as JSON, digest and engine."""

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
        dataset: the samples, in the order of the records; its problems include pictures that
            couldn't be read (their records are empty and count nowhere).
        artifacts: in the order given.
        records: of each artifact, [P].
        options: of the run.
        seconds: of this run, without what an earlier one did.
        engine_seconds: those in which an engine ran.
        resumed: pictures that an earlier run had done.
        gallery: pictures to show.
    """

    dataset: Dataset
    artifacts: tuple[ArtifactInfo, ...]
    records: tuple[Array, ...]
    options: EvaluateOptions
    seconds: float
    engine_seconds: float
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
        progress: called with the pictures done and all.

    Raises:
        UsageError: options that contradict each other; another evaluation in the folder.
        ArtifactError, BackendUnavailableError: an artifact that can't be loaded.
        DataError: classes that don't fit the model, nothing to evaluate, or pictures that
            can't be read (with `skip_bad`, those are left out).
        BackendError: an engine failed.
        StorageError: the records can't be written.
    """
    options, folder = options or EvaluateOptions(), Path(folder)
    paths = [Path(path) for path in models]
    if not paths:
        raise UsageError("at least one artifact is needed, got none")
    engine = Stopwatch()
    with ExitStack() as stack:
        opened = [
            stack.enter_context(Model(name, path, options.backend, options.engine, engine))
            for name, path in zip(names_of(paths), paths, strict=True)
        ]
        dataset = _matched(dataset, opened, options)
        state = State(folder, opened, dataset, described(options))
        resumed, start = state.done(), time.perf_counter()
        _run(opened, dataset, state, options, progress or _silent)
        seconds = time.perf_counter() - start, engine.seconds  # without the gallery
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
        "precision": options.engine.precision,
        "threshold": options.threshold,
        "tolerance": options.tolerance,
        "fidelity": sorted(options.fidelity),
        "steps": options.steps,
    }


@dataclass(frozen=True, eq=False)
class _Read:
    """A sample and its picture as each geometry wants it, or why it can't be read."""

    sample: Sample
    inputs: dict[Geometry, tuple[Array, Placement]]
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class _Answered:
    """A sample with the answers of all artifacts, and what the engine said of changed pictures."""

    read: _Read
    answers: list[tuple[Geometry, Answer, dict[str, float]]]


def _run(
    models: Sequence[Model],
    dataset: Dataset,
    state: State,
    options: EvaluateOptions,
    progress: Report,
) -> None:
    """Writes the records that are missing."""
    done, total = state.done(), len(dataset)
    geometries = list(dict.fromkeys(model.reading for model in models))

    def read(sample: Sample) -> _Read:
        try:
            prepared = {one: read_input(sample.path, one) for one in geometries}
        except ImageError as exc:
            return _Read(sample, {}, exc)
        return _Read(sample, {g: (p.tensor, p.placement) for g, p in prepared.items()})

    def score(one: _Answered) -> tuple[_Read, list[Array]]:
        return one.read, [
            _record(one.read, geometry, answer, changed, options)
            for geometry, answer, changed in one.answers
        ]

    samples = islice(iter(dataset.samples), done, None)
    depth = 2 * options.batch_size
    pictures = ahead(in_order(read, samples, options.workers, "sigcam-read"), depth, "sigcam-feed")
    answered = _answered(pictures, models, options)
    scored = in_order(score, answered, options.workers, "sigcam-score", depth)
    progress(done, total)
    with closing(pictures), closing(answered), closing(scored):
        while chunk := list(islice(scored, _WRITTEN_AT_ONCE)):
            for one, _ in chunk:
                if one.error is not None:
                    state.add_problem(_unread(one, dataset, options))
            empty = [empty_record()] * len(models)
            rows = [records or empty for _, records in chunk]
            state.append([np.stack(column) for column in zip(*rows, strict=True)])
            done += len(chunk)
            progress(done, total)


def _answered(
    pictures: Iterator[_Read], models: Sequence[Model], options: EvaluateOptions
) -> Generator[_Answered, None, None]:
    """Runs the engines, a batch at a time."""
    while batch := list(islice(pictures, options.batch_size)):
        good = [one for one in batch if one.error is None]
        columns = [_of_model(model, good, options) for model in models] if good else []
        answers = iter(zip(*columns, strict=True))
        for one in batch:
            yield _Answered(one, [] if one.error is not None else list(next(answers)))


def _of_model(
    model: Model, batch: Sequence[_Read], options: EvaluateOptions
) -> list[tuple[Geometry, Answer, dict[str, float]]]:
    tensors = [one.inputs[model.reading][0] for one in batch]
    answers = model.answers(tensors, [one.sample.label for one in batch])
    changed = measure_fidelity(model, tensors, answers, options.fidelity, options.steps)
    return [(model.reading, *pair) for pair in zip(answers, changed, strict=True)]


def _record(
    read: _Read,
    geometry: Geometry,
    answer: Answer,
    changed: dict[str, float],
    options: EvaluateOptions,
) -> Array:
    placement = read.inputs[geometry][1]
    record = score_picture(answer, read.sample, placement, options.threshold, options.tolerance)
    for name, value in changed.items():
        record[name] = value
    return record


def _unread(one: _Read, dataset: Dataset, options: EvaluateOptions) -> Any:
    found = problem(one.sample.place, f"{one.sample.name} can't be read: {one.error}")
    if not options.skip_bad:
        raise data_error([found], f"{dataset.name} has a picture that can't be read; skip bad ones")
    return found
