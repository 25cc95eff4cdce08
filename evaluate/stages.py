"""The steps that a sample goes through in an evaluation: read, predict, change, measure, score.

`predict_batches` and `measure_batches` run backends and belong in one thread; the others work on
one sample and may run in several.
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
from sigcam.evaluate.model import EvaluatedModel, Prediction
from sigcam.evaluate.scoring import Scoring, score_image
from sigcam.images.preprocess import Placement, read_input
from sigcam.images.upsample import Interpolation


@dataclass(frozen=True, eq=False)
class ReadSample:
    """A sample whose image was read.

    Attributes:
        sample: the sample.
        inputs: for each preprocessing the image as the network gets it, raw pixels [H, W, n], and
            where that lies in the image; empty where it can't be read.
        error: why the image can't be read; None where it can.
    """

    sample: Sample
    inputs: dict[Preprocessing, tuple[Array, Placement]]
    error: ImageError | None = None


@dataclass(frozen=True, eq=False)
class PredictedSample:
    """A sample with what the artifacts predict.

    Attributes:
        read: the sample and its image.
        predictions: one for each artifact; none where the image can't be read.
    """

    read: ReadSample
    predictions: list[Prediction]


@dataclass(frozen=True, eq=False)
class ChangedSample(PredictedSample):
    """A sample with its image changed as each artifact's heatmap says.

    Attributes:
        changed: one for each artifact; none where the image can't be read.
    """

    changed: list[ChangedImage]


@dataclass(frozen=True, eq=False)
class MeasuredSample(PredictedSample):
    """A sample with what each artifact says of the changed images, which aren't kept.

    Attributes:
        values: for each artifact the fields of its record that `measure_faithfulness` returns;
            none where the image can't be read.
    """

    values: list[dict[str, float]]


def read_sample(sample: Sample, preprocessings: Sequence[Preprocessing]) -> ReadSample:
    """Reads a sample's image as each preprocessing wants it.

    Args:
        sample: the sample.
        preprocessings: each to raw pixels (`Preprocessing.raw`).

    Example:
        >>> from pathlib import Path
        >>> from sigcam.data import Place
        >>> sample = Sample("gone.png", Path("gone.png"), Place(Path("labels.csv"), 2))
        >>> read = read_sample(sample, [Preprocessing()])
        >>> read.inputs, type(read.error).__name__
        ({}, 'ImageError')
    """
    try:
        prepared = {one: read_input(sample.path, one) for one in preprocessings}
    except ImageError as exc:
        return ReadSample(sample, {}, exc)
    return ReadSample(sample, {one: (p.tensor, p.placement) for one, p in prepared.items()})


def predict_batches(
    samples: Iterator[ReadSample], models: Sequence[EvaluatedModel], batch_size: int
) -> Generator[PredictedSample, None, None]:
    """Runs the artifacts on the images, a batch at a time, and yields the samples in order.

    Args:
        samples: the samples, read.
        models: the artifacts.
        batch_size: how many samples are taken at once; those that can't be read aren't run.

    Raises:
        BackendError: a backend failed.

    Example:
        reads = (read_sample(sample, preprocessings) for sample in dataset.samples)
        for predicted in predict_batches(reads, models, batch_size=8):
            [prediction.class_id for prediction in predicted.predictions]  # one for each artifact
    """
    while batch := list(islice(samples, batch_size)):
        good = [read for read in batch if read.error is None]
        labels = [read.sample.label for read in good]
        columns = [
            model.predict([read.inputs[model.raw_preprocessing][0] for read in good], labels)
            for model in (models if good else ())
        ]
        predictions = zip(*columns, strict=True)
        for read in batch:
            yield PredictedSample(read, [] if read.error is not None else list(next(predictions)))


def change_sample(
    sample: PredictedSample,
    models: Sequence[EvaluatedModel],
    faithfulness: Collection[str],
    interpolation: Interpolation = "bicubic",
) -> ChangedSample:
    """Changes a sample's image for every artifact; see `change_image`.

    Args:
        sample: the sample with its predictions.
        models: the artifacts.
        faithfulness: the metrics that the changed images are for.
        interpolation: how CAMs are enlarged.

    Raises:
        UsageError: an image too large for ROAD's imputation.

    Example:
        changed = change_sample(predicted, models, ["road", "insertion"])
    """
    changed = [
        change_image(
            sample.read.inputs[model.raw_preprocessing][0],
            prediction,
            faithfulness,
            interpolation,
        )
        for model, prediction in zip(models, sample.predictions, strict=False)  # none: not read
    ]
    return ChangedSample(sample.read, sample.predictions, changed)


def measure_batches(
    samples: Iterator[ChangedSample],
    models: Sequence[EvaluatedModel],
    batch_size: int,
    faithfulness: Collection[str],
    steps: int,
) -> Generator[MeasuredSample, None, None]:
    """Runs the artifacts on changed images, in the batches of `predict_batches`.

    Args:
        samples: the samples with their changed images.
        models: the artifacts.
        batch_size: how many samples are taken at once.
        faithfulness: the metrics that are measured.
        steps: in how many steps insertion and deletion change an image.

    Raises:
        BackendError: a backend failed.

    Example:
        changed = (change_sample(one, models, ["road"]) for one in predicted)
        for measured in measure_batches(changed, models, 8, ["road"], steps=50):
            [values["road"] for values in measured.values]  # one for each artifact
    """
    while batch := list(islice(samples, batch_size)):
        good = [sample for sample in batch if sample.read.error is None]
        columns = [
            measure_faithfulness(
                model,
                [sample.changed[place] for sample in good],
                [sample.predictions[place] for sample in good],
                faithfulness,
                steps,
            )
            for place, model in enumerate(models)
        ]
        values = zip(*columns, strict=True)
        measured = [
            MeasuredSample(
                sample.read, sample.predictions, list(next(values)) if sample.predictions else []
            )
            for sample in batch
        ]
        del batch, good  # the changed images aren't kept while the next ones are made
        yield from measured


def score_sample(
    sample: MeasuredSample, models: Sequence[EvaluatedModel], scoring: Scoring
) -> list[Array]:
    """Returns a sample's records [], one for each artifact; none where it can't be read.

    Args:
        sample: the sample with its predictions and faithfulness values.
        models: the artifacts.
        scoring: how heatmaps are scored.

    Raises:
        DataError: a mask that can't be read.

    Example:
        records = score_sample(measured, models, scoring)
        [float(record["road"]) for record in records]
    """
    records = []
    for model, prediction, values in zip(models, sample.predictions, sample.values, strict=False):
        placement = sample.read.inputs[model.raw_preprocessing][1]
        record = score_image(prediction, sample.read.sample, placement, scoring)
        for name, value in values.items():
            record[name] = value
        records.append(record)
    return records
