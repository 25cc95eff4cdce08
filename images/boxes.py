"""Boxes around the evidence of a heatmap."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from sigcam.core.arguments import real_number
from sigcam.core.types import Array

THRESHOLD = 0.2
"""Share of a heatmap's maximum at which its boxes are drawn unless the caller says otherwise:
the fixed threshold of GT-known localisation."""


class Box(NamedTuple):
    """A rectangle in whole pixels of the original image.

    Attributes:
        x0, y0: the first column and row inside.
        x1, y1: the first column and row outside, to the right and below.

    >>> Box(2, 1, 5, 3).area
    6
    """

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def area(self) -> int:
        """Counts the pixels inside."""
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def iou(self, other: Box) -> float:
        """Returns the intersection over union with another box, 0 to 1.

        >>> Box(0, 0, 2, 2).iou(Box(1, 0, 3, 2))
        0.3333333333333333
        """
        width = min(self.x1, other.x1) - max(self.x0, other.x0)
        height = min(self.y1, other.y1) - max(self.y0, other.y0)
        shared = max(0, width) * max(0, height)
        return shared / (self.area + other.area - shared)


def boxes_of(heatmap: Array, threshold: float = THRESHOLD) -> list[Box]:
    """Finds the boxes around the connected regions where a heatmap is at least `threshold`.

    Args:
        heatmap: float32 [H, W] in [0, 1], as `to_heatmap` makes it.
        threshold: share of the heatmap's maximum, above 0 and at most 1.

    Returns:
        The boxes of the outer outlines, the one around the largest area first; none for a
        heatmap that is 0 everywhere.

    Raises:
        UsageError: the threshold is out of range.

    >>> heatmap = np.zeros((4, 6), np.float32)
    >>> heatmap[1:3, 2:5] = 1
    >>> boxes_of(heatmap)
    [Box(x0=2, y0=1, x1=5, y1=3)]
    """
    threshold = real_number(threshold, "threshold", 0, 1, above=True)
    highest = heatmap.max()
    if not highest > 0:
        return []
    # Of the maximum itself, which is 1 only up to rounding.
    mask = (heatmap >= threshold * highest).astype(np.uint8)
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for outline in outlines:
        x, y, width, height = cv2.boundingRect(outline)
        # An outline runs through pixel centres: that of a single row encloses nothing.
        size = (cv2.contourArea(outline), width * height)
        found.append((size, Box(x, y, x + width, y + height)))
    found.sort(key=lambda item: item[0], reverse=True)
    return [box for _, box in found]
