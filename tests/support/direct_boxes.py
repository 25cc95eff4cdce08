"""The slow direct implementation of the box metrics: contours at every threshold."""

from __future__ import annotations

import cv2
import numpy as np

Box = tuple[int, int, int, int]


def boxes_at(levels: np.ndarray, threshold: float) -> tuple[list[Box], Box]:
    """All contours' boxes and the largest contour's at one threshold."""
    height, width = levels.shape
    image = cv2.threshold(levels, int(threshold * levels.max()), 255, cv2.THRESH_BINARY)[1]
    contours = cv2.findContours(image, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    if len(contours) == 0:
        return [(0, 0, 0, 0)], (0, 0, 0, 0)
    boxes = []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append((x, y, min(x + w, width - 1), min(y + h, height - 1)))
    areas = [cv2.contourArea(contour) for contour in contours]
    return boxes, boxes[areas.index(max(areas))]


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose corners both belong to them."""
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return wide * high / (sum(areas) - wide * high)


def best_ious(
    levels: np.ndarray, truth: list[Box], thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best IoU over the true boxes at every threshold: of all contours, of the largest."""
    every, largest = [], []
    for threshold in thresholds:
        boxes, big = boxes_at(levels, threshold)
        every.append(max(iou(box, true) for box in boxes for true in truth))
        largest.append(max(iou(big, true) for true in truth))
    return np.array(every), np.array(largest)
