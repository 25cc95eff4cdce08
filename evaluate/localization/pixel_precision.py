"""PxAP: the area under the precision-recall curve of pixels (Choe et al. 2020).

A pixel is predicted as foreground at a threshold if its score reaches it. Pixels of all
images are counted together; those of the ignore region don't count. The 1,001 thresholds
are 0, 0.001, ..., 0.999 and 1 (only the pixels with the largest score); the area is the sum
of precision times the step in recall, going down from an empty prediction.

A constant map is all zero, so that everything is predicted at once: PxAP is then the share of
foreground among the pixels that count.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.protocol import (
    BACKGROUND,
    FOREGROUND,
    THRESHOLDS,
    check_scores,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
EDGES: Floats = np.append(THRESHOLDS, 1.0)
BINS = len(EDGES)


def pixel_counts(
    scores: npt.NDArray[np.floating], labels: npt.NDArray[np.uint8]
) -> npt.NDArray[np.int32]:
    """Counts one image's pixels by score.

    Args:
        scores: floating [S, S] in [0, 1], from `score_heatmap` (float64, as the protocol has it).
        labels: uint8 [S, S], from `pixel_labels`: 0 background, 1 foreground, else ignored.

    Returns:
        int32 [2, 1001], background and foreground pixels with a score in [0, 0.001), ...,
        [0.999, 1), and equal to 1. Eight kilobytes, to be kept per image for a bootstrap.

    Raises:
        UsageError: no score map, or labels of another size.
    """
    check_scores(scores)
    if labels.shape != scores.shape:
        raise UsageError(
            f"labels must have the map's size {list(scores.shape)}, got {list(labels.shape)}"
        )
    flat = labels.ravel()
    bins = _bins(scores.astype(np.float64).ravel())
    counts = [np.bincount(bins[flat == kind], minlength=BINS) for kind in (BACKGROUND, FOREGROUND)]
    return np.stack(counts).astype(np.int32)


def _bins(scores: Floats) -> Ints:
    """The last threshold that a score reaches, 0 to 1,000: the protocol's in floating point.

    Multiplied out, a score may land one beside; comparing puts that right, in a fifth of the
    time of a binary search.
    """
    bins = (scores * 1000).astype(np.int64)
    bins -= EDGES[bins] > scores
    bins += EDGES[np.minimum(bins + 1, BINS - 1)] <= scores
    return np.minimum(bins, BINS - 1)


@dataclass(frozen=True)
class PixelCurve:
    """The precision-recall curve, from the highest threshold to the lowest.

    Attributes:
        thresholds: float64 [1001], 1, 0.999, ..., 0.
        precision: float64 [1001] in [0, 1]; NaN where nothing is predicted.
        recall: float64 [1001] in [0, 1], rising to 1.
        pxap: the area in percent.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    pxap: float


def pixel_curve(counts: npt.NDArray[np.integer]) -> PixelCurve:
    """The curve of counts as `pixel_counts` gives them, summed over images.

    Args:
        counts: integers [2, 1001].

    Raises:
        UsageError: there is no foreground pixel.
    """
    background, foreground = counts.astype(np.int64)[:, ::-1].cumsum(axis=1)
    if foreground[-1] == 0:
        raise UsageError("PxAP needs at least one foreground pixel, got none in any image")
    predicted = background + foreground
    precision = np.full(BINS, np.nan)
    np.divide(foreground, predicted, out=precision, where=predicted > 0)
    recall = foreground / foreground[-1]
    steps = np.diff(recall, prepend=0.0)
    area = float((precision * steps)[predicted > 0].sum() * 100)
    return PixelCurve(EDGES[::-1].copy(), precision, recall, area)


class PixelPrecision:
    """Sums pixel counts over images; memory doesn't grow with their number."""

    def __init__(self) -> None:
        self.images = 0
        self.counts = np.zeros((2, BINS), np.int64)

    def add(self, counts: npt.NDArray[np.integer]) -> None:
        """Adds an image's counts, integers [2, 1001], from `pixel_counts`."""
        self.images += 1
        self.counts += counts

    def merge(self, other: PixelPrecision) -> None:
        """Adds the counts of images that were scored elsewhere."""
        self.images += other.images
        self.counts += other.counts

    def arrays(self) -> dict[str, Ints]:
        """All counts as int64 arrays (copies), to be stored; `from_arrays` reads them."""
        return {"images": np.array(self.images, np.int64), "counts": self.counts.copy()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.integer]]) -> PixelPrecision:
        """Goes on from stored counts.

        Raises:
            UsageError: an array is missing or has another shape.
        """
        made = cls()
        if set(arrays) < {"images", "counts"} or arrays["counts"].shape != made.counts.shape:
            raise UsageError(
                f"stored counts need 'images' and 'counts' [2, {BINS}], got {sorted(arrays)}"
            )
        made.images = int(arrays["images"])
        made.counts = arrays["counts"].astype(np.int64)
        return made

    def result(self) -> PixelCurve:
        """The curve and PxAP; UsageError where there was no foreground."""
        return pixel_curve(self.counts)
