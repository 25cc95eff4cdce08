"""How much faster the box metrics are than contours at every threshold.

    python -m benchmarks.datasets.evaluate_speed [MODEL.onnx DATA]

Both give the same IoUs at all 1,000 thresholds (compared for every map), for all contours and
for the largest one. Maps are random fields of 7x7, 14x14 and 28x28 cells, their negative half
cut off like evidence after ReLU, blurred by a Gaussian of some cells, enlarged as the protocol
has it: the more cells and the less blur, the more pieces. One thread; the two alternate, map by
map, and the ratio is the median of the maps' ratios. With an artifact and a data set, the maps
that it makes of the first images are measured too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import cv2
import numpy as np

from sigcam.core.threads import Stopwatch
from sigcam.data import open_dataset
from sigcam.evaluate.localization.box_accuracy import score_boxes
from sigcam.evaluate.localization.protocol import THRESHOLDS, place_scores, quantise, score_heatmap
from sigcam.evaluate.model import EvaluatedModel
from sigcam.images.preprocess import read_input
from sigcam.runtime.backends.base import BackendOptions
from tests.support import direct_boxes

HEATMAPS = 20
TRUTH = np.array([[40, 50, 160, 170], [100, 20, 220, 120]])


def random_field(rng: np.random.Generator, cells: int, blur: float = 1.0) -> np.ndarray:
    """A score map, float64 [224, 224], from cells x cells blurred random values."""
    cam = np.maximum(0, rng.normal(size=(cells, cells)))
    return score_heatmap(cv2.GaussianBlur(cam, (0, 0), blur))


def timed(run: Callable[[], tuple[np.ndarray, np.ndarray]]) -> tuple[float, list[np.ndarray]]:
    """Milliseconds of this thread's processor time, and the result."""
    start = time.thread_time()
    result = run()
    return 1e3 * (time.thread_time() - start), list(result)


def compare(name: str, heatmaps: Iterable[np.ndarray]) -> None:
    """Prints one line for a kind of map."""
    boxes = [tuple(box) for box in TRUTH.tolist()]
    times = []
    for scores in heatmaps:

        def fast(scores: np.ndarray = scores) -> tuple[np.ndarray, np.ndarray]:
            found = score_boxes(scores, TRUTH)
            return found.every, found.largest

        def direct(scores: np.ndarray = scores) -> tuple[np.ndarray, np.ndarray]:
            return direct_boxes.best_ious(quantise(scores), boxes, THRESHOLDS)

        slow_time, slow_result = timed(direct)
        fast_time, fast_result = timed(fast)
        np.testing.assert_array_equal(slow_result, fast_result)
        times.append((slow_time, fast_time))
    slow, quick = np.median(times, axis=0)
    ratio = np.median([a / b for a, b in times])
    click.echo(f"{name}: direct {slow:6.1f} ms, fast {quick:5.1f} ms, {ratio:4.1f}x")


def heatmaps_of(model: Path, data: Path) -> list[np.ndarray]:
    """Returns the heatmaps that an artifact makes of a data set's first images."""
    with EvaluatedModel(model.name, model, "ort", BackendOptions(), Stopwatch()) as opened:
        found = []
        for sample in open_dataset(data).samples[:HEATMAPS]:
            read = read_input(sample.path, opened.raw_preprocessing)
            [prediction] = opened.predict([read.tensor], [None])
            found.append(place_scores(prediction.cam, read.placement)[0])
        return found


@click.command()
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.argument("data", required=False, type=click.Path(path_type=Path))
def main(model: Path | None, data: Path | None) -> None:
    """Prints the ratio for maps of several kinds."""
    cv2.setNumThreads(1)
    for cells, blur in ((7, 1), (7, 2), (14, 1), (14, 2), (28, 1), (28, 4)):
        rng = np.random.default_rng(cells)
        fields = (random_field(rng, cells, blur) for _ in range(HEATMAPS))
        compare(f"{cells:2}x{cells:<2} cells, blur {blur:g}", fields)
    if model is not None and data is not None:
        compare(f"{model.name} on {data.name}", heatmaps_of(model, data))


if __name__ == "__main__":
    main()
