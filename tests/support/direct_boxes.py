"""The slow direct implementation of the box metrics: contours at every threshold, hits counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np

Box = tuple[int, int, int, int]
Image = tuple[Sequence[float], Sequence[float], "bool | None"]
"""Best IoU at every threshold, of all contours and of the largest; whether the class is right."""


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


def accuracies(images: Sequence[Image], fixed: float = 0.2) -> dict[str, Any]:
    """Every accuracy in percent, as its definition says: counted threshold by threshold.

    Those called best come with the lowest threshold that gives them. Top-1 metrics are None where
    no image's class is known; otherwise they are of the images whose class is.
    """
    known = [image for image in images if image[2] is not None]

    def share(hit: Callable[[Image, int], bool], of: Sequence[Image], threshold: int) -> float:
        return 100 * sum(bool(hit(image, threshold)) for image in of) / len(of)

    def best(hit: Callable[[Image, int], bool], of: Sequence[Image]) -> tuple[float, float]:
        shares = [share(hit, of, threshold) for threshold in range(1000)]
        return max(shares), shares.index(max(shares)) / 1000

    def gt_known(image: Image, threshold: int) -> bool:
        return image[1][threshold] >= 0.5

    def top1_loc(image: Image, threshold: int) -> bool:
        return gt_known(image, threshold) and bool(image[2])

    at_iou = [best(lambda image, t, iou=iou: image[0][t] >= iou, images) for iou in (0.3, 0.5, 0.7)]
    index = round(fixed * 1000)
    return {
        "max_box_acc_v2": sum(value for value, _ in at_iou) / 3,
        "max_box_acc_0.3": at_iou[0],
        "max_box_acc_0.5": at_iou[1],
        "max_box_acc_0.7": at_iou[2],
        "gt_known": share(gt_known, images, index),
        "gt_known_best": best(gt_known, images),
        "top1_cls": share(lambda image, _: bool(image[2]), known, 0) if known else None,
        "top1_loc": share(top1_loc, known, index) if known else None,
        "top1_loc_best": best(top1_loc, known) if known else None,
    }
