"""The answer that all of them give: boxes as a line of JSON, then the heatmap as a PNG."""

from __future__ import annotations

import json

import cv2
import numpy as np

from sigcam.runtime.explanation import Explanation


def answer(best: Explanation) -> bytes:
    """Returns the most probable class with its boxes, a line break, and the heatmap's PNG."""
    width, height = best.size
    heatmap = np.empty((height, width), np.uint8)
    best.write_heatmap(heatmap)
    boxes = [list(box) for box in best.boxes()]
    line = json.dumps({"class_id": best.class_id, "boxes": boxes}).encode()
    return line + b"\n" + cv2.imencode(".png", heatmap)[1].tobytes()
