"""Finds the boxes of a heatmap at every threshold, as a contour search at each would give them.

A uint8 heatmap has at most 255 threshold images that differ. Neighbouring ones mostly have as
many pieces and holes (levels.py). A group of them without holes is done at once: where it is
one piece, its box is read from the largest values of the rows and columns; where it is
several, the same is done for each (tracking.py). The other images are stacked into one tall
image and searched together (contours.py).

On random fields (benchmarks/datasets/evaluate_speed.py) that is 6 to 15 times as fast as
contours at every threshold: the fewer pieces, the more. Tried and left out:
- `findContours` once per distinct level: 4 times as fast as once per threshold;
- RETR_LIST instead of RETR_TREE: within 10%, and another order in ties;
- each level's bounding rectangle cut out before single calls: no gain;
- connected components with statistics: 7 to 15 times slower than contours;
- the tall image in parts that fit in the cache: within the noise, or slower;
- following holes like pieces: 5 to 10% faster for 40 lines more.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sigcam.core.errors import UsageError
from sigcam.core.types import Array
from sigcam.evaluate.localization.protocol import THRESHOLDS
from sigcam.evaluate.localization.threshold_boxes.contours import Contours, all_contours
from sigcam.evaluate.localization.threshold_boxes.levels import LEVELS, histogram, level_groups
from sigcam.evaluate.localization.threshold_boxes.tracking import ends, rectangles, track_pieces

# Following a group costs as much as searching so many images, and each piece so many more.
_WORTH_TRACKING = 6
_PIECE_COST = 2


@dataclass(frozen=True)
class ThresholdBoxes:
    """The boxes of one heatmap at T thresholds; thresholds with the same image share them.

    Boxes are as the protocol makes them: x1 is x0 + width, not less one, cut off at the
    image's last column; the same down. An image without a contour has the box (0, 0, 0, 0).

    Attributes:
        image: int64 [T], the image that a threshold gives, 0 to M - 1.
        boxes: int64 [n, 4], (x0, y0, x1, y1) of all contours, holes included.
        box_image: int64 [n], the image that a box is of; each image has at least one.
        largest: int64 [M, 4], the box of the contour that encloses the largest area.
    """

    image: Array
    boxes: Array
    box_image: Array
    largest: Array


def threshold_boxes(levels: Array, thresholds: Array = THRESHOLDS) -> ThresholdBoxes:
    """Finds the boxes of {levels > int(t * max)} for every threshold t.

    Args:
        levels: uint8 [H, W], fewer than 2**24 pixels; `quantise` makes it.
        thresholds: float64 [T] in [0, 1].

    Returns:
        The boxes. A heatmap that is zero everywhere (what `score_heatmap` gives for a constant
        CAM) has the box (0, 0, 0, 0) at every threshold.

    Raises:
        UsageError: the levels aren't uint8 [H, W].

    >>> levels = np.zeros((6, 8), np.uint8)
    >>> levels[1:3, 2:5] = 200
    >>> threshold_boxes(levels, np.array([0.0, 0.5])).largest
    array([[2, 1, 5, 3]])
    """
    if levels.dtype != np.uint8 or levels.ndim != 2 or not 0 < levels.size < 1 << 24:
        raise UsageError(
            f"levels must be uint8 [H, W] of fewer than 2**24 pixels, got {levels.dtype} "
            f"{list(levels.shape)}"
        )
    highest = int(levels.max())
    # Level L has the image of the last level up to L that a pixel has.
    counts = histogram(levels)
    same_as = np.maximum.accumulate(np.where(counts > 0, np.arange(LEVELS), 0))
    wanted = same_as[(thresholds * highest).astype(np.int64)]
    distinct, image = np.unique(wanted, return_inverse=True)
    found = _Search(levels, distinct)
    return ThresholdBoxes(image, *found.result())


class _Search:
    """The search in one heatmap, which collects the boxes of every distinct level."""

    def __init__(self, levels: Array, distinct: Array) -> None:
        self.levels = np.ascontiguousarray(levels)
        self.distinct = distinct
        self.boxes: list[Array] = []
        self.owners: list[Array] = []
        self.largest = np.zeros((len(distinct), 4), np.int64)
        self.rows = levels.max(axis=1)
        self.columns = levels.max(axis=0)

    def result(self) -> tuple[Array, Array, Array]:
        """Runs the search; returns boxes [n, 4], their images [n], the largest's box [M, 4]."""
        empty = self.distinct >= self.rows.max()
        groups, euler = level_groups(self.levels)
        group = np.where(empty, -1, groups[self.distinct])
        rest = [np.zeros(0, np.int64)]
        for images in np.split(np.arange(len(group)), np.flatnonzero(np.diff(group)) + 1):
            if group[images[0]] < 0:
                self._take(images, np.zeros((len(images), 4), np.int64))
            elif euler[self.distinct[images[0]]] < 1 or not self._track(images):
                rest.append(images)
        self._search(np.concatenate(rest))
        return np.concatenate(self.boxes), np.concatenate(self.owners), self.largest

    def _track(self, images: Array) -> bool:
        """Does a group of images at once and returns True, if it pays and they have no holes."""
        if len(images) < _WORTH_TRACKING:
            return False
        levels = self.distinct[images]
        x0, y0, x1, y1 = rectangles(self.rows, self.columns, levels[:1])[0].tolist()
        outlines, hierarchy = cv2.findContours(
            (self.levels[y0:y1, x0:x1] > levels[0]).view(np.uint8),
            cv2.RETR_CCOMP,
            cv2.CHAIN_APPROX_SIMPLE,
            offset=(x0, y0),
        )
        if (np.asarray(hierarchy)[0, :, 3] >= 0).any():
            return False
        if len(outlines) * _PIECE_COST > len(images):
            return False
        if len(outlines) == 1:
            self._take(images, self._rectangles(levels))
            return True
        boxes, areas = track_pieces(self.levels, outlines, levels)
        self.boxes.append(self._cut(boxes.reshape(-1, 4)))
        self.owners.append(np.tile(images, len(outlines)))
        self.largest[images] = boxes[areas.argmax(axis=0), np.arange(len(images))]
        tied = np.flatnonzero((areas == areas.max(axis=0)).sum(axis=0) > 1)
        for place in tied.tolist():
            self.largest[images[place]] = self._first_largest(int(levels[place]))
        return True

    def _take(self, images: Array, boxes: Array) -> None:
        """Keeps the only box of each image."""
        self.boxes.append(boxes)
        self.owners.append(images)
        self.largest[images] = boxes

    def _rectangles(self, levels: Array) -> Array:
        """Returns the boxes of whole threshold images, [m, 4]; none of them may be empty."""
        return self._cut(rectangles(self.rows, self.columns, levels))

    def _cut(self, boxes: Array) -> Array:
        """Cuts boxes off at the image's last column and row, in place."""
        height, width = self.levels.shape
        boxes[:, 2] = np.minimum(boxes[:, 2], width - 1)
        boxes[:, 3] = np.minimum(boxes[:, 3], height - 1)
        return boxes

    def _search(self, images: Array) -> None:
        """Finds all contours of some images."""
        if not len(images):
            return
        stack, begins, shift = self._stack(self.distinct[images])
        contours = all_contours(stack)
        boxes = contours.boxes
        part = np.searchsorted(begins, boxes[:, 1], side="right") - 1
        boxes[:, 1::2] -= shift[part][:, None]
        boxes = self._cut(boxes)
        owners = images[part]
        self.boxes.append(boxes)
        self.owners.append(owners)
        self._choose_largest(contours, owners)

    def _choose_largest(self, contours: Contours, owners: Array) -> None:
        """Sets the box of the contour with the largest area, the first of OpenCV's in a tie.

        Areas are computed for the contour with the largest bound of each image of several
        pieces, then for those whose bound isn't below that one's area.
        """
        areas = np.full(len(owners), -1.0)
        order = np.lexsort((contours.bounds, owners))
        leader = order[np.append(np.diff(owners[order]) > 0, True)]
        several = np.bincount(owners[contours.bounds >= 0], minlength=len(self.distinct)) > 1
        areas[leader] = contours.bounds[leader]
        contest = leader[several[owners[leader]]]
        areas[contest] = contours.areas(contest)
        best = np.full(len(self.distinct), np.inf)
        best[owners[leader]] = areas[leader]
        rivals = contours.bounds >= best[owners]
        rivals[leader] = False
        rival = np.flatnonzero(rivals)
        areas[rival] = contours.areas(rival)
        np.maximum.at(best, owners[rival], areas[rival])
        top = np.flatnonzero(areas == best[owners])
        self.largest[owners[top]] = contours.boxes[top]
        tied = (self.largest[owners[top]] != contours.boxes[top]).any(axis=1)
        for index in np.unique(owners[top[tied]]).tolist():
            self.largest[index] = self._first_largest(int(self.distinct[index]))

    def _stack(self, levels: Array) -> tuple[Array, Array, Array]:
        """Puts threshold images below one another, an empty row after each.

        Returns:
            The tall image; the row in it where each image begins; what to take from a row
            in it to have the heatmap's row.
        """
        y0, y1 = ends(self.rows, levels)
        after = np.cumsum(y1 - y0 + 1)
        begins = after - (y1 - y0 + 1)
        stack = np.empty((int(after[-1]), self.levels.shape[1]), np.uint8)
        stack[after - 1] = 0
        for level, low, high, at in zip(
            levels.tolist(), y0.tolist(), y1.tolist(), begins.tolist(), strict=True
        ):
            np.greater(self.levels[low:high], level, out=stack[at : at + high - low].view(bool))
        return stack, begins, begins - y0

    def _first_largest(self, level: int) -> Array:
        """Returns the box where contours of one area tie: the protocol takes OpenCV's first."""
        image = (self.levels > level).view(np.uint8)
        contours = cv2.findContours(image, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
        x, y, width, height = cv2.boundingRect(max(contours, key=cv2.contourArea))
        box: Array = self._cut(np.array([[x, y, x + width, y + height]], np.int64))[0]
        return box
