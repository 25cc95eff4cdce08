"""Localisation against boxes: MaxBoxAcc, MaxBoxAccV2, GT-known Loc, Top-1 Loc, Top-1 Cls.

Choe et al. 2020, conventions of their code (protocol.py). An image is a hit at a threshold
if the best IoU between its boxes at that threshold and its true boxes reaches the IoU
threshold. MaxBoxAccV2 takes the boxes of all contours, the others that of the largest one.
A Max... accuracy is the best over the thresholds, which are common to all images.

A constant map has the box (0, 0, 0, 0) at every threshold, one pixel in the corner: no hit
unless a true box is about as small and lies there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.evaluate.localization.protocol import IOU_THRESHOLDS, THRESHOLDS, quantise
from sigcam.evaluate.localization.threshold_boxes.search import threshold_boxes

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# GT-known Loc and Top-1 Loc are at this IoU.
LOC_IOU = 0.5


def box_iou(a: npt.NDArray[np.integer], b: npt.NDArray[np.integer]) -> Floats:
    """IoU of boxes whose corners (x0, y0) and (x1, y1) both belong to them.

    Args:
        a: integers [n, 4].
        b: integers [m, 4].

    Returns:
        float64 [n, m] in [0, 1].
    """
    # Column by column: reductions along a last axis of two are slow.
    ax0, ay0, ax1, ay1 = a.astype(np.int64).T[:, :, None]
    bx0, by0, bx1, by1 = b.astype(np.int64).T[:, None, :]
    wide = np.minimum(ax1, bx1) - np.maximum(ax0, bx0) + 1
    high = np.minimum(ay1, by1) - np.maximum(ay0, by0) + 1
    shared = np.maximum(wide, 0) * np.maximum(high, 0)
    areas = (ax1 - ax0 + 1) * (ay1 - ay0 + 1) + (bx1 - bx0 + 1) * (by1 - by0 + 1)
    return np.asarray(shared / (areas - shared), np.float64)


@dataclass(frozen=True)
class BoxScores:
    """One image's best IoU over its true boxes, at each of the T = 1,000 thresholds.

    Attributes:
        every: float64 [T], of all contours' boxes.
        largest: float64 [T], of the largest contour's box.
    """

    every: Floats
    largest: Floats

    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether `every` reaches each IoU of 0.3, 0.5, 0.7: bool [3, T]."""
        return self.every >= np.array(IOU_THRESHOLDS)[:, None]

    def hits_largest(self) -> npt.NDArray[np.bool_]:
        """The same for `largest`: bool [3, T]."""
        return self.largest >= np.array(IOU_THRESHOLDS)[:, None]

    def packed(self) -> npt.NDArray[np.uint8]:
        """Both kinds of hits in bits, to keep per image: uint8 [2, 3, 125] (750 bytes)."""
        return np.packbits(np.stack([self.hits(), self.hits_largest()]), axis=-1)

    def at(self, threshold: float) -> tuple[float, float]:
        """IoU of all contours' boxes and of the largest one's, at one threshold."""
        index = threshold_index(threshold)
        return float(self.every[index]), float(self.largest[index])


def unpack_hits(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Reads what `BoxScores.packed` wrote: [..., 125] to bool [..., T]."""
    return np.unpackbits(packed, axis=-1, count=len(THRESHOLDS)).astype(bool)


def threshold_index(threshold: float) -> int:
    """Where a threshold stands in the protocol's list, which has steps of 0.001.

    Raises:
        UsageError: it isn't in the list.
    """
    index = round(threshold * 1000) if 0 <= threshold < 1 else -1
    if index not in range(len(THRESHOLDS)) or abs(THRESHOLDS[index] - threshold) > 1e-9:
        raise UsageError(
            f"threshold must be one of 0, 0.001, ..., 0.999, got {threshold}; round it"
        )
    return index


def score_boxes(scores: npt.NDArray[np.floating], truth: npt.NDArray[np.integer]) -> BoxScores:
    """Scores one image's map against its true boxes.

    Args:
        scores: floating [S, S] in [0, 1], from `score_heatmap` (float64, as the protocol has it).
        truth: integers [n, 4], from `scale_boxes`.

    Raises:
        UsageError: no score map, or no box.
    """
    if truth.ndim != 2 or truth.shape[1] != 4 or len(truth) == 0:
        raise UsageError(f"true boxes must be [n, 4] with n >= 1, got {list(truth.shape)}")
    found = threshold_boxes(quantise(scores))
    every = np.zeros(len(found.largest))
    np.maximum.at(every, found.box_image, box_iou(found.boxes, truth).max(axis=1))
    largest = box_iou(found.largest, truth).max(axis=1)
    return BoxScores(every[found.image], largest[found.image])


@dataclass(frozen=True)
class BoxResult:
    """Accuracies in percent, each best with the threshold that gives it (the lowest of those).

    Attributes:
        images: number of images.
        max_box_acc_v2: mean of MaxBoxAccV2 over the IoUs.
        at_iou: MaxBoxAccV2 at IoU 0.3, 0.5, 0.7.
        at_iou_threshold: their best thresholds.
        gt_known: GT-known Loc at the fixed threshold.
        gt_known_best: the same at the best threshold (MaxBoxAcc), and that threshold.
        top1_cls: share of images whose class is right; None where that isn't known.
        top1_loc: class right and GT-known hit, at the fixed threshold; or None.
        top1_loc_best: the same at its own best threshold, and that threshold; or None.
        fixed_threshold: the fixed threshold.
    """

    images: int
    max_box_acc_v2: float
    at_iou: tuple[float, ...]
    at_iou_threshold: tuple[float, ...]
    gt_known: float
    gt_known_best: tuple[float, float]
    top1_cls: float | None
    top1_loc: float | None
    top1_loc_best: tuple[float, float] | None
    fixed_threshold: float


class BoxAccuracy:
    """Counts hits over images; memory doesn't grow with their number."""

    def __init__(self) -> None:
        self.images = 0
        self.classified = 0
        self.correct = 0
        self.every = np.zeros((len(IOU_THRESHOLDS), len(THRESHOLDS)), np.int64)
        self.largest = np.zeros_like(self.every)
        self.top1 = np.zeros(len(THRESHOLDS), np.int64)

    def add(self, scores: BoxScores, correct: bool | None = None) -> None:
        """Counts an image.

        Args:
            scores: from `score_boxes`.
            correct: whether the predicted class is the true one; None if not known. Either
                all images have it or none.
        """
        hits = scores.hits_largest()
        self.images += 1
        self.every += scores.hits()
        self.largest += hits
        if correct is not None:
            self.classified += 1
            self.correct += bool(correct)
            self.top1 += hits[IOU_THRESHOLDS.index(LOC_IOU)] & bool(correct)

    def merge(self, other: BoxAccuracy) -> None:
        """Adds the counts of images that were scored elsewhere."""
        for name, value in other.arrays().items():
            setattr(self, name, getattr(self, name) + (int(value) if value.ndim == 0 else value))

    def arrays(self) -> dict[str, Ints]:
        """All counts as int64 arrays (copies), to be stored; `from_arrays` reads them."""
        names = ("images", "classified", "correct", "every", "largest", "top1")
        return {name: np.array(getattr(self, name), np.int64) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[np.integer]]) -> BoxAccuracy:
        """Goes on from stored counts.

        Raises:
            UsageError: an array is missing or has another shape.
        """
        made = cls()
        for name, empty in made.arrays().items():
            if name not in arrays or arrays[name].shape != empty.shape:
                got = list(arrays[name].shape) if name in arrays else "nothing"
                raise UsageError(
                    f"stored counts need {name!r} of shape {list(empty.shape)}, got {got}"
                )
            value = arrays[name].astype(np.int64)
            setattr(made, name, int(value) if value.ndim == 0 else value)
        return made

    def result(self, fixed_threshold: float = 0.2) -> BoxResult:
        """The accuracies.

        Args:
            fixed_threshold: one of 0, 0.001, ..., 0.999, as a share of the map's maximum.

        Raises:
            UsageError: no images, classes known for some of them only, or a threshold
                that isn't in the list.
        """
        if self.images == 0:
            raise UsageError("accuracy needs at least one image, got none")
        if self.classified not in (0, self.images):
            raise UsageError(
                f"{self.classified} of {self.images} images came with `correct`; give it "
                "for all or for none"
            )
        fixed = threshold_index(fixed_threshold)
        best = [self._best(row) for row in self.every]
        known = self.largest[IOU_THRESHOLDS.index(LOC_IOU)]
        with_class = self.classified > 0
        return BoxResult(
            images=self.images,
            max_box_acc_v2=float(np.mean([value for value, _ in best])),
            at_iou=tuple(value for value, _ in best),
            at_iou_threshold=tuple(threshold for _, threshold in best),
            gt_known=self._percent(known[fixed]),
            gt_known_best=self._best(known),
            top1_cls=self._percent(self.correct) if with_class else None,
            top1_loc=self._percent(self.top1[fixed]) if with_class else None,
            top1_loc_best=self._best(self.top1) if with_class else None,
            fixed_threshold=fixed_threshold,
        )

    def _percent(self, count: int) -> float:
        return float(count * 100.0 / self.images)

    def _best(self, counts: Ints) -> tuple[float, float]:
        index = int(counts.argmax())
        return self._percent(counts[index]), round(float(THRESHOLDS[index]), 3)
