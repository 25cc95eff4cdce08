"""Paired bootstrap intervals: how sure a metric is, and the difference of two artifacts.

Images are drawn with replacement, as many as there are, and the metric is computed of these; the
interval reaches from the 2.5th to the 97.5th percentile of its values (the percentile bootstrap,
Efron 1979). All artifacts are computed of the same drawn images, so what makes an image hard
for all of them cancels in the difference.

A metric is a function of sums over images: a mean is the sum over the number; MaxBoxAccV2 is the
largest of the sums of hits at each threshold; PxAP is an area under sums of histograms. So a
drawing is a count for each image, and its sums are a matrix product of counts and contributions.

A maximum over thresholds is a little larger in drawn images than in the images themselves, the
more so the fewer images and the flatter its peak; its value may even lie below its interval. In
a difference that cancels, unless one artifact's peak is much flatter than the other's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array

OfSums: TypeAlias = Callable[[Array, int], Array]
"""A metric: from float64 [R, ...], R sums over P images each, and P to R values [R]."""

LEVEL = 0.95
"""Probability of an interval, unless the caller says otherwise."""

RESAMPLES = 2000
"""How often images are drawn, unless the caller says otherwise."""

# Fixed, because the drawn images depend on them. 250 sums of 3 x 1001 hits take 6 MB.
_RESAMPLES_AT_ONCE = 250
_IMAGES_AT_ONCE = 512


class Contributions(Protocol):
    """What each image adds to the sums: an array [P, ...], or what acts like one.

    Slices of images are asked for in order, several times over, so they may be read from a file
    or unpacked then.
    """

    def __len__(self) -> int:
        """Returns the number of images P."""

    def __getitem__(self, images: slice, /) -> Array:
        """Returns the contributions of some images, numbers or bools [p, ...], finite."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; the limits are NaN where a drawing has no finite value.

    Attributes:
        value: the metric of the images themselves.
        low: the lower end of the interval, a percentile of the values of drawn images.
        high: the upper end of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """An artifact's metric beside that of the first.

    Attributes:
        metric: the artifact's own value.
        difference: that value minus the first artifact's, on the same drawn images.
    """

    metric: Estimate
    difference: Estimate


def mean(sums: Array, num_images: int) -> Array:
    """Computes the metric that is the mean of one value per image.

    Args:
        sums: float64 [R] or [R, 1].
        num_images: P.

    Returns:
        float64 [R].

    Example:
        >>> mean(np.array([3.0, 1.0]), 4)
        array([0.75, 0.25])
    """
    return cast("Array", sums.reshape(len(sums)) / num_images)


def compare(
    artifacts: Sequence[Contributions],
    metric: OfSums = mean,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Comparison]:
    """Computes a metric of several artifacts on the same images, with intervals.

    Memory doesn't grow with the number of images, but for the contributions themselves and
    `resamples` values of each artifact.

    Args:
        artifacts: what each image adds to the sums, for each artifact; the same images in the
            same order.
        metric: a function from sums to values.
        resamples: how often images are drawn.
        level: probability of the interval, in (0, 1).
        seed: what images are drawn with, at least 0; the same seed draws the same images.

    Returns:
        One for each artifact; the first one's difference is 0 to 0.

    Raises:
        UsageError: no artifacts or images; other numbers of images; not finite contributions;
            a metric that doesn't return one value for each sum; level, resamples or seed out of
            range.

    >>> one, other = np.array([0.0, 1.0, 1.0, 2.0]), np.array([0.5, 1.5, 1.5, 2.5])
    >>> compare([one, other])[1].difference
    Estimate(value=0.5, low=0.5, high=0.5)
    """
    num_images = _check(artifacts, resamples, level, seed)
    values = np.array([_values(metric, _total(one), num_images)[0] for one in artifacts])
    drawn = np.empty((len(artifacts), resamples))
    for first in range(0, resamples, _RESAMPLES_AT_ONCE):
        count = min(_RESAMPLES_AT_ONCE, resamples - first)
        block = slice(first, first + count)
        for row, sums in zip(drawn, _sums(artifacts, count, first, seed), strict=True):
            row[block] = _values(metric, sums, num_images)
    tails = (1 - level) / 2, (1 + level) / 2
    with np.errstate(invalid="ignore"):  # infinities, which have no difference
        differences, beyond = values - values[0], drawn - drawn[0]
    return [
        Comparison(_estimate(value, row, tails), _estimate(difference, rest, tails))
        for value, row, difference, rest in zip(values, drawn, differences, beyond, strict=True)
    ]


def drawn_counts(
    num_images: int, resamples: int, first: int = 0, seed: int = 0
) -> Iterator[tuple[slice, Array]]:
    """Draws images: how often each comes up, a slice of images at a time.

    P images drawn from P are multinomial counts. How many fall into a slice is drawn first, from
    those that are left, and then which ones: the same distribution, in the memory of one slice.

    Args:
        num_images: the number of images P.
        resamples: the number of drawings R.
        first: number of the first of these drawings, which seeds them together with `seed`.
        seed: what all drawings are drawn with.

    Yields:
        Images p and int64 [R, p]; over all slices, the rows add up to P.

    Example:
        >>> ((images, counts),) = drawn_counts(5, resamples=3)
        >>> images, counts.sum(axis=1)
        (slice(0, 5, None), array([5, 5, 5]))
    """
    random = np.random.default_rng((seed, first))
    left = np.full(resamples, num_images, np.int64)
    for start in range(0, num_images, _IMAGES_AT_ONCE):
        size = min(_IMAGES_AT_ONCE, num_images - start)
        here = random.binomial(left, size / (num_images - start))
        left -= here
        # Drawing each image and counting takes a third of the time of `multinomial`.
        cells = np.repeat(np.arange(resamples) * size, here)
        cells += random.integers(0, size, len(cells))
        counts = np.bincount(cells, minlength=resamples * size)
        yield slice(start, start + size), counts.reshape(resamples, size)


def _check(artifacts: Sequence[Contributions], resamples: int, level: float, seed: int) -> int:
    """Refuses what can't be compared; returns the number of images."""
    if not artifacts or not len(artifacts[0]):
        raise UsageError("at least one artifact and one image are needed")
    lengths = [len(one) for one in artifacts]
    if len(set(lengths)) > 1:
        raise UsageError(f"artifacts are compared on the same images, got {lengths} images")
    if resamples < 1 or not 0 < level < 1:
        raise UsageError(
            f"resamples must be at least 1 and level in (0, 1), got {resamples} and {level}"
        )
    if seed < 0:
        raise UsageError(f"seed must be at least 0, got {seed}")
    return lengths[0]


def _rows(contributions: Contributions, images: slice) -> Array:
    rows = np.asarray(contributions[images]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise UsageError(
            f"contributions must be finite, got others in images {images.start} to "
            f"{images.stop - 1}; leave out images without a value, or count them in a column"
        )
    return rows


def _total(contributions: Contributions) -> Array:
    """Sums contributions over all images, float64 [1, ...]."""
    count = len(contributions)
    chunks = range(0, count, _IMAGES_AT_ONCE)
    parts = (slice(i, min(i + _IMAGES_AT_ONCE, count)) for i in chunks)
    return cast("Array", sum(_rows(contributions, p).sum(axis=0, keepdims=True) for p in parts))


def _sums(artifacts: Sequence[Contributions], resamples: int, first: int, seed: int) -> list[Array]:
    """Sums contributions over drawn images, float64 [R, ...] for each artifact."""
    sums: list[Array] = []
    for images, counts in drawn_counts(len(artifacts[0]), resamples, first, seed):
        weights = counts.astype(np.float64)
        for index, one in enumerate(artifacts):
            rows = _rows(one, images)
            if index == len(sums):
                sums.append(np.zeros((resamples, *rows.shape[1:])))
            flat = weights @ rows.reshape(len(rows), -1)
            sums[index] += flat.reshape(resamples, *rows.shape[1:])
    return sums


def _values(metric: OfSums, sums: Array, num_images: int) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.asarray(metric(sums, num_images), np.float64)
    if values.shape != (len(sums),):
        raise UsageError(
            f"a metric returns one value for each of {len(sums)} sums, got shape {values.shape}"
        )
    return values


def _estimate(value: float, drawn: Array, tails: tuple[float, float]) -> Estimate:
    if not np.isfinite(drawn).all():
        return Estimate(float(value), math.nan, math.nan)
    low, high = np.quantile(drawn, tails)
    return Estimate(float(value), float(low), float(high))
