"""The stages of an evaluation: read, answer, change, measure, score. What each passes to the next.

`answer_batches` and `measure_batches` run backends and belong in one thread; the others work on one
image and may run in several.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sigcam.core.errors import ImageError
from sigcam.core.spec import Preprocessing
from sigcam.core.types import Array
from sigcam.data import Sample
from sigcam.evaluate.faithfulness.measure import ChangedImage, change_image, measure_faithfulness
from sigcam.evaluate.model import Answer, Model
from sigcam.evaluate.scoring import score_image
from sigcam.images.preprocess import Placement, read_input


@dataclass(frozen=True, eq=False)
class Read:
    """A sample and its image as each preprocessing wants it, or why it can't be read."""

    sample: Sample
    inputs: dict[Preprocessing, tuple[Array, Placement]]
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class Answered:
    """A sample with the answers of all artifacts: none where it can't be read."""

    read: Read
    answers: list[Answer]


@dataclass(frozen=True, eq=False)
class Changed(Answered):
    """And its image changed as each artifact's map says."""

    changed: list[ChangedImage]


@dataclass(frozen=True, eq=False)
class Measured(Answered):
    """And what each artifact says of the changed ones, which aren't kept: fields of records."""

    values: list[dict[str, float]]


def read_sample(sample: Sample, preprocessings: Sequence[Preprocessing]) -> Read:
    """Reads an image, as uint8 [H, W, 3] for each preprocessing."""
    try:
        prepared = {one: read_input(sample.path, one) for one in preprocessings}
    except ImageError as exc:
        return Read(sample, {}, exc)
    return Read(sample, {g: (p.tensor, p.placement) for g, p in prepared.items()})


def answer_batches(
    images: Iterator[Read], models: Sequence[Model], batch_size: int
) -> Generator[Answered, None, None]:
    """Runs the backends, a batch at a time."""
    while batch := list(islice(images, batch_size)):
        good = [one for one in batch if one.error is None]
        labels = [one.sample.label for one in good]
        columns = [
            model.answers([one.inputs[model.reading][0] for one in good], labels)
            for model in (models if good else ())
        ]
        answers = zip(*columns, strict=True)
        for one in batch:
            yield Answered(one, [] if one.error is not None else list(next(answers)))


def change_images(one: Answered, models: Sequence[Model], faithfulness: Collection[str]) -> Changed:
    """Changes an image for every artifact; see `change_image`."""
    changed = [
        change_image(one.read.inputs[model.reading][0], answer, faithfulness)
        for model, answer in zip(models, one.answers, strict=False)  # none if it can't be read
    ]
    return Changed(one.read, one.answers, changed)


def measure_batches(
    images: Iterator[Changed],
    models: Sequence[Model],
    batch_size: int,
    faithfulness: Collection[str],
    steps: int,
) -> Generator[Measured, None, None]:
    """Runs the backends on changed images, in the batches of `answer_batches`."""
    while batch := list(islice(images, batch_size)):
        good = [one for one in batch if one.read.error is None]
        columns = [
            measure_faithfulness(
                model,
                [one.changed[place] for one in good],
                [one.answers[place] for one in good],
                faithfulness,
                steps,
            )
            for place, model in enumerate(models)
        ]
        values = zip(*columns, strict=True)
        measured = [
            Measured(one.read, one.answers, list(next(values)) if one.answers else [])
            for one in batch
        ]
        del batch, good  # the changed images aren't kept while the next ones are made
        yield from measured


def score_answers(
    one: Measured, models: Sequence[Model], threshold: float, tolerance: float
) -> list[Array]:
    """An image's records, one per artifact."""
    records = []
    for model, answer, values in zip(models, one.answers, one.values, strict=False):
        placement = one.read.inputs[model.reading][1]
        record = score_image(answer, one.read.sample, placement, threshold, tolerance)
        for name, value in values.items():
            record[name] = value
        records.append(record)
    return records
