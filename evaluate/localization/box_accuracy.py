"""Localisation against boxes: MaxBoxAcc, MaxBoxAccV2, GT-known Loc, Top-1 Loc.

Choe et al. 2020, conventions of their code (protocol.py). An image is a hit at a threshold
if the best IoU between its boxes at that threshold and its true boxes reaches the IoU
threshold. MaxBoxAccV2 takes the boxes of all contours, the others that of the largest one.
A Max... accuracy is the best over the thresholds, which are common to all images.

`score_boxes` scores one image; `results/metrics.py` makes accuracies of many.

A constant heatmap has the box (0, 0, 0, 0) at every threshold, one pixel in the corner: no hit
unless a true box is about as small and lies there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS, THRESHOLDS, quantise
from sigcam.evaluate.localization.threshold_boxes.search import threshold_boxes

LOC_IOU = 0.5
"""The IoU that GT-known Loc and Top-1 Loc ask for."""


def box_iou(a: Array, b: Array) -> Array:
    """Computes the IoU of boxes whose corners (x0, y0) and (x1, y1) both belong to them.

    Args:
        a: integers [n, 4].
        b: integers [m, 4].

    Returns:
        float64 [n, m] in [0, 1].

    >>> box_iou(np.array([[0, 0, 1, 1]]), np.array([[0, 0, 1, 1], [0, 0, 1, 0], [2, 2, 3, 3]]))
    array([[1. , 0.5, 0. ]])
    """
    # Column by column: reductions along a last axis of two are slow.
    ax0, ay0, ax1, ay1 = a.astype(np.int64).T[:, :, None]
    bx0, by0, bx1, by1 = b.astype(np.int64).T[:, None, :]
    wide = np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1
    high = np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return np.asarray(shared / (areas - shared), np.float64)


@dataclass(frozen=True, eq=False)
class BoxScores:
    """One image's best IoU with its true boxes, at each of the T = 1,000 thresholds.

    Attributes:
        every: float64 [T], the best of all contours' boxes.
        largest: float64 [T], that of the largest contour's box.
    """

    every: Array
    largest: Array

    def hits(self) -> Array:
        """Returns where `every` reaches each IoU of 0.3, 0.5, 0.7: bool [3, T]."""
        return self.every >= np.array(IOU_THRESHOLDS)[:, None]

    def hits_largest(self) -> Array:
        """Returns where `largest` reaches each IoU of 0.3, 0.5, 0.7: bool [3, T]."""
        return self.largest >= np.array(IOU_THRESHOLDS)[:, None]

    def packed(self) -> Array:
        """Returns both kinds of hits as bits, to keep per image: uint8 [2, 3, 125] (750 bytes)."""
        return np.packbits(np.stack([self.hits(), self.hits_largest()]), axis=-1)

    def at(self, threshold: float) -> tuple[float, float]:
        """Returns the IoU of all contours' boxes and of the largest one's, at one threshold.

        Args:
            threshold: one of 0, 0.001, ..., 0.999.

        Raises:
            UsageError: the threshold is none of these.
        """
        index = threshold_index(threshold)
        return float(self.every[index]), float(self.largest[index])


def unpack_hits(packed: Array) -> Array:
    """Reads what `BoxScores.packed` wrote.

    Args:
        packed: uint8 [..., 125].

    Returns:
        bool [..., T].

    Example:
        >>> hits = unpack_hits(np.packbits(np.arange(1000) < 300))
        >>> hits.shape, int(hits.sum())
        ((1000,), 300)
    """
    return np.unpackbits(packed, axis=-1, count=len(THRESHOLDS)).astype(bool)


def threshold_index(threshold: float) -> int:
    """Returns where a threshold stands in the protocol's list, which has steps of 0.001.

    Raises:
        UsageError: it isn't in the list.

    >>> threshold_index(0.2)
    200
    """
    index = round(threshold * 1000) if 0 <= threshold < 1 else -1
    if index not in range(len(THRESHOLDS)) or abs(THRESHOLDS[index] - threshold) > 1e-9:
        raise UsageError(
            f"threshold must be one of 0, 0.001, ..., 0.999, got {threshold}; round it"
        )
    return index


def score_boxes(scores: Array, truth: Array) -> BoxScores:
    """Scores one image's heatmap against its true boxes.

    Args:
        scores: floating [S, S] in [0, 1], from `score_heatmap` (float64, as the protocol has it).
        truth: integers [n, 4], from `scale_boxes`.

    Returns:
        The best IoU at each threshold.

    Raises:
        UsageError: the array is no heatmap, or there is no box.

    >>> heatmap = np.zeros((8, 8))
    >>> heatmap[2:4, 2:6] = 1
    >>> score_boxes(heatmap, np.array([[2, 2, 6, 4]])).at(0.2)
    (1.0, 1.0)
    """
    if truth.ndim != 2 or truth.shape[1] != 4 or len(truth) == 0:
        raise UsageError(f"true boxes must be [n, 4] with n >= 1, got {list(truth.shape)}")
    found = threshold_boxes(quantise(scores))
    every = np.zeros(len(found.largest))
    np.maximum.at(every, found.box_image, box_iou(found.boxes, truth).max(axis=1))
    largest = box_iou(found.largest, truth).max(axis=1)
    return BoxScores(every[found.image], largest[found.image])
