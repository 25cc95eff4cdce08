"""ROAD: the class's score while pixels are removed without leaving a trace of the mask.

Rong et al. 2022 ("A Consistent and Efficient Evaluation Strategy for Attribution Methods",
ICML). A removed pixel gets the weighted mean of its neighbours (1/6 beside, above and below,
1/12 across the corners), removed ones included, which is a sparse linear system; and Gaussian
noise on top. Departures: values are pixels of 0 to 255, so that the noise of 0.01 is 2.55
levels, where their code adds it to the input as the network gets it; the result is rounded to
uint8; the system is solved by conjugate gradients instead of a sparse direct solver, down to
a residual of `TOLERANCE`. (SciPy's solver would be one more dependency of 35 MB for this
function alone. The matrix is symmetric and positive definite, which is all that conjugate
gradients need, and one product with it is one 3x3 filter.)

A constant map is one tie, taken in reading order: see removal.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt

from sigcam.evaluate.confidence import check_picture
from sigcam.evaluate.removal import BATCH, Score, removal_order, run_batches
from sigcam.runtime.errors import UsageError

U8 = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)
NOISE = 0.01
# Largest amount, in levels of 255, by which a pixel may differ from its neighbours' mean.
TOLERANCE = 1e-4
_ITERATIONS = 5000
_WEIGHTS = np.array([[1 / 12, 1 / 6, 1 / 12], [1 / 6, 0, 1 / 6], [1 / 12, 1 / 6, 1 / 12]])


def impute(picture: U8, removed: npt.NDArray[np.bool_]) -> Floats:
    """Fills removed pixels so that each is the weighted mean of its neighbours.

    Args:
        picture: uint8 [H, W, 3].
        removed: bool [H, W]; at least one pixel stays.

    Returns:
        float64 [H, W, 3] in [0, 255]; pixels that stay are unchanged. Outside the picture
        there are no neighbours: the weights of the others count for more.

    Raises:
        UsageError: shapes that don't fit, or nothing stays.
    """
    if removed.dtype != np.bool_ or removed.shape != picture.shape[:2] or removed.all():
        raise UsageError(
            f"removed must be bool {list(picture.shape[:2])} with a pixel that stays, got "
            f"{removed.dtype} {list(removed.shape)}"
        )
    values = picture.astype(np.float64)
    if not removed.any():
        return values
    hole = removed[..., None].astype(np.float64)
    weight_sum = _neighbours(np.ones(removed.shape))[..., None]
    values = _guess(values, removed)
    # r = W x - D x at the removed pixels; the known ones enter through W x.
    residual = (_neighbours(values) - weight_sum * values) * hole
    # Jacobi's preconditioner: the weights' sums differ only along the picture's edge.
    step = scaled = residual / weight_sum
    energy = _dot(residual, scaled)
    for _ in range(_ITERATIONS):
        if np.abs(residual).max() <= TOLERANCE:
            return np.clip(values, 0, 255)
        product = (weight_sum * step - _neighbours(step)) * hole
        length = energy / np.maximum(_dot(step, product), np.finfo(float).tiny)
        values += length * step
        residual -= length * product
        scaled = residual / weight_sum
        last, energy = energy, _dot(residual, scaled)
        step = scaled + energy / np.maximum(last, np.finfo(float).tiny) * step
    raise UsageError(
        f"the imputation of a {removed.shape[1]}x{removed.shape[0]} picture didn't reach "
        f"{TOLERANCE} in {_ITERATIONS} iterations; use a smaller picture"
    )


def remove_pixels(
    picture: U8, removed: npt.NDArray[np.bool_], rng: np.random.Generator, noise: float = NOISE
) -> U8:
    """Imputes the removed pixels and adds noise to them.

    Args:
        picture: uint8 [H, W, 3].
        removed: bool [H, W].
        rng: where the noise comes from; each value has its own.
        noise: standard deviation, as a share of 255.

    Returns:
        uint8 [H, W, 3], rounded and cut off at 0 and 255.
    """
    values = impute(picture, removed)
    values[removed] += rng.normal(0.0, noise * 255.0, (int(removed.sum()), 3))
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def road_curve(
    picture: U8,
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
        picture: uint8 [H, W, 3] RGB.
        scores: floating [H, W], any range.
        score: uint8 [n, H, W, 3] to floats [n]: the class's probability, or whether it is
            still the predicted one (ROAD's own accuracy).
        most_relevant_first: MoRF, or else LeRF: the least relevant first.
        fractions: shares of the pixels to remove, each in [0, 1).
        noise: as in `remove_pixels`.
        seed: of the noise; each fraction's noise depends on it and on its place in the list.
        batch: pictures per call of `score`.

    Returns:
        float64 [n], one per fraction. MoRF: low is good; LeRF: high is good.

    Raises:
        UsageError: shapes, types or numbers that don't fit.
    """
    check_picture(picture, scores)
    if not fractions or not all(0 <= fraction < 1 for fraction in fractions):
        raise UsageError(f"fractions must lie in [0, 1), got {list(fractions)}")
    order = removal_order(scores if most_relevant_first else -scores)

    def pictures() -> Iterator[U8]:
        for place, fraction in enumerate(fractions):
            removed = np.zeros(scores.size, bool)
            removed[order[: min(round(fraction * len(order)), len(order) - 1)]] = True
            rng = np.random.default_rng([seed, place])
            yield remove_pixels(picture, removed.reshape(scores.shape), rng, noise)

    return run_batches(pictures(), score, batch)


def road_score(morf: Floats, lerf: Floats) -> float:
    """Both orders in one number: half the mean of LeRF minus MoRF; high is good."""
    if morf.shape != lerf.shape or morf.ndim != 1 or len(morf) == 0:
        raise UsageError(
            f"curves must be two arrays [n], got {list(morf.shape)} and {list(lerf.shape)}"
        )
    return float((lerf - morf).mean() / 2)


def _neighbours(values: Floats) -> Floats:
    """Weighted sum of the eight neighbours; nothing lies outside the picture."""
    return np.asarray(
        cv2.filter2D(values, -1, _WEIGHTS, borderType=cv2.BORDER_CONSTANT), np.float64
    )


def _dot(a: Floats, b: Floats) -> Floats:
    return np.asarray(np.einsum("ijk,ijk->k", a, b))


def _guess(values: Floats, removed: npt.NDArray[np.bool_]) -> Floats:
    """A start for the solver: removed pixels from the means of ever larger blocks."""
    kept = (~removed).astype(np.float64)
    height, width = removed.shape
    if height <= 2 and width <= 2:
        return np.where(removed[..., None], values[~removed].mean(axis=0), values)
    size = ((width + 1) // 2, (height + 1) // 2)
    share = np.asarray(cv2.resize(kept, size, interpolation=cv2.INTER_AREA))
    total = cv2.resize(values * kept[..., None], size, interpolation=cv2.INTER_AREA)
    small = np.asarray(total) / np.maximum(share, 1e-12)[..., None]
    small = _guess(small, share < 1e-6)
    large = np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    return np.where(removed[..., None], large, values)
