"""Insertion and deletion: the class's score while pixels come or go in the heatmap's order.

Petsiuk et al. 2018 (RISE), and its code. Departures: pixels are changed in the
uint8 image and not in the normalised input; the blur is OpenCV's 11x11 Gaussian of sigma 5
with reflected edges, where the code pads with the mean colour; ties in the heatmap are taken in
reading order, where the code leaves them to an unstable sort. A constant heatmap is therefore
one large tie: pixels go row by row, and the curve says nothing about the heatmap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.faithfulness.confidence import check_image

Score: TypeAlias = Callable[[Array], Array]
"""From images, [n, H, W, channels], to the probability of one class, floats [n]."""

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean colour, RGB: what zero in a normalised input stands for."""

STEPS = 224
"""RISE changes 224 pixels of a 224x224 image at a time."""

BATCH = 32
"""Images that are scored at once unless the caller says otherwise."""


def removal_order(scores: Array) -> Array:
    """Sorts the pixels by falling score, equal ones in reading order.

    Args:
        scores: floating [H, W], any range.

    Returns:
        int64 [H W], flat indices.

    Raises:
        UsageError: the scores aren't finite.

    >>> removal_order(np.array([[0.2, 0.9], [0.9, 0.5]]))
    array([1, 2, 3, 0])
    """
    if not np.isfinite(scores).all():
        raise UsageError("heatmap must be finite, got NaN or infinity")
    return np.asarray(np.argsort(-scores.ravel(), kind="stable"), np.int64)


def run_batches(images: Iterable[Array], score: Score, batch: int) -> Array:
    """Scores images, some at a time.

    Args:
        images: [H, W, channels] each.
        score: gives the probability of one class.
        batch: the most images in one call of `score`.

    Returns:
        float64 [n].

    Raises:
        UsageError: a batch below 1, or a callable that doesn't give one finite number each.

    Example:
        >>> images = [np.full((2, 2, 3), value, np.uint8) for value in (0, 51, 255)]
        >>> run_batches(images, lambda batch: batch.mean(axis=(1, 2, 3)) / 255, batch=2)
        array([0. , 0.2, 1. ])
    """
    if batch < 1:
        raise UsageError(f"batch must be at least 1, got {batch}")
    values: list[Array] = []
    waiting: list[Array] = []

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
    image: Array,
    scores: Array,
    score: Score,
    *,
    steps: int = STEPS,
    fill: Sequence[float] = MEAN_COLOUR,
    batch: int = BATCH,
) -> Array:
    """Computes the score while pixels are painted over, those with the highest values first.

    Args:
        image: uint8 or float32 [H, W, channels], the whole image at the start.
        scores: floating [H, W], the heatmap, in any range.
        score: images [n, H, W, channels] to floats [n], n <= batch; the array is its to keep.
        steps: in how many steps the image is painted over, 1 to H W.
        fill: a number per channel, of bytes 0 to 255; the mean colour of RGB images (zero in the
            normalised input, as RISE has it), or (0, 0, 0) for black.
        batch: the most images in one call of `score`.

    Returns:
        float64 [steps + 1]: with 0, 1 / steps, ..., all of the pixels gone. A low area
        (`curve_area`) is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.

    >>> white, scores = np.full((1, 4, 3), 255, np.uint8), np.array([[0.9, 0.1, 0.4, 0.3]])
    >>> def brightness(images):
    ...     return images.mean(axis=(1, 2, 3)) / 255
    >>> deletion_curve(white, scores, brightness, steps=2, fill=(0, 0, 0))
    array([1. , 0.5, 0. ])
    """
    check_image(image, scores)
    is_bytes = image.dtype == np.uint8
    if len(fill) != image.shape[2] or not all(0 <= v <= 255 or not is_bytes for v in fill):
        values = "numbers from 0 to 255" if is_bytes else "numbers"
        raise UsageError(f"fill must be {image.shape[2]} {values}, one per channel, got {fill}")
    end = np.empty_like(image)
    end[:] = np.array(fill).astype(image.dtype)
    return run_batches(_steps(image, end, scores, steps), score, batch)


def insertion_curve(
    image: Array,
    scores: Array,
    score: Score,
    *,
    steps: int = STEPS,
    batch: int = BATCH,
) -> Array:
    """Computes the score while pixels appear on the blurred image, highest values first.

    Args:
        image: uint8 or float32 [H, W, channels], the whole image at the end.
        scores: floating [H, W], the heatmap, in any range.
        score: images [n, H, W, channels] to floats [n], n <= batch; the array is its to keep.
        steps: in how many steps the image appears, 1 to H W.
        batch: the most images in one call of `score`.

    Returns:
        float64 [steps + 1]: with 0, 1 / steps, ..., all of the pixels there. A high area
        (`curve_area`) is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.

    Example:
        >>> image, scores = np.zeros((1, 4, 3), np.uint8), np.array([[0.9, 0.1, 0.4, 0.3]])
        >>> image[0, 0] = 255  # it appears in the first step
        >>> def first_pixel(images):
        ...     return images[:, 0, 0, 0] / 255
        >>> insertion_curve(image, scores, first_pixel, steps=4)[1:]
        array([1., 1., 1., 1.])
    """
    check_image(image, scores)
    blurred: Array = np.asarray(cv2.GaussianBlur(image, (11, 11), 5.0), image.dtype)
    start = blurred.reshape(image.shape)  # OpenCV drops the axis of a single channel
    return run_batches(_steps(start, image, scores, steps), score, batch)


def curve_area(curve: Array) -> float:
    """Computes the area under a curve of equal steps over [0, 1], by the trapezoid rule.

    Args:
        curve: floats [n], n >= 2.

    Raises:
        UsageError: the curve has another shape.

    >>> curve_area(np.array([1.0, 0.5, 0.0]))
    0.5
    """
    if curve.ndim != 1 or len(curve) < 2:
        raise UsageError(f"curve must be [n] with n >= 2, got shape {list(curve.shape)}")
    return float(np.trapezoid(curve) / (len(curve) - 1))


def _steps(start: Array, end: Array, scores: Array, steps: int) -> Iterator[Array]:
    """Yields the images on the way from one to the other, both included, new arrays."""
    order = removal_order(scores)
    if not 1 <= steps <= len(order):
        raise UsageError(f"steps must be 1 to {len(order)} for this image, got {steps}")
    now = start.copy()
    pixels, target = (one.reshape(-1, one.shape[2]) for one in (now, end))
    done = 0
    for step in range(steps + 1):
        upto = step * len(order) // steps
        changed = order[done:upto]
        pixels[changed] = target[changed]
        done = upto
        yield now.copy()
