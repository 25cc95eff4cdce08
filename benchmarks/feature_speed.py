"""Times the features of views for training: PyTorch's eager mode against ONNX Runtime.

    python -m benchmarks.feature_speed --data FOLDER --threads 2

Both fill a feature cache with the views of the same images, decoding and cropping included, and
take turns; the ratio is the median of the ratios within each round. A classifier is taken as it is
("pytorch"), and once more from an ONNX file that was exported of it ("onnx file"), of which ONNX
Runtime runs the file's own front. How long the graph takes to make is told beside it.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch

from sigcam.classifier.build import BuiltClassifier, build_classifier
from sigcam.classifier.zoo import load_model
from sigcam.data import Dataset, open_images
from sigcam.demo.timing import alternate
from sigcam.train.augment import Augmentation
from sigcam.train.distributed import World
from sigcam.train.feature_cache import CacheFolder
from sigcam.train.features_by import Runner, runner_for
from sigcam.train.views import TrainingViews, ViewReader

LEAST = 2.5
ALONE = World(0, 1, torch.device("cpu"))


@click.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A folder of images.",
)
@click.option("--network", default="efficientnet_lite0", show_default=True)
@click.option(
    "--images", type=click.IntRange(1), default=20, show_default=True, help="Of the folder."
)
@click.option(
    "--views", type=click.IntRange(1), default=12, show_default=True, help="Of each image."
)
@click.option(
    "--rounds", type=click.IntRange(1), default=5, show_default=True, help="Fills of each kind."
)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Of either.")
def main(data: Path, network: str, images: int, views: int, rounds: int, threads: int) -> None:
    """Time features by PyTorch and ONNX Runtime: a line for each source."""
    torch.set_num_threads(threads)
    everything = open_images(data)
    chosen = np.linspace(0, len(everything) - 1, images).astype(int)
    some = replace(everything, samples=[everything.samples[i] for i in chosen])
    with tempfile.TemporaryDirectory() as folder:
        for source in ("pytorch", "onnx file"):
            built = _built(network, source, Path(folder))
            _measure(f"{network}, {source}", built, some, views, rounds)


def _built(network: str, source: str, folder: Path) -> BuiltClassifier:
    if source == "pytorch":
        return build_classifier(network, weights="DEFAULT")
    loaded = load_model(network, "DEFAULT")
    own = loaded.preprocessing
    file = folder / "network.onnx"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            loaded.model.eval(), (torch.zeros(1, 3, own.height, own.width),), str(file),
            dynamo=False, opset_version=17,
        )  # fmt: skip
    return build_classifier(str(file), mean=own.mean, std=own.std)


def _measure(name: str, built: BuiltClassifier, data: Dataset, each: int, rounds: int) -> None:
    views = TrainingViews(data, built.preprocessing, Augmentation(views=each))
    count = len(views) * each
    runners: dict[str, Runner] = {}
    started = time.perf_counter()
    for by in ("torch", "onnxruntime"):
        runners[by] = runner_for(
            built.dual, built.preprocessing, ALONE.device, "sigmoid", by, count, lambda _: None
        )  # fmt: skip
    making = time.perf_counter() - started
    pixels = np.concatenate([views.pixels(i, range(4)) for i in range(4)])
    made = {by: run(pixels).numpy() for by, run in runners.items()}
    largest = np.abs(made["torch"]).max()
    error = np.abs(made["torch"] - made["onnxruntime"]).max() / largest
    calls = {by: _filling(built, views, run) for by, run in runners.items()}
    timing = alternate(calls, rounds=rounds, warmup=1)
    ratio = timing.ratio("torch", over="onnxruntime")
    rates = {by: count / (timing.median_ms(by) / 1e3) for by in calls}
    verdict = "reaches" if ratio >= LEAST else "BELOW"
    print(
        f"{name}: {rates['torch']:.1f} views/s by PyTorch, "
        f"{rates['onnxruntime']:.1f} by ONNX Runtime, {ratio:.2f} times, {verdict} {LEAST:g}; "
        f"largest difference {error:.1e} of the largest feature; graph made in {making:.1f} s",
        flush=True,
    )


def _filling(built: BuiltClassifier, views: TrainingViews, run: Runner) -> Callable[[], None]:
    """Returns a call that fills a new cache, decoding included."""
    shape = (len(views), views.augmentation.views, *built.dual.sigmoid_head.neck_shape)

    def fill() -> None:
        with tempfile.TemporaryDirectory() as folder, ViewReader(views) as reader:
            cache = CacheFolder(Path(folder), shape, np.dtype("float16"), ALONE)
            cache.build({}, reader, run, progress=False)

    return fill


if __name__ == "__main__":
    main()
