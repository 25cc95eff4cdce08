"""Insertion and deletion: the class's score while pixels come or go in the map's order.

Petsiuk et al. 2018 (RISE), and its code. Departures: pixels are changed in the
uint8 image and not in the normalised input; the blur is OpenCV's 11x11 Gaussian of sigma 5
with reflected edges, where the code pads with the mean colour; ties in the map are taken in
reading order, where the code leaves them to an unstable sort. A constant map is therefore
one large tie: pixels go row by row, and the curve says nothing about the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.evaluate.faithfulness.confidence import check_image

U8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
# Images uint8 [n, H, W, 3] to the probability of one class, floats [n].
Score = Callable[[U8], npt.NDArray[np.floating]]
# ImageNet's mean colour: what zero in a normalised input stands for.
MEAN_COLOUR = (124, 116, 104)
# RISE changes 224 pixels of a 224x224 image at a time.
STEPS = 224
BATCH = 32


def removal_order(scores: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """Flat indices of the pixels by falling score; equal ones in reading order, int64 [H W]."""
    if not np.isfinite(scores).all():
        raise UsageError("map must be finite, got NaN or infinity")
    return np.asarray(np.argsort(-scores.ravel(), kind="stable"), np.int64)


def run_batches(images: Iterable[U8], score: Score, batch: int) -> Floats:
    """Scores images uint8 [H, W, 3], at most `batch` at a time; float64 [n].

    Raises:
        UsageError: a batch below 1, or a callable that doesn't give one finite number each.
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    values: list[Floats] = []
    waiting: list[U8] = []

    def flush() -> None:
        got = np.asarray(score(np.stack(waiting)), np.float64)
        if got.shape != (len(waiting),) or not np.isfinite(got).all():
            raise UsageError(
                f"score must give {len(waiting)} finite numbers for as many images, got "
                f"shape {list(got.shape)}"
            )
        values.append(got)
        waiting.clear()

    for image in images:
        waiting.append(image)
        if len(waiting) == batch:
            flush()
    if waiting:
        flush()
    return np.concatenate(values)


def deletion_curve(
    image: U8,
    scores: npt.NDArray[np.floating],
    score: Score,
    *,
    steps: int = STEPS,
    fill: Sequence[int] = MEAN_COLOUR,
    batch: int = BATCH,
) -> Floats:
    """The score while pixels are painted over, highest map value first.

    Args:
        image: uint8 [H, W, 3] RGB, the whole image at the start.
        scores: floating [H, W], any range.
        score: uint8 [n, H, W, 3] to floats [n], n <= batch; the array is its to keep.
        steps: number of steps, 1 to H W.
        fill: RGB 0 to 255; the mean colour (zero in the normalised input, as RISE has it),
            or (0, 0, 0) for black.
        batch: images per call of `score`.

    Returns:
        float64 [steps + 1]: with 0, 1 / steps, ..., all of the pixels gone. A low area
        (`curve_area`) is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.
    """
    check_image(image, scores)
    if len(fill) != 3 or not all(0 <= value <= 255 for value in fill):
        raise UsageError(f"fill must be three numbers from 0 to 255, got {fill}")
    end = np.empty_like(image)
    end[:] = np.array(fill, np.uint8)
    return run_batches(_steps(image, end, scores, steps), score, batch)


def insertion_curve(
    image: U8,
    scores: npt.NDArray[np.floating],
    score: Score,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
) -> Floats:
    """The score while pixels appear on the blurred image, highest map value first.

    Args, result and errors as in `deletion_curve`, with the whole image at the end. A high
    area is good.
    """
    check_image(image, scores)
    start: U8 = np.asarray(cv2.GaussianBlur(image, (11, 11), 5.0), np.uint8)
    return run_batches(_steps(start, image, scores, steps), score, batch)


def curve_area(curve: Floats) -> float:
    """Area under a curve of equal steps over [0, 1], by the trapezoid rule."""
    if curve.ndim != 1 or len(curve) < 2:
        raise UsageError(f"curve must be [n] with n >= 2, got shape {list(curve.shape)}")
    return float(np.trapezoid(curve) / (len(curve) - 1))


def _steps(start: U8, end: U8, scores: npt.NDArray[np.floating], steps: int) -> Iterator[U8]:
    order = removal_order(scores)
    if not 1 <= steps <= len(order):
        raise UsageError(f"steps must be 1 to {len(order)} for this image, got {steps}")
    now = start.copy()
    pixels, target = now.reshape(-1, 3), end.reshape(-1, 3)
    done = 0
    for step in range(steps + 1):
        upto = step * len(order) // steps
        changed = order[done:upto]
        pixels[changed] = target[changed]
        done = upto
        yield now.copy()
