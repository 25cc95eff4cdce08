"""ROAD: the class's score while pixels are removed without leaving a trace of the mask.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods",
ICML). Removed pixels are imputed (imputation.py).
Departures: values are pixels of 0 to 255, so that the noise of 0.01 is 2.55 levels, where
their code adds it to the input as the network gets it; the result is rounded to uint8.

A constant heatmap is one tie, taken in reading order: see insertion_deletion.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.faithfulness.confidence import check_image
from sigcam.evaluate.faithfulness.imputation import NOISE, remove_pixels
from sigcam.evaluate.faithfulness.insertion_deletion import (
    BATCH,
    Score,
    removal_order,
    run_batches,
)

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
"""Shares of the pixels that are removed, unless the caller says otherwise."""


def road_curve(
    image: Array,
    scores: Array,
    score: Score,
    *,
    most_relevant_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
    batch: int = BATCH,
) -> Array:
    """Computes the score with a growing share of the pixels removed.

    Args:
        image: uint8 or float32 [H, W, channels].
        scores: floating [H, W], the heatmap, in any range.
        score: images [n, H, W, channels] to floats [n]: the class's probability, or whether it is
            still the predicted one (ROAD's own accuracy).
        most_relevant_first: whether the most relevant pixels go first (MoRF), or the least
            relevant ones (LeRF).
        fractions: shares of the pixels to remove, each in [0, 1).
        noise: standard deviation of the noise, as a share of 255.
        seed: what the noise is drawn from; that of a fraction depends on its place in the list
            too.
        batch: the most images in one call of `score`.

    Returns:
        float64 [n], one per fraction. MoRF: low is good; LeRF: high is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.

    >>> grey = np.full((8, 8, 3), 128, np.uint8)
    >>> scores = np.arange(64.0).reshape(8, 8)
    >>> def brightness(images):
    ...     return images.mean(axis=(1, 2, 3)) / 255
    >>> road_curve(grey, scores, brightness, fractions=(0.25, 0.5), noise=0).round(3)
    array([0.502, 0.502])
    """
    changed = road_images(
        image, scores, most_relevant_first=most_relevant_first, fractions=fractions,
        noise=noise, seed=seed,
    )  # fmt: skip
    return run_batches(changed, score, batch)


def road_images(
    image: Array,
    scores: Array,
    *,
    most_relevant_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
) -> Iterator[Array]:
    """Makes the images that `road_curve` scores, one after the other as they are asked for.

    It needs no backend, so that it can run in a thread of its own.

    Args:
        image: uint8 or float32 [H, W, channels].
        scores: floating [H, W], the heatmap, in any range.
        most_relevant_first: whether the most relevant pixels go first, or the least relevant.
        fractions: shares of the pixels to remove, each in [0, 1).
        noise: standard deviation of the noise, as a share of 255.
        seed: what the noise is drawn from.

    Returns:
        [H, W, channels] each, one per fraction.

    Raises:
        UsageError: shapes, types or numbers that don't fit.

    Example:
        >>> image = np.zeros((2, 2, 3), np.uint8)
        >>> image[0, 0] = 255  # the most relevant pixel goes, and takes its neighbours' value
        >>> scores = np.array([[1.0, 0.2], [0.3, 0.1]])
        >>> (changed,) = road_images(image, scores, fractions=(0.25,), noise=0)
        >>> changed[0, 0]
        array([0, 0, 0], dtype=uint8)
    """
    check_image(image, scores)
    if not fractions or not all(0 <= fraction < 1 for fraction in fractions):
        raise UsageError(f"fractions must lie in [0, 1), got {list(fractions)}")
    order = removal_order(scores if most_relevant_first else -scores)

    def changed(place: int, fraction: float) -> Array:
        removed = np.zeros(scores.size, bool)
        removed[order[: min(round(fraction * len(order)), len(order) - 1)]] = True
        rng = np.random.default_rng([seed, place])
        return remove_pixels(image, removed.reshape(scores.shape), rng, noise)

    return (changed(place, fraction) for place, fraction in enumerate(fractions))


def road_score(morf: Array, lerf: Array) -> float:
    """Computes one number of both orders: half the mean of LeRF minus MoRF; high is good.

    Args:
        morf: floats [n], the scores with the most relevant pixels removed.
        lerf: floats [n], the scores with the least relevant pixels removed.

    Raises:
        UsageError: curves of other shapes.

    >>> road_score(np.array([0.5, 0.1]), np.array([0.9, 0.7]))
    0.25
    """
    if morf.shape != lerf.shape or morf.ndim != 1 or len(morf) == 0:
        raise UsageError(
            f"curves must be two arrays [n], got {list(morf.shape)} and {list(lerf.shape)}"
        )
    return float((lerf - morf).mean() / 2)
