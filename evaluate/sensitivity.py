"""Class sensitivity: how much a map changes when another class is asked for.

Rebuffi, Fong, Ji and Vedaldi, "There and Back Again: Revisiting Backpropagation Saliency Methods",
CVPR 2020, Section 4.2, correlate the maps of the most and of the least probable class; a map that
speaks for a class should be another one for a class that isn't there.
"""

from __future__ import annotations

from sigcam.core.types import Array
from sigcam.images.correlation import correlation


def class_sensitivity(predicted: Array, least: Array) -> float:
    """Computes 1 - r, r the correlation of the CAMs of the most and the least probable class.

    Pearson's correlation over the cells. Where a CAM is constant it is taken for 0: no map at all
    for a class that isn't there is as sensitive as an unrelated one. (The paper reports r
    itself, of maps that were enlarged.)

    Args:
        predicted: floating [h, w], of the most probable class.
        least: floating [h, w], of the least probable class.

    Returns:
        0 for the same map, 1 for unrelated ones, 2 for opposite ones.

    Example:
        >>> import numpy as np
        >>> cam = np.array([[0.0, 1.0], [2.0, 5.0]])
        >>> class_sensitivity(cam, 3 * cam + 1), class_sensitivity(cam, -cam)
        (0.0, 2.0)
        >>> class_sensitivity(cam, np.zeros((2, 2)))
        1.0
    """
    return 1.0 - correlation(predicted, least)
