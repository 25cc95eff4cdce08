"""Evaluates artifacts on mosaics: images of different classes side by side in one.

A mosaic says where each class is without any annotation but the images' own classes, so any
labelled folder will do. Only images that every artifact classifies right, by themselves, are put
into mosaics; the metric is in `localization/grid_pointing.py`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from sigcam.core.errors import DataError, UsageError
from sigcam.core.files import check_writable, write_text
from sigcam.core.progress import Report, reporter
from sigcam.core.spec import Preprocessing
from sigcam.core.threads import Stopwatch, ahead, in_order
from sigcam.core.types import Array
from sigcam.data import Dataset, Problem, Sample
from sigcam.data.dataset import data_error, problem
from sigcam.evaluate.gallery import Gallery, GalleryImage, gallery_of, overlay_jpeg
from sigcam.evaluate.localization.grid_pointing import tile_rectangle, tile_shares
from sigcam.evaluate.model import EvaluatedModel, preprocessings_of
from sigcam.evaluate.results.records import empty_record
from sigcam.evaluate.results.store import EvaluationStore, check_folder, fingerprint
from sigcam.evaluate.run import EvaluateOptions, Evaluation, open_models, shared_classes
from sigcam.evaluate.stages import read_sample
from sigcam.images.pixels import pixel_format
from sigcam.images.preprocess import place, read_input

_RIGHT = "right.json"
"""The file that keeps which images every artifact classifies right."""


@dataclass(frozen=True)
class MosaicOptions:
    """How mosaics are made.

    Attributes:
        side: tiles in a row: 2 for mosaics of 2 x 2, 3 for 3 x 3; 2 to 8.
        count: most mosaics that are made; None for as many as there are with each image in
            one of them at most.
        min_right: the smallest share of the images that all artifacts must classify right, 0
            to 1. A multi-label artifact is right where the image's class has a probability of 0.5
            or more.
        seed: what images are drawn with.

    Raises:
        UsageError: a number out of range.

    >>> MosaicOptions(side=3).tiles
    9
    """

    side: int = 2
    count: int | None = None
    min_right: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.side <= 8:
            raise UsageError(f"a mosaic must have 2 to 8 tiles in a row, got {self.side}")
        if self.count is not None and self.count < 1:
            raise UsageError(f"at least one mosaic must be made, got {self.count}")
        if not 0 <= self.min_right <= 1:
            raise UsageError(f"min_right must be in [0, 1], got {self.min_right}")
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed}")

    @property
    def tiles(self) -> int:
        """Returns the number of tiles in a mosaic."""
        return self.side * self.side


@dataclass(frozen=True, slots=True, eq=False)
class Mosaic(Sample):
    """Images of different classes that stand for one image.

    Attributes:
        tiles: the images, row after row from the top left.
    """

    tiles: tuple[Sample, ...] = ()

    @property
    def side(self) -> int:
        """Returns the number of tiles in a row."""
        return math.isqrt(len(self.tiles))


def make_mosaics(samples: Sequence[Sample], options: MosaicOptions) -> list[Mosaic]:
    """Puts images together, each in one mosaic at most, all of a mosaic of different classes.

    Each mosaic takes an image of those classes that have most of them left, so that as many
    mosaics come out as can; the seed decides among equals, and which image of a class it is.

    Args:
        samples: the images, with classes.
        options: size and number of mosaics, and the seed.

    Raises:
        DataError: fewer classes than tiles.

    Example:
        >>> from sigcam.data import Place
        >>> place = Place(Path("labels.csv"))
        >>> samples = [Sample(f"{i}.png", Path(f"{i}.png"), place, i % 5) for i in range(10)]
        >>> made = make_mosaics(samples, MosaicOptions(side=2))
        >>> len(made), len({tile.label for tile in made[0].tiles})
        (2, 4)
    """
    random = np.random.default_rng(options.seed)
    left: dict[int, list[Sample]] = {}
    for index in random.permutation(len(samples)):
        sample = samples[int(index)]
        if sample.label is not None:
            left.setdefault(sample.label, []).append(sample)
    if len(left) < options.tiles:
        raise DataError(
            f"a mosaic of {options.side} x {options.side} needs images of {options.tiles} "
            f"classes, got {len(left)} (of classified images, those that are classified right); "
            "take smaller mosaics or data of more classes"
        )
    made: list[Mosaic] = []
    while options.count is None or len(made) < options.count:
        order = {int(label): rank for rank, label in enumerate(random.permutation(sorted(left)))}
        fullest = sorted(left, key=lambda label: (-len(left[label]), order[label]))
        chosen = fullest[: options.tiles]
        if not left[chosen[-1]]:
            break
        tiles = [left[label].pop() for label in chosen]
        made.append(_mosaic([tiles[int(i)] for i in random.permutation(len(tiles))]))
    return made


def evaluate_mosaics(
    paths: Sequence[str | Path],
    dataset: Dataset,
    folder: str | Path,
    mosaic: MosaicOptions | None = None,
    options: EvaluateOptions | None = None,
    *,
    progress: Report | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluates artifacts by the grid pointing game.

    Args:
        paths: the artifacts' files, exported with `--classes input`; the first one is what the
            others are compared with.
        dataset: labelled images, from `sigcam.data.open_dataset`.
        folder: where the records are written. An evaluation of the same files and options that
            was interrupted there goes on.
        mosaic: how mosaics are made; `MosaicOptions()` when None.
        options: how the artifacts are run; `EvaluateOptions()` when None. Faithfulness and its
            steps, threshold, tolerance and interpolation don't count here.
        progress: called with the number of mosaics done and of all mosaics.
        say: is told in words how many images were left; None tells nobody.

    Returns:
        The records and what they are of: the data set's samples are mosaics.

    Raises:
        UsageError: artifacts that make no CAMs of named classes or have other classes than each
            other; another evaluation in the folder.
        DataError: images without classes, too few that are classified right, fewer classes
            than tiles, or images that can't be read (with `skip_bad`, those are left out).
        ArtifactError, BackendUnavailableError, BackendError, StorageError: as
            `evaluate_artifacts`.
    """
    mosaic, folder = mosaic or MosaicOptions(), Path(folder)
    options = replace(options or EvaluateOptions(), faithfulness=())
    stopwatch = Stopwatch()
    with ExitStack() as stack:
        models = open_models(stack, paths, options, stopwatch)
        _check_classes(models)
        dataset = shared_classes(_of_one_class(dataset), models, options)
        asked = {
            "backend": options.backend,
            "precision": options.backend_options.precision,
            "mosaic": asdict(mosaic),
        }
        check_folder(folder, models, asked)
        samples, problems = _classified_right(models, dataset, folder, options)
        _check_right(len(samples), dataset, mosaic)
        made = make_mosaics(samples, mosaic)
        note = (
            f"{len(samples)} of {len(dataset)} images are classified right by all artifacts; "
            f"{len(made)} mosaics of {mosaic.side} x {mosaic.side}"
        )
        if say is not None:
            say(note)
        mosaics = replace(
            dataset,
            samples=list[Sample](made),
            problems=(*dataset.problems, *problems),
            notes=(*dataset.notes, note),
        )
        store = EvaluationStore(folder, models, mosaics, asked)
        resumed, start = store.done(), time.perf_counter()
        report = reporter(progress or False, "evaluate")
        store.fill(_scored(models, made[resumed:], options), len(made), report)
        seconds = time.perf_counter() - start, stopwatch.seconds
        records = tuple(file.read() for file in store.files)
        gallery = _gallery(models, made, records[0])
        infos = tuple(model.info() for model in models)
    return Evaluation(mosaics, infos, records, options, asked, *seconds, resumed, gallery)


def mosaic_input(mosaic: Mosaic, preprocessing: Preprocessing) -> Array:
    """Reads a mosaic as a network's input: each image by the resize rule, at its tile's size.

    Args:
        mosaic: the images.
        preprocessing: of the network, to raw pixels.

    Returns:
        Raw pixels [height, width, n].

    Raises:
        ImageError: an image that can't be read.
    """
    height, width = preprocessing.height, preprocessing.width
    made = np.empty((height, width, preprocessing.channels), pixel_format(preprocessing).dtype)
    for number, tile in enumerate(mosaic.tiles):
        own = made[tile_rectangle(height, width, number, mosaic.side)]
        own[...] = read_input(tile.path, _tile(preprocessing, *own.shape[:2])).tensor
    return made


def _tile(preprocessing: Preprocessing, height: int, width: int) -> Preprocessing:
    """Returns the preprocessing of one tile: the same share of the image on fewer pixels."""
    resize = preprocessing.resize
    if resize is not None:
        scale = max(height / preprocessing.height, width / preprocessing.width)
        resize = max(height, width, round(resize * scale))
    return replace(preprocessing, height=height, width=width, resize=resize)


def _mosaic(tiles: Sequence[Sample]) -> Mosaic:
    name = " + ".join(tile.name for tile in tiles)
    return Mosaic(name, tiles[0].path, tiles[0].place, tiles=tuple(tiles))


def _of_one_class(dataset: Dataset) -> Dataset:
    """Returns the data set without images of several classes or of none, which are no tiles.

    Raises:
        DataError: there are no others.
    """
    if not dataset.multi_label:
        return dataset
    samples = [sample for sample in dataset.samples if len(sample.labels) == 1]
    others = len(dataset) - len(samples)
    if not samples:
        raise DataError(
            f"{dataset.name} has no image of exactly one class, which the tiles of a mosaic are; "
            "give images of one class each"
        )
    note = f"images of several classes or of none, not used in mosaics: {others}"
    notes = (*dataset.notes, note) if others else dataset.notes
    return replace(dataset, samples=samples, notes=notes)


def _check_classes(models: Sequence[EvaluatedModel]) -> None:
    for model in models:
        if not model.takes_class_ids:
            raise UsageError(
                f"{model.name} chooses its classes itself, and a mosaic asks for the map of each "
                "image's class; export it with `sigcam export --classes input`"
            )


def _check_right(right: int, dataset: Dataset, mosaic: MosaicOptions) -> None:
    if right < mosaic.min_right * len(dataset):
        raise DataError(
            f"{right} of {len(dataset)} images are classified right by all artifacts, fewer "
            f"than the share of {mosaic.min_right:g} that was asked for; a map of a classifier "
            "that is mostly wrong says little. Check that classes and preprocessing fit the "
            "data, or lower the share (--min-right)"
        )


def _classified_right(
    models: Sequence[EvaluatedModel], dataset: Dataset, folder: Path, options: EvaluateOptions
) -> tuple[list[Sample], list[Problem]]:
    """Finds the images that every artifact classifies right, or reads which they were."""
    if any(sample.label is None for sample in dataset.samples):
        raise DataError(
            f"{dataset.name} has images without a class, and a mosaic is made of images of "
            "known classes; give a folder for each class, or a CSV file"
        )
    path = folder / _RIGHT
    what = {
        "artifacts": [model.digest for model in models],
        "backends": [model.backend_name for model in models],
        "precision": options.backend_options.precision,
        "dataset": fingerprint(dataset.samples),
    }
    found = _kept(path, what)
    if found is None:
        check_writable(path)  # before the images are run
        found = []
        for sample, one in zip(dataset.samples, _run_alone(models, dataset, options), strict=True):
            if isinstance(one, str) and not options.skip_bad:
                raise _unreadable(dataset, [problem(sample.place, one)])
            found.append(one)
        write_text(path, json.dumps({**what, "found": found}))
    pairs = list(zip(dataset.samples, found, strict=True))
    problems = [problem(one.place, text) for one, text in pairs if isinstance(text, str)]
    if problems and not options.skip_bad:
        raise _unreadable(dataset, problems)
    return [sample for sample, right in pairs if right is True], problems


def _unreadable(dataset: Dataset, problems: Sequence[Problem]) -> DataError:
    return data_error(problems, f"{dataset.name} has images that can't be read; skip bad ones")


def _kept(path: Path, what: Mapping[str, object]) -> list[bool | str] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(kept, dict) or any(kept.get(key) != value for key, value in what.items()):
        return None
    found: list[bool | str] = kept["found"]
    return found


def _run_alone(
    models: Sequence[EvaluatedModel], dataset: Dataset, options: EvaluateOptions
) -> Iterator[bool | str]:
    """Yields whether all artifacts classify an image right, or why it can't be read."""
    read = partial(read_sample, preprocessings=preprocessings_of(models))
    images = in_order(read, dataset.samples, options.workers, "sigcam-read")
    feed = ahead(images, 2 * options.batch_size, "sigcam-feed")
    with closing(images), closing(feed):
        while batch := list(islice(feed, options.batch_size)):
            good = [one for one in batch if one.error is None]
            labels = [one.sample.label or 0 for one in good]  # all have one
            right = [
                model.predicts([one.inputs[model.raw_preprocessing][0] for one in good], labels)
                for model in (models if good else ())
            ]
            rows = zip(*right, strict=True)
            for one in batch:
                if one.error is not None:
                    yield f"{one.sample.name} can't be read: {one.error}"
                else:
                    yield bool(all(next(rows)))


def _scored(
    models: Sequence[EvaluatedModel], mosaics: Sequence[Mosaic], options: EvaluateOptions
) -> Generator[list[Array], None, None]:
    """Yields each mosaic's records, one for each artifact."""
    preprocessings = preprocessings_of(models)

    def read(mosaic: Mosaic) -> tuple[Mosaic, dict[Preprocessing, Array]]:
        return mosaic, {one: mosaic_input(mosaic, one) for one in preprocessings}

    images = in_order(read, mosaics, options.workers, "sigcam-read")
    feed = ahead(images, 2 * options.batch_size, "sigcam-feed")
    with closing(images), closing(feed):
        while batch := list(islice(feed, options.batch_size)):
            class_ids = np.array(
                [[tile.label for tile in mosaic.tiles] for mosaic, _ in batch], np.int64
            )
            columns = [
                model.cams([inputs[model.raw_preprocessing] for _, inputs in batch], class_ids)
                for model in models
            ]
            for cams in zip(*columns, strict=True):
                yield [score_mosaic(one) for one in cams]


def score_mosaic(cams: Array) -> Array:
    """Returns the record [] of a mosaic's CAMs.

    Args:
        cams: floating [n^2, h, w], of each tile's class over the whole mosaic.

    Example:
        >>> cams = np.zeros((4, 2, 2))
        >>> cams[0, 0, 0] = cams[1, 0, 1] = cams[2, 1, 0] = cams[3, 0, 0] = 1  # the last is wrong
        >>> record = score_mosaic(cams)
        >>> bool(0.5 < record["grid"][0] < 0.75), record["grid"].shape
        (True, (20,))
    """
    side = math.isqrt(len(cams))
    shares = np.stack([tile_shares(cam, tile, side) for tile, cam in enumerate(cams)])
    record = empty_record()
    record["grid"] = shares.mean(axis=0)
    record["valid"] = bool((cams.max(axis=(1, 2)) > 0).all())
    return record


def _gallery(models: Sequence[EvaluatedModel], made: Sequence[Mosaic], records: Array) -> Gallery:
    """Draws the mosaics that the first artifact does best and worst on."""
    values = np.array(records["grid"][:, 0], np.float64)
    return gallery_of(
        "mean share of a map inside its own tile",
        values,
        lambda index: _image(models, made[index], index, float(values[index])),
    )


def _image(
    models: Sequence[EvaluatedModel], mosaic: Mosaic, index: int, score: float
) -> GalleryImage:
    number = index % len(mosaic.tiles)  # a tile of each place in turn
    label = mosaic.tiles[number].label
    captions, overlays = [], []
    for model in models:
        pixels = mosaic_input(mosaic, model.raw_preprocessing)
        [[cam]] = model.cams([pixels], np.array([[label]], np.int64))
        share = tile_shares(cam, number, mosaic.side)[0]
        name = model.spec.label(label) if label is not None else ""
        captions.append(f"heatmap of {name}, tile {number + 1}: {share:.0%} inside")
        height, width = pixels.shape[:2]
        plain = replace(model.raw_preprocessing, rule="stretch", resize=None)
        rows, columns = tile_rectangle(height, width, number, mosaic.side)
        corners = (columns.start, rows.start, columns.stop - 1, rows.stop - 1)
        overlays.append(overlay_jpeg(pixels, cam, place(plain, height, width), [corners]))
    return GalleryImage(mosaic.name, score, tuple(captions), tuple(overlays))


__all__ = [
    "Mosaic",
    "MosaicOptions",
    "evaluate_mosaics",
    "make_mosaics",
    "mosaic_input",
    "score_mosaic",
]
