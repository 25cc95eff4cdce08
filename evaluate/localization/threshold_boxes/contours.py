"""Finds all contours of a binary image: rectangles and areas are those of OpenCV's findContours.

OpenCV's link-runs search takes a third of the time of `findContours`. It follows the ends of
the rows' runs and leaves out the pixels between them, so that rectangles of holes and areas
have to be put right, which this file does. Should an OpenCV come whose link-runs search gives
other points, a check at the first call notices, and `findContours` is used: the same numbers,
about half as fast.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from sigcam.core.types import Array


@dataclass(frozen=True)
class Contours:
    """The contours of one binary image, holes included.

    Attributes:
        image: uint8 [H, W], the binary image.
        points: n arrays int32 [p, 1, 2], (x, y).
        boxes: int64 [n, 4], (x0, y0, x1, y1), x1 and y1 excluded.
        bounds: float64 [n], no less than the area; negative for a hole, which never encloses
            more than its piece, and as much only in the same box.
        exact: whether the bounds are the areas.
    """

    image: Array
    points: Sequence[Array]
    boxes: Array
    bounds: Array
    exact: bool

    def areas(self, which: Array) -> Array:
        """Computes areas of outer contours, as `contourArea` has them of findContours' points.

        The border between two rows goes diagonally for one column and then along the row,
        where link-runs draws one straight line: half a pixel too much for each column more.
        Where it goes straight across a gap in a row, the border dips into the next row.

        Args:
            which: int64 [k], indices of outer contours.

        Returns:
            float64 [k].
        """
        if self.exact or not len(which):
            return self.bounds[which]
        lengths = np.array([len(self.points[index]) for index in which.tolist()])
        ends = np.cumsum(lengths)
        points = np.concatenate([self.points[index][:, 0] for index in which.tolist()])
        x, y = points[:, 0].copy(), points[:, 1].copy()
        ahead = np.append(x[1:], 0), np.append(y[1:], 0)
        for following, coordinate in zip(ahead, (x, y), strict=True):
            following[ends - 1] = coordinate[ends - lengths]
        extra = np.abs(x - ahead[0]) - 1
        wide = np.flatnonzero(extra > 0)
        weights = np.full(len(wide), 0.5)
        level = np.flatnonzero((y == ahead[1])[wide])
        at = wide[level]
        weights[level] = self.image[y[at], np.minimum(x, ahead[0])[at] + 1] == 0
        owner = np.searchsorted(ends, wide, side="right")
        surplus = np.bincount(owner, extra[wide] * weights, len(which))
        return np.asarray(self.bounds[which] - surplus)


def all_contours(image: Array) -> Contours:
    """Finds all contours, outer ones (8-connected) and holes.

    Args:
        image: uint8 [H, W], contiguous; what isn't 0 is foreground, at least one pixel.

    >>> all_contours(np.array([[0, 1, 1], [0, 1, 1]], np.uint8)).boxes
    array([[1, 0, 3, 2]])
    """
    return _link_runs(image) if _link_runs_agrees() else _plain(image)


def _rectangles(points: Sequence[Array]) -> Array:
    boxes = np.array([cv2.boundingRect(contour) for contour in points], np.int64)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _plain(image: Array) -> Contours:
    points, hierarchy = cv2.findContours(image, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    areas = np.array([cv2.contourArea(contour) for contour in points])
    areas[np.asarray(hierarchy)[0, :, 3] >= 0] = -1
    return Contours(image, points, _rectangles(points), areas, exact=True)


def _link_runs(image: Array) -> Contours:
    points = cv2.findContoursLinkRuns(image)[0]
    boxes = _rectangles(points)
    areas = np.array([cv2.contourArea(contour, True) for contour in points])
    # A hole is followed the other way round, so that its area is negative; or zero, if it has
    # one row, and then its second pixel is background.
    one_row = (areas == 0) & (boxes[:, 3] == boxes[:, 1] + 1) & (boxes[:, 2] > boxes[:, 0] + 2)
    flat = np.flatnonzero(one_row)
    areas[flat[image[boxes[flat, 1], boxes[flat, 0] + 1] == 0]] = -1
    # The row above a hole and the one below are left out.
    hole = areas < 0
    boxes[hole, 1] -= 1
    boxes[hole, 3] += 1
    return Contours(image, points, boxes, areas, exact=False)


@functools.cache
def _link_runs_agrees() -> bool:
    """Tells whether the link-runs search of this OpenCV gives what the corrections are for."""
    if not hasattr(cv2, "findContoursLinkRuns"):
        return False
    # Pieces with steps, gaps, holes of one row and of several, and single pixels.
    noise = np.random.default_rng(0).random((48, 48))
    image = (cv2.GaussianBlur(noise, (0, 0), 1.0) > 0.5).astype(np.uint8)
    image[::7, ::5] ^= 1
    found, wanted = _link_runs(image), _plain(image)
    return _summary(found) == _summary(wanted)


def _summary(contours: Contours) -> list[list[float]]:
    """Returns rectangles and areas in an order that doesn't depend on the search."""
    areas = contours.bounds.copy()
    outer = np.flatnonzero(areas >= 0)
    areas[outer] = contours.areas(outer)
    areas[areas < 0] = -1
    return sorted(np.column_stack([contours.boxes, areas]).tolist())
