"""Average Drop and Increase in Confidence, for an image multiplied by its heatmap.

Chattopadhay et al. 2018 (Grad-CAM++), as in Beyond Softmax, Table 1. Y is the confidence of
the predicted class on the image, O that of the same class on the masked image, both by
the softmax branch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sigcam.core.errors import UsageError
from sigcam.core.types import Array


def masked_image(image: Array, scores: Array) -> Array:
    """Multiplies an image by its heatmap, pixel by pixel, and rounds.

    Pixels of 0 to 255 are multiplied, before the network's own normalisation, so that what
    the heatmap leaves out turns black. Code that multiplies the normalised image turns it to
    the mean colour instead. A constant heatmap is all zero and gives a black image.

    Args:
        image: uint8 [H, W, n], or float32 where the model takes no bytes.
        scores: floating [H, W] in [0, 1], the heatmap.

    Returns:
        The same type and shape, a new array; bytes are rounded.

    Raises:
        UsageError: other shapes or types, or scores outside [0, 1].

    >>> masked_image(np.array([[[10, 200, 255]]], np.uint8), np.array([[0.5]]))
    array([[[  5, 100, 128]]], dtype=uint8)
    """
    check_image(image, scores)
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise UsageError(
            f"heatmap must lie in [0, 1] without NaN, got {scores.min()} to {scores.max()}"
        )
    masked: Array = image * scores[..., None]
    return (np.rint(masked) if image.dtype == np.uint8 else masked).astype(image.dtype)


def check_image(image: Array, scores: Array) -> None:
    """Refuses an image and a heatmap that don't belong together.

    Raises:
        UsageError: the image isn't uint8 or float32 [H, W, n], or the heatmap isn't [H, W].

    Example:
        >>> check_image(np.zeros((4, 6, 3), np.uint8), np.zeros((6, 4)))
        Traceback (most recent call last):
            ...
        sigcam.core.errors.UsageError: heatmap must have the image's size [4, 6], got [6, 4]
    """
    if image.dtype not in (np.uint8, np.float32) or image.ndim != 3 or not image.shape[2]:
        raise UsageError(
            f"image must be uint8 or float32 [H, W, n], got {image.dtype} {list(image.shape)}"
        )
    if scores.shape != image.shape[:2] or scores.size == 0:
        raise UsageError(
            f"heatmap must have the image's size {list(image.shape[:2])}, got {list(scores.shape)}"
        )


def confidence_drop(before: npt.ArrayLike, after: npt.ArrayLike) -> Array:
    """Computes each image's term of Average Drop in percent: 100 max(0, Y - O) / Y.

    Args:
        before: floats [n], Y, in (0, 1].
        after: floats [n], O, in [0, 1].

    Returns:
        float64 [n] in [0, 100]; its mean is Average Drop (lower is better).

    Raises:
        UsageError: arrays of other shapes, or values that are no probabilities.

    >>> confidence_drop([0.8, 0.5], [0.4, 0.6])
    array([50.,  0.])
    """
    y, o = _pair(before, after)
    return np.asarray(np.maximum(0.0, y - o) / y * 100.0)


def confidence_rise(before: npt.ArrayLike, after: npt.ArrayLike) -> Array:
    """Computes each image's term of Increase in Confidence in percent: 100 where O > Y, else 0.

    Args:
        before: floats [n], Y, in (0, 1].
        after: floats [n], O, in [0, 1].

    Returns:
        float64 [n], 0 or 100; its mean is % Increase (higher is better).

    Raises:
        UsageError: arrays of other shapes, or values that are no probabilities.

    >>> confidence_rise([0.8, 0.5], [0.4, 0.6])
    array([  0., 100.])
    """
    y, o = _pair(before, after)
    return np.where(o > y, 100.0, 0.0)


def _pair(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[Array, Array]:
    y, o = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if y.ndim != 1 or y.shape != o.shape or len(y) == 0:
        raise UsageError(
            "confidences must be two arrays [n] of the same length, n >= 1, got "
            f"{list(y.shape)} and {list(o.shape)}"
        )
    if not ((y > 0) & (y <= 1) & (o >= 0) & (o <= 1)).all():
        raise UsageError("confidences must be softmax probabilities: Y in (0, 1], O in [0, 1]")
    return y, o
