"""ROAD: the class's score while pixels are removed without leaving a trace of the mask.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods",
ICML). Removed pixels are imputed (imputation.py).
Departures: values are pixels of 0 to 255, so that the noise of 0.01 is 2.55 levels, where
their code adds it to the input as the network gets it; the result is rounded to uint8.

A constant map is one tie, taken in reading order: see removal.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.evaluate.faithfulness.confidence import check_image
from sigcam.evaluate.faithfulness.imputation import NOISE, remove_pixels
from sigcam.evaluate.faithfulness.insertion_deletion import (
    BATCH,
    Score,
    removal_order,
    run_batches,
)

U8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


def road_curve(
    image: U8,
    scores: npt.NDArray[np.floating],
    score: Score,
    *,
    most_relevant_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
    batch: int = BATCH,
) -> Floats:
    """The score with a growing share of the pixels removed.

    Args:
        image: uint8 [H, W, 3] RGB.
        scores: floating [H, W], any range.
        score: uint8 [n, H, W, 3] to floats [n]: the class's probability, or whether it is
            still the predicted one (ROAD's own accuracy).
        most_relevant_first: MoRF, or else LeRF: the least relevant first.
        fractions: shares of the pixels to remove, each in [0, 1).
        noise: as in `remove_pixels`.
        seed: of the noise; each fraction's noise depends on it and on its place in the list.
        batch: images per call of `score`.

    Returns:
        float64 [n], one per fraction. MoRF: low is good; LeRF: high is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.
    """
    changed = road_images(
        image, scores, most_relevant_first=most_relevant_first, fractions=fractions,
        noise=noise, seed=seed,
    )  # fmt: skip
    return run_batches(changed, score, batch)


def road_images(
    image: U8,
    scores: npt.NDArray[np.floating],
    *,
    most_relevant_first: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
) -> Iterator[U8]:
    """The images that `road_curve` scores: uint8 [H, W, 3], one per fraction, made one by one.

    Args and errors as there. It needs no backend, so that it can run in a thread of its own.
    """
    check_image(image, scores)
    if not fractions or not all(0 <= fraction < 1 for fraction in fractions):
        raise UsageError(f"fractions must lie in [0, 1), got {list(fractions)}")
    order = removal_order(scores if most_relevant_first else -scores)

    def changed(place: int, fraction: float) -> U8:
        removed = np.zeros(scores.size, bool)
        removed[order[: min(round(fraction * len(order)), len(order) - 1)]] = True
        rng = np.random.default_rng([seed, place])
        return remove_pixels(image, removed.reshape(scores.shape), rng, noise)

    return (changed(place, fraction) for place, fraction in enumerate(fractions))


def road_score(morf: Floats, lerf: Floats) -> float:
    """Both orders in one number: half the mean of LeRF minus MoRF; high is good."""
    if morf.shape != lerf.shape or morf.ndim != 1 or len(morf) == 0:
        raise UsageError(
            f"curves must be two arrays [n], got {list(morf.shape)} and {list(lerf.shape)}"
        )
    return float((lerf - morf).mean() / 2)
