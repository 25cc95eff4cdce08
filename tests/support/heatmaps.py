"""Heatmaps whose boxes are known."""

from __future__ import annotations

import numpy as np


def box_heatmap(x0: int, y0: int, x1: int, y1: int, size: int = 224) -> np.ndarray:
    """A heatmap that is 1 where the box of its contour is (x0, y0, x1, y1), and 0 elsewhere."""
    scores = np.zeros((size, size))
    scores[y0:y1, x0:x1] = 1
    return scores
